"""kill -9 at any moment of a merge leaves the old output or none, and nothing that the next merge does not clean."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
