"""kill -9 at any moment of a merge leaves the old output or none, and nothing that the next merge does not clean;
Ctrl-C at any moment ends it."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from clvr.dswm.writing import TensorFile

from .dswm_fixtures import moved, state, write_bfl


@pytest.mark.slow
@pytest.mark.parametrize("form", ["bfl", "diffusers"])
def test_a_killed_merge_leaves_the_old_output_or_none(tmp_path, form):
    base = state(double=1, single=6)
    for name, tensors in {"b": base, "d": moved(base, 1), "a": moved(base, 2)}.items():
        write_bfl(tmp_path / f"{name}.safetensors", tensors)
    done = subprocess.run(
        [sys.executable, "-m", "tests.dswm_crash_worker", tmp_path, form],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    kills = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(kills) > 30
    for kill in kills:
        allowed = {"0.5"} if kill["finished"] else {"1" if kill["old"] else "none", "0.5"}
        if kill["old"] and form == "diffusers":
            allowed.add("none")
        assert kill["left"] in allowed, kill
        assert kill["after"] == "0.25", kill
        assert kill["names"] == ["a.safetensors", "b.safetensors", "d.safetensors", "out"], kill
    assert sum(kill["debris"] for kill in kills) > 5
    assert {kill["left"] for kill in kills if kill["old"]} >= {"1", "0.5"}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # within a callback of Python's own
def test_an_interrupt_at_any_moment_ends_the_flushing_of_a_file(tmp_path):
    class Interrupt(BaseException):
        pass

    def interrupt(*_):
        if armed:
            raise Interrupt

    def flush():
        with file.flushing():
            time.sleep(1e-4)

    file, rng, armed, heard = TensorFile(tmp_path / "x", {"a": ("F32", (4,))}, {}), random.Random(1), False, 0
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(1000):
            with contextlib.suppress(Interrupt):
                try:
                    armed = True
                    signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 6e-4))
                    flush()
                except (Interrupt, RuntimeError) as error:
                    if isinstance(error, RuntimeError) and not isinstance(error.__context__, Interrupt):
                        raise  # else Python's own lock was interrupted, and says so in this way
                    heard += 1
                armed = False
            armed = False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert heard > 100
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "flush")
