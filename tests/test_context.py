from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clvr import context
from clvr.context import Context, Turn, build, fit, from_sharegpt, to_sharegpt
from clvr.errors import ContextLimitError, FormatError
from clvr.ports import Album
from clvr.trajectory import Candidate, Check, CheckVerdict, Decision, Goal, Step, Trajectory, Verdict

from .strategies import few, trajectories

GREY = Image.new("RGB", (2, 2))


def trajectory(*accepted, goal=None):
    steps = tuple(
        Step(i, Decision("edit", f"Because {i}.", f"Do {i}."), (Candidate(i),), 0, ok) for i, ok in enumerate(accepted)
    )
    return Trajectory(goal or Goal("a goal"), steps)


def album(*labels):
    return Album(dict.fromkeys(labels, GREY))


def words(text):
    return len(text.split())


def test_a_first_drawing_is_told_the_goal_and_the_reasoning():
    made = build(trajectory(), Decision("generate", "Start.", "a circle"), Album())
    assert made.text == "a goal\nStart. a circle"
    assert made.images == ()


def test_later_drawings_are_told_every_turn_with_its_image():
    decision = Decision("edit", "Now more.", "Add one.", ("IMG_GEN_1", "IMG_REF_0"))
    made = build(trajectory(True, True), decision, album("IMG_REF_0", "IMG_GEN_0", "IMG_GEN_1"))
    assert made.text == ("a goal\nBecause 0. Do 0. <IMG_GEN_0>\nBecause 1. Do 1. <IMG_GEN_1>\nNow more. Add one.")
    assert [label for label, _ in made.images] == ["IMG_GEN_1", "IMG_REF_0"]


def test_an_instruction_that_the_reasoning_says_already_is_not_repeated():
    assert context.narrate(Decision("edit", "I will add a cat.", "Add a cat")) == "I will add a cat."
    assert context.narrate(Decision("edit", "", "Add a\ncat")) == "Add a cat"


def test_what_was_rolled_back_is_told_only_when_it_is_referred_to():
    told = trajectory(True, False)
    images = album("IMG_GEN_0", "IMG_GEN_1")
    without = build(told, Decision("edit", "r", "i", ("IMG_GEN_0",)), images)
    assert [t.step for t in without.turns] == [0, 2]
    assert [t.step for t in build(told, Decision("edit", "r", "i", ("IMG_GEN_1",)), images).turns] == [
        0,
        1,
        2,
    ]


def test_a_reference_that_is_not_in_the_album_is_refused():
    with pytest.raises(FormatError, match="IMG_GEN_3"):
        build(trajectory(True), Decision("edit", references=("IMG_GEN_3",)), album("IMG_GEN_0"))


def long_context(turns=5, chosen=()):
    told = [Turn(i, f"turn {i} has six words here", f"IMG_GEN_{i}") for i in range(turns)]
    return Context("the goal", (*told, Turn(turns, "the newest")), tuple((c, GREY) for c in chosen))


def test_a_context_that_fits_is_left_alone():
    made = long_context()
    assert fit(made, words, 1000) == (made, ())


def test_the_oldest_turns_go_first_and_are_named():
    made, gone = fit(long_context(), words, words(long_context().text) - 8)
    assert gone == ("r_0", "r_1")
    assert [t.step for t in made.turns] == [2, 3, 4, 5]


def test_a_turn_whose_image_was_chosen_keeps_its_mark_to_the_last():
    made, gone = fit(long_context(chosen=("IMG_GEN_0",)), words, 5)
    assert made.text == "the goal\n<IMG_GEN_0>\nthe newest"
    assert gone == ("r_1", "r_2", "r_3", "r_4", "the words of r_0")


def test_what_cannot_be_left_out_raises():
    with pytest.raises(ContextLimitError, match=r"5 tokens.*reads 4"):
        fit(long_context(chosen=("IMG_GEN_0",)), words, 4)


@given(st.integers(0, 6), st.sets(st.integers(0, 5)), st.integers(0, 60))
def test_fitting_keeps_goal_newest_turn_references_and_names_everything_else(turns, chosen, limit):
    before = long_context(turns, [f"IMG_GEN_{i}" for i in chosen if i < turns])
    try:
        after, gone = fit(before, words, limit)
    except ContextLimitError:
        assert limit < 4 + len(before.images)
        return
    assert words(after.text) <= limit
    assert (after.goal, after.turns[-1], after.images) == (before.goal, before.turns[-1], before.images)
    assert all(f"<{label}>" in after.text for label, _ in before.images)
    lost = {f"r_{t.step}" for t in before.turns} - {f"r_{t.step}" for t in after.turns}
    assert lost == {name for name in gone if name.startswith("r_")}
    if gone:
        assert words(before.text) > limit


def paths_of(told):
    return {label: f"images/{label}.png" for label in [*told.goal.labels(), *(s.label for s in told.steps)]}


@few
@given(trajectories())
def test_the_sharegpt_export_round_trips_and_counts_its_images(told):
    record = json.loads(json.dumps(to_sharegpt(told, paths_of(told))))
    assert from_sharegpt(record) == (told, paths_of(told))
    marks = sum(turn["value"].count("<image>") for turn in record["conversations"])
    assert marks == len(record["images"])


@few
@given(trajectories(least=1))
def test_roles_alternate_and_no_image_stands_in_an_assistant_turn(told):
    turns = to_sharegpt(told, paths_of(told))["conversations"]
    assert [t["from"] for t in turns[:2]] == ["human", "gpt"]
    assert all(t["from"] == ("gpt" if i % 2 else "tool") for i, t in enumerate(turns) if i)
    assert turns[-1]["from"] == "gpt"
    assert not any("<image>" in t["value"] for t in turns if t["from"] == "gpt")


def test_only_a_run_that_reached_its_goal_teaches_to_stop():
    goal = Goal("a goal", checks=(Check("a", "A?"),))
    for outcome, last in (("pass", "stop"), ("fail", "edit")):
        active = Verdict((CheckVerdict("a", outcome),))
        done = trajectory(True, True, goal=goal)
        step = dataclasses.replace(done.steps[1], candidates=(Candidate(1, active=active),))
        done = dataclasses.replace(done, steps=(done.steps[0], step), stop_reason="enough")
        turns = to_sharegpt(done, paths_of(done))["conversations"]
        assert json.loads(turns[-1]["value"])["action"] == last


def test_an_export_without_a_path_or_with_a_changed_conversation_is_refused():
    told = trajectory(True)
    with pytest.raises(FormatError, match="IMG_GEN_0"):
        to_sharegpt(told, {})
    record = to_sharegpt(told, paths_of(told))
    changed = {**record, "conversations": [{"from": "human", "value": "another"}]}
    with pytest.raises(FormatError, match="differs"):
        from_sharegpt(changed)
    with pytest.raises(FormatError, match="no key 'clvr'"):
        from_sharegpt({"conversations": []})
