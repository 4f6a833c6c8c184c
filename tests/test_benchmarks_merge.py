"""The benchmark of merging runs to its end on tiny files, and what it merged is right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.merge import DOUBLE, ROOT, SINGLE, WIDTH, depth, shapes, size


def test_every_way_runs_the_output_is_exact_and_nothing_is_left(tmp_path: Path):
    told = tmp_path / "costs.json"
    disk = tmp_path / "disk"
    disk.mkdir()
    command = [sys.executable, "-m", "benchmarks.merge", "--quick", "--disk", str(disk), "--json", str(told)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "elements that differ from the fp32 reference: 0\n" in done.stdout
    found = json.loads(told.read_text())
    assert found["differing"] == 0
    assert [set(costs) for costs in found["rounds"]] == [{"report", "plain", "floor", "load"}]
    assert not list(disk.iterdir())


def test_the_default_shapes_are_those_of_4b():
    assert len(shapes(WIDTH, DOUBLE, SINGLE)) == 149
    assert round(size(WIDTH, DOUBLE, SINGLE) / 1e9, 2) == 7.75


def test_files_are_as_deep_as_was_asked_and_no_deeper_than_4b():
    assert depth(WIDTH, 1.4e9) == (1, 2)
    assert depth(WIDTH, 100e9) == (DOUBLE, SINGLE)
    assert abs(size(WIDTH, *depth(WIDTH, 3e9)) / 3e9 - 1) < 0.05
