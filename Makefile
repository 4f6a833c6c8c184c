# make demo PROMPT="two red circles above a blue square"   make serve   make test   make lint
PYTHON ?= python3
override PROMPT := $(value PROMPT)
export PYTHON PROMPT
RUN = .venv/bin/python -m

.PHONY: demo serve test lint bench train-builtin lab setup clean

demo: setup
	@$(RUN) scripts.demo --prompt "$$PROMPT"

serve: setup
	@$(RUN) scripts.demo --serve

test:
	@scripts/setup --browser
	@OMP_NUM_THREADS=1 $(RUN) pytest -n 2 --dist loadgroup

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright
	$(RUN) pytest tests/test_layers.py

bench: setup
	$(RUN) benchmarks.loop
	$(RUN) benchmarks.builtin
	$(RUN) benchmarks.real_size
	$(RUN) benchmarks.train

# glibc otherwise hands large blocks back to the system after every operation, and half of the time goes there
train-builtin: setup
	MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=17179869184 $(RUN) training.builtin

lab: setup
	MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=17179869184 $(RUN) training.lab

setup:
	@scripts/setup

clean:
	rm -rf .venv build dist *.egg-info out tests/artifacts .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
