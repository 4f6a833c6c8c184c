"""What past steps cost, kept and read; and what is told of a run from them."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clvr import loop, past
from clvr.budget import PRESETS, Budget
from clvr.estimate import Range, Setup, estimate, roughly
from clvr.past import CHECKLIST, History, Past, Recorder, state_folder, vlm_name
from clvr.trajectory import Goal, Usage

from .engine_fixtures import SIZE, FakeController, FakeGenerator, FakeVerifier, draw

SETUP = Setup("painter (4 steps)", "planner, judge", (64, 64), 4)
MANY = 10**6


def step(index=0, images=1, draw=2.0, **changes):
    """A step of SETUP: planned in 1 s with one call, each image drawn in `draw` and judged in 0.5 s with two."""
    seconds = {"plan": 1.0, "encode": 0.25, "draw": draw * images, "decode": 0.25 * images, "verify": 0.5 * images}
    known = {
        "generator": SETUP.generator,
        "vlm": SETUP.vlm,
        "size": SETUP.size,
        "nfe": SETUP.nfe,
        "index": index,
        "images": images,
        "judged": images,
        "seconds": seconds,
        "calls": 1 + 2 * images,
        "tokens": 1000 + 300 * images,
        "plan_calls": 1,
        "plan_tokens": 1000,
    }
    return Past(**{**known, **changes})


def checklist(vlm=SETUP.vlm):
    return Past("", vlm, (0, 0), 0, CHECKLIST, 0, 0, {"plan": 3.0}, 1, 700, 1, 700)


DONE = [checklist(), step(0), step(1), step(2, images=3)]


def test_a_run_is_the_sum_of_its_parts():
    told = estimate(Budget(steps=5, candidates=2), SETUP, DONE)
    assert (told.steps, told.images, told.nfe, told.basis) == (5, 10, 40, 3)
    assert told.seconds == Range(*(pytest.approx(3.0 + 5 * 1.25 + 10 * 2.75),) * 3)
    assert told.vlm_calls == 1 + 5 + 10 * 2
    assert told.tokens == 700 + 5 * 1000 + 10 * 300


def test_without_a_past_only_what_the_budget_says_is_told():
    told = estimate(Budget(steps=5, candidates=2, nfe=30), SETUP, [])
    assert (told.steps, told.images, told.nfe) == (5, 8, 32)
    assert (told.seconds, told.vlm_calls, told.tokens, told.basis, told.usual) == (None, None, None, 0, 0)
    assert "not known" in told.line()


@pytest.mark.parametrize(
    "change",
    [{"generator": "other"}, {"size": (64, 128)}, {"nfe": 8}, {"vlm": "planner, another judge"}],
)
def test_other_models_and_sizes_say_nothing_about_the_time(change):
    other = [dataclasses.replace(p, **change) for p in DONE]
    assert estimate(Budget(), SETUP, other).seconds is None
    both = estimate(Budget(), SETUP, DONE + other)
    assert both.seconds == estimate(Budget(), SETUP, DONE).seconds
    assert both.basis == 3


def test_what_the_same_vlm_asked_before_counts_whoever_drew():
    told = estimate(Budget(steps=1), SETUP, [step(generator="other")])
    assert (told.seconds, told.vlm_calls, told.tokens) == (None, 3, 1300)


def test_a_server_whose_model_is_not_known_yet_is_known_by_its_address():
    done = [step(vlm="qwen@host:8000 (plan.v1), qwen@host:8000 (judge.v1)")]
    unnamed = dataclasses.replace(SETUP, vlm="model@host:8000 (plan.v1), model@host:8000 (judge.v1)")
    assert estimate(Budget(), unnamed, done).basis == 1
    assert estimate(Budget(), dataclasses.replace(unnamed, vlm=unnamed.vlm.replace("8000", "9000")), done).basis == 0


def test_the_spread_is_that_of_the_past():
    told = estimate(Budget(steps=1), SETUP, [step(draw=seconds) for seconds in range(1, 102)])
    assert (told.seconds.low, told.seconds.median, told.seconds.high) == pytest.approx((13.0, 53.0, 93.0))


@pytest.mark.parametrize(
    ("limit", "steps"),
    [("seconds=4.1", 1), ("seconds=9", 2), ("vlm_calls=1", 1), ("vlm_calls=3", 1), ("vlm_calls=6", 2),
     ("vlm_calls=8", 2), ("tokens=1", 1), ("tokens=4000", 2), ("nfe=1", 1), ("nfe=9", 3)],
)  # fmt: skip
def test_a_limit_ends_a_run_at_the_round_in_which_it_is_reached(limit, steps):
    told = estimate(Budget.parse(limit, Budget(steps=9)), SETUP, DONE)
    assert told.steps == steps
    name, value = limit.split("=")
    told_of = told.seconds.high if name == "seconds" else getattr(told, name)
    assert told_of <= float(value) + (3 if name == "nfe" else 0)


costs = st.builds(
    step, st.integers(0, 3), st.integers(1, 4), st.floats(0, 90), nfe=st.sampled_from([4, 8])
)  # fmt: skip
pasts = st.lists(costs | st.builds(checklist), max_size=12)
some = st.none() | st.integers(1, 500)


@given(pasts, st.integers(1, 20), st.integers(1, 5), some, some, some, some, st.data())
def test_more_budget_is_never_estimated_as_less(done, steps, candidates, nfe, seconds, calls, tokens, data):
    limits = {"steps": steps, "nfe": nfe, "seconds": seconds, "vlm_calls": calls, "tokens": tokens}
    name = data.draw(st.sampled_from(list(limits)))
    raised = {**limits, name: data.draw(st.none() if limits[name] is None else st.integers(limits[name], MANY))}
    less, more = (estimate(Budget(candidates=candidates, **some), SETUP, done) for some in (limits, raised))
    assert more.steps >= less.steps
    assert more.images >= less.images
    assert (more.vlm_calls or 0) >= (less.vlm_calls or 0)
    assert (more.tokens or 0) >= (less.tokens or 0)
    if less.seconds:
        assert more.seconds.low >= less.seconds.low
        assert more.seconds.high >= less.seconds.high
        assert less.seconds.low <= less.seconds.median <= less.seconds.high
    assert less.line()


@given(pasts)
def test_a_larger_preset_is_estimated_as_more(done):
    told = [estimate(Budget.preset(name), SETUP, done) for name in PRESETS]
    assert [t.images for t in told] == [2, 8, 32]
    times = [t.seconds.median for t in told if t.seconds]
    assert times == sorted(times)


def test_the_rounds_that_runs_took_are_told():
    done = [step(i) for rounds in (1, 2, 2, 4, 2) for i in range(rounds)]
    assert estimate(Budget(), SETUP, done).usual == 2
    assert "runs so far ended after 2 rounds" in estimate(Budget(), SETUP, done).line()
    assert estimate(Budget(steps=1), SETUP, done).usual == 1


def test_the_line_of_a_run():
    assert estimate(Budget(steps=1), SETUP, DONE).line() == (
        "up to 1 round, 1 image, 4 function evaluations, 4 VLM calls, 2,000 tokens: 7.0 s, going by 3 past steps; "
        "runs so far ended after 1 round"
    )


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0.0 s"), (0.44, "0.4 s"), (35.2, "35 s"), (100, "1 min 40 s"), (120, "2 min"), (600, "10 min"),
     (3599, "1 h 0 min"), (3900, "1 h 5 min")],
)  # fmt: skip
def test_times_are_told_with_as_many_figures_as_help(seconds, said):
    assert roughly(seconds) == said


@given(st.lists(st.floats(0, 1e9), max_size=30))
def test_a_range_is_in_order_and_within_what_it_is_of(values):
    found = Range.of(values)
    assert found.low <= found.median <= found.high
    assert not values or (min(values) <= found.low and found.high <= max(values))


def recorded(folder, budget=None, usage=None):
    """A run under a recorder: its trajectory, and what is kept of it."""
    usage = usage or Usage(1, 20, 10)
    controller, generator = FakeController([dataclasses.replace(draw(), usage=usage)], usage=usage), FakeGenerator()
    verifier = FakeVerifier(usage=usage, blind=("c4",))
    recorder = Recorder(generator.name, lambda: vlm_name(controller, verifier), History(folder))
    settings = loop.Settings(budget or Budget(steps=3, candidates=2))
    ports = loop.Ports(controller, generator, verifier)
    state = loop.run(Goal("a secret prompt"), [], ports, settings, 5, recorder.listen)
    steps, warning = History(folder).read()
    assert not warning
    return state.trajectory, steps


def test_a_run_leaves_its_costs_and_no_word_of_its_prompt(tmp_path):
    trajectory, kept = recorded(tmp_path)
    assert [p.index for p in kept] == [CHECKLIST, 0, 1, 2]
    assert [(p.images, p.judged, p.nfe, p.size) for p in kept[1:]] == [(2, 2, 2, SIZE)] * 3
    assert [(p.calls, p.tokens, p.plan_calls, p.plan_tokens) for p in kept[1:]] == [(5, 150, 1, 30)] * 3
    assert kept[1].seconds == pytest.approx(dict(trajectory.steps[0].cost.seconds), abs=1e-4)
    assert "secret" not in (tmp_path / "steps.jsonl").read_text()


def test_the_estimate_of_a_run_like_the_last_one_is_the_last_one_s_cost(tmp_path):
    trajectory, kept = recorded(tmp_path, Budget(steps=3, candidates=2))
    setup = Setup("fake generator", "fake controller, fake verifier", SIZE, 2)
    told = estimate(Budget(steps=3, candidates=2), setup, kept)
    usage = trajectory.cost.usage
    assert (told.nfe, told.vlm_calls, told.tokens) == (trajectory.cost.nfe, usage.calls, usage.tokens)
    assert told.usual == 3


@given(st.lists(costs, max_size=5))
def test_what_is_kept_reads_back(tmp_path_factory, done):
    history = History(tmp_path_factory.mktemp("state"))
    history.add(done[:2])
    history.add(done[2:])
    assert history.read() == (done, "")


def test_the_file_stays_small_and_keeps_the_newest(tmp_path, monkeypatch):
    monkeypatch.setattr(past, "LARGEST", 4000)
    history = History(tmp_path)
    for index in range(100):
        history.add([step(index)])
        assert history.path.stat().st_size <= 4000
    steps, warning = history.read()
    assert not warning
    assert [p.index for p in steps] == list(range(100 - len(steps), 100))
    assert len(steps) >= 4


@pytest.mark.parametrize(
    "damage",
    [b"\xff\xfe\x00\n", b"{}\n", b"[1]\n", b"\n", b'{"format": 1}\n', b'{"generator"', b"[" * 5000 + b"\n",
     json.dumps(dataclasses.asdict(step(images=0, draw=1.0, seconds={}))).encode() + b"\n",
     json.dumps(dataclasses.asdict(step(seconds={"plan": float("nan")}))).encode() + b"\n"],
)  # fmt: skip
def test_a_damaged_file_is_set_aside_and_its_sound_lines_go_on(tmp_path, damage):
    history = History(tmp_path)
    history.add([step(0)])
    with open(history.path, "ab") as file:
        file.write(damage)
    history.add([step(1)])
    steps, warning = history.read()
    assert [p.index for p in steps] == [0, 1]
    assert "steps.jsonl.damaged" in warning
    assert damage.strip() in (tmp_path / "steps.jsonl.damaged").read_bytes()
    assert history.read() == (steps, "")


def test_a_file_of_something_else_is_set_aside(tmp_path):
    history = History(tmp_path)
    history.path.write_bytes(b"x" * (past.LARGEST * 2 + 1))
    steps, warning = history.read()
    assert (steps, bool(warning)) == ([], True)
    history.add([step()])
    assert history.read() == ([step()], "")


def test_lines_of_a_newer_version_are_left_alone(tmp_path):
    history = History(tmp_path)
    newer = b'{"format":2,"what":"ever"}\n'
    history.path.write_bytes(newer)
    history.add([step()])
    assert history.read() == ([step()], "")
    assert history.path.read_bytes().startswith(newer)


def test_a_folder_that_cannot_be_written_costs_the_estimate_and_nothing_else(tmp_path):
    (tmp_path / "file").write_text("in the way")
    recorder_s = tmp_path / "file" / "state"
    history = History(recorder_s)
    history.add([step()])
    steps, warning = history.read()
    assert (steps, "cannot be read" in warning) == ([], True)


def _add_many(folder, vlm, count):
    for index in range(count):
        History(Path(folder)).add([step(index, vlm=vlm)])


def test_several_processes_write_at_once_and_nothing_is_lost(tmp_path):
    workers = [
        multiprocessing.get_context("spawn").Process(target=_add_many, args=(str(tmp_path), f"vlm {n}", 40))
        for n in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    steps, warning = History(tmp_path).read()
    assert not warning
    for n in range(3):
        assert [p.index for p in steps if p.vlm == f"vlm {n}"] == list(range(40))


def test_a_file_that_another_process_holds_is_not_waited_for_long(tmp_path, monkeypatch):
    monkeypatch.setattr(past, "PATIENCE", 0.02)
    history = History(tmp_path)
    with history._held() as held:
        assert held
        began = time.perf_counter()
        History(tmp_path).add([step()])
        assert time.perf_counter() - began < 5
    assert history.read() == ([], "")


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {"CLVR_STATE_DIR": "/mine"}, "/mine"),
        ("linux", {"XDG_STATE_HOME": "/state"}, "/state/clvr"),
        ("linux", {"HOME": "/home/me"}, "/home/me/.local/state/clvr"),
        ("darwin", {"HOME": "/Users/me"}, "/Users/me/Library/Application Support/clvr"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/clvr"),
    ],
)
def test_the_state_lies_where_the_system_keeps_such_things(platform, environment, expected, monkeypatch):
    for name in ("CLVR_STATE_DIR", "XDG_STATE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert state_folder() == Path(expected)


def test_the_tests_do_not_write_into_the_user_s_own_folder():
    assert not state_folder().is_relative_to(Path.home() / ".local")
    assert os.environ["CLVR_STATE_DIR"]
