"""Who is on the device when: a VLM and picture models under ComfyUI's memory management, on a small card."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from clvr import builtin
from scripts.comfy import find

from .tiny_vlm import make

pytestmark = pytest.mark.comfy


@pytest.fixture(scope="module")
def happened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    worker, out = Path(__file__).with_name("memory_comfy_worker.py"), folder / "happened.json"
    command = [sys.executable, worker, find(), make(folder / "tiny-vlm"), builtin.PATH, out]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


def shares(told, *names):
    return [tuple(moment[name] for name in names) for moment in told]


def test_on_a_large_card_nobody_is_moved(happened):
    assert shares(happened["wide"]["told"], "VLM", "other") == [(1, 0), (1, 1), (1, 1), (1, 1)]


def test_on_a_small_card_the_vlm_and_the_picture_model_give_way_to_each_other(happened):
    told = happened["narrow"]["told"]
    assert all(moment["free"] >= 0 for moment in told)
    assert [moment[who] for moment, who in zip(told, ("VLM", "other") * 2, strict=True)] == [1, 1, 1, 1]
    assert [moment[who] < 1 for moment, who in zip(told, ("other", "VLM") * 2, strict=True)] == [True] * 4


def test_a_vlm_that_was_away_answers_the_same_and_reads_only_what_is_new(happened):
    assert happened["narrow"]["answers"] == happened["wide"]["answers"]
    (_, first), (_, second) = happened["narrow"]["answers"]
    assert second < first
    assert happened["narrow"]["kept"] > 0


def test_with_offload_always_the_vlm_leaves_after_every_answer(happened):
    assert shares(happened["always"]["told"], "VLM", "other") == [(0, 0), (0, 1), (0, 1), (0, 1)]


def test_room_is_made_for_what_a_long_answer_takes_too(happened):
    short, long = happened["crowded"]
    assert (short["VLM"], short["other"]) == (1, 1)
    assert long["VLM"] == 1
    assert long["other"] < 1


def test_a_diffusers_pipeline_takes_turns_with_the_vlm_and_draws_the_same(happened):
    told = happened["pipeline"]["told"]
    assert [moment[who] for moment, who in zip(told, ("VLM", "pipeline") * 2, strict=True)] == [1, 1, 1, 1]
    assert all(moment["free"] >= 0 for moment in told)
    assert told[1]["VLM"] < 1
    assert told[2]["pipeline"] < 1
    assert happened["pipeline"]["same"] == [True, True]


def test_at_the_end_of_a_run_of_single_nodes_nobody_keeps_anything(happened):
    assert happened["pipeline"]["kept"]
    assert happened["pipeline"]["over"] == [True, 0, 0, 0]
