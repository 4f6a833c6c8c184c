"""The true sizes have the true files' parameters, and the tiny run of the same code comes to its end."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.real_models import KLEINS, VLMS, parameters, parts
from benchmarks.real_size import PARTS, main, marginal, prefix_bytes

BILLIONS = {("4B", "4B"): (3.876, 4.022, 0.084, 4.438), ("9B", "8B"): (9.079, 8.191, 0.084, 8.767)}


@pytest.mark.parametrize("names", BILLIONS, ids=" ".join)
def test_the_true_sizes_have_the_parameters_of_the_true_files(names):
    klein, seeing = KLEINS[names[0]], VLMS[names[1]]
    made = parts(klein, seeing, torch.bfloat16)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for module in made.values() for p in module.parameters())
    assert tuple(round(parameters(module) / 1e9, 3) for module in made.values()) == BILLIONS[names]
    assert klein.transformer["joint_attention_dim"] == len(klein.layers) * klein.text["hidden_size"]


def test_a_token_of_the_kept_prefix_takes_what_the_clients_settings_say():
    assert [prefix_bytes(VLMS[name]) for name in ("4B", "8B")] == [147_456, 147_456]


def test_the_last_round_is_compared_as_the_paper_compares_it():
    phases = {"plan s": 1.0, "draw s": 2.0, "verify s": 1.0, "round s": 4.0}
    told = {"model": "m", "references up to": 1}
    rows = [told | phases | {"round": 1, "run s": 5.0}, told | phases | {"draw s": 4.0, "round s": 6.0, "run s": 11.0}]
    (found,) = marginal(rows)
    assert (found["as in table 8"], found["over round 1"], found["over round 2"]) == (1.2, 1.5, 1.0)
    assert (found["draw adds"], found["plan adds"], found["met"]) == (0.5, 0.0, "no")


@pytest.mark.slow
def test_the_tiny_run_says_that_it_is_tiny_and_writes_every_part(tmp_path, capsys):
    out = tmp_path / "figures.json"
    small = {"resolution": 64, "references": 1, "candidates": 2, "rounds": 2, "repeat": 1}
    main([f"--{name}={value}" for name, value in {"device": "cpu", "size": "tiny", **small, "json": out}.items()])
    assert "TINY MODELS" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["about"]["size"] == "tiny"
    rows = found["parts"]
    assert list(rows) == [*PARTS, "marginal"]
    counts = {"sizes": 3, "steps": 4, "candidates": 4, "vae": 2, "vlm": 4, "swap": 2, "rounds": 4, "marginal": 2}
    assert {part: len(of) for part, of in rows.items()} == counts
    kept, anew = (row for row in rows["vlm"] if row["round"] == 2)
    assert kept["of them read"] < anew["of them read"] == kept["plan tokens"] == anew["plan tokens"]
