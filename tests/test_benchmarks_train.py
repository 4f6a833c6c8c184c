"""The throughput benchmark does the plain loops' work, and its quick run comes to its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.train import Rates, main


def test_a_line_says_what_the_drawing_and_learning_hid_of_the_rewards():
    line = Rates(drawn=2.0, learned=1.0, draw=5.0, wait=1.0, update=4.0, rewards=10.0).line("slow")
    assert line == "| slow | 2.00 | 1.00 | 50 % | 10 % | 40 % | 10.0 s | 90 % |"


@pytest.mark.slow
def test_the_quick_run_fills_both_tables(tmp_path: Path):
    main(["--quick", "--out", str(tmp_path / "train.md")])
    text = (tmp_path / "train.md").read_text()
    assert "| training.sft_dit |" in text
    assert "| measured |" in text
    assert "Flux2KleinPipeline, one call a group" in text
