"""The data engine's states, its two tracks of verification, and the way from a log to a narrative."""

from __future__ import annotations

import dataclasses
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clvr.errors import FormatError, ReplyError, VLMConnectionError, VLMError
from clvr.judges import FaultyVerifier
from clvr.ports import Album, Preference
from clvr.shapes.controller import ShapesController
from clvr.shapes.verifier import MeasuringVerifier
from clvr.trajectory import Decision, Evidence, Goal
from clvr.vlm import Reply
from training.data.blind import ballot, prefer, unanimous
from training.data.machine import Cast, Machine, Retries, Rules
from training.data.narrative import LogNarrator, VLMNarrator, narrated, straighten
from training.data.states import ALLOWED, tool_of

from .data_fixtures import Painter
from .engine_fixtures import CHECKS, STEP_CHECK, FakeController, FakeGenerator, FakeVerifier, draw, stop

PROMPT = "a red circle above a blue square"


def world_goal(prompt=PROMPT):
    return Goal(prompt).with_checks(ShapesController().checklist(Goal(prompt), Album()).checks)


def world(painter=None, verifier=None, rules=None, judges=(), seed=1):
    cast = Cast(ShapesController(), painter or Painter(), verifier or MeasuringVerifier(), judges)
    return Machine(world_goal(), cast, rules or Rules(), seed).run()


def greys(script, greys, rules=None, judges=(), verifier=None):
    """A run over pictures of one grey each; a check of the goal holds from a brightness on."""
    cast = Cast(FakeController(script), FakeGenerator(list(greys)), verifier or FakeVerifier(), judges)
    return Machine(Goal("the brightest grey", checks=CHECKS), cast, rules or Rules(), 0).run()


def tools(attempt):
    return [(entry.state, entry.tool) for entry in attempt.log]


BASE, EDIT = draw("a first grey"), draw("a brighter grey", "edit", ("IMG_GEN_0",))


def test_a_trajectory_goes_through_every_state_in_order():
    attempt = world()
    assert not attempt.gate
    assert tools(attempt) == [
        ("generate_base_image", "INITIAL_GENERATION"),
        ("inspect", "STATE_LEVEL_ACCEPTANCE"),
        ("edit", "IMAGE_EDIT"),
        ("edit", "STATE_LEVEL_ACCEPTANCE"),
        ("validate", "RESULT_VALIDATION"),
        ("finalize", "FINAL_ACCEPTANCE"),
    ]
    assert attempt.trajectory.stop_reason == "Everything is there."
    assert attempt.trajectory.canvas.winner.active.satisfied(attempt.trajectory.goal.checks)


def test_no_entry_of_a_log_is_outside_of_what_its_state_allows():
    for slips in [(), (0,), (1,)]:
        assert all(entry.tool in ALLOWED[entry.state] for entry in world(Painter(slips=slips)).log)


@pytest.mark.parametrize("slip", [0, 1])
def test_a_drawing_that_fails_its_own_checklist_discards_the_trajectory(slip):
    attempt = world(Painter(slips=(slip,)))
    assert attempt.gate == "passive"
    assert len(attempt.trajectory.steps) == slip + 1
    assert attempt.log[-1].tool == "END_TRAJECTORY"


def test_gaps_found_by_active_verification_go_back_to_the_controller_and_are_mended():
    script = [BASE, EDIT, stop(), draw("the brightest", "edit", ("IMG_GEN_1",)), stop()]
    attempt = greys(script, [60, 120, 250])
    assert not attempt.gate
    found = [entry for entry in attempt.log if entry.tool == "RESULT_VALIDATION"]
    assert found[0].note == "Is the picture brighter than 150?; Is the picture brighter than 200?"
    assert found[1].note == "every check of the goal holds"
    assert attempt.trajectory.steps[1].winner.active.outcome("c3") == "fail"


def test_an_edit_of_an_earlier_picture_takes_back_what_came_after_it():
    script = [BASE, EDIT, stop(), draw("another", "edit", ("IMG_GEN_0",)), stop()]
    attempt = greys(script, [60, 120, 250])
    assert [step.accepted for step in attempt.trajectory.steps] == [True, False, True]
    straight, album = straighten(attempt.trajectory, attempt.album)
    assert [step.index for step in straight.steps] == [0, 1]
    assert list(album) == ["IMG_GEN_0", "IMG_GEN_1"]
    assert album["IMG_GEN_1"].getpixel((0, 0))[0] == 250


def test_a_validation_that_scores_lower_than_an_earlier_one_goes_back_there():
    script = [BASE, EDIT, stop(), draw("worse", "edit", ("IMG_GEN_1",)), stop(), draw("best", "edit"), stop()]
    script[5] = dataclasses.replace(script[5], references=("IMG_GEN_1",))
    attempt = greys(script, [60, 160, 110, 250])
    assert [step.accepted for step in attempt.trajectory.steps] == [True, True, False, True]


def test_a_new_base_image_after_a_failed_validation_leaves_the_old_way():
    script = [BASE, stop(), draw("a fresh one"), stop()]
    attempt = greys(script, [60, 250], Rules(retries=Retries(validate=1)))
    assert not attempt.gate
    straight, _ = straighten(attempt.trajectory, attempt.album)
    assert [step.decision.instruction for step in straight.steps] == ["a fresh one"]


def test_a_base_image_that_the_controller_rejects_is_drawn_anew_within_its_budget():
    attempt = greys([BASE, draw("again"), stop()], [60, 250])
    assert not attempt.gate
    assert [s.accepted for s in attempt.trajectory.steps] == [False, True]
    assert greys([BASE], [60, 70, 80]).gate == "retries in generate_base_image"


@pytest.mark.parametrize(
    ("script", "gate"),
    [
        ([BASE, EDIT, stop(), stop()], "retries in validate"),
        ([stop()], "retries in generate_base_image"),
        ([EDIT], "retries in generate_base_image"),
        ([VLMError("The call failed.")], "retries in generate_base_image"),
        ([BASE, EDIT, BASE], "retries in edit"),
        ([BASE, EDIT], "rounds"),
        ([draw(expects=())], "retries in generate_base_image"),
        ([BASE, draw("it", "edit", ())], "retries in inspect"),
    ],
)
def test_what_does_not_converge_or_breaks_a_schema_is_given_up(script, gate):
    attempt = greys(script, [60] * 20)
    assert attempt.gate == gate
    assert attempt.log[-1].tool == "END_TRAJECTORY"
    assert attempt.log[-1].note == attempt.reason != ""


def test_a_call_that_fails_once_is_made_again():
    attempt = greys([VLMError("The call failed."), draw("bright"), stop()], [250])
    assert not attempt.gate


def test_a_server_that_does_not_answer_is_no_fault_of_the_prompt():
    with pytest.raises(VLMConnectionError):
        greys([VLMConnectionError("Nobody answers.")], [])


def test_what_cannot_be_judged_is_neither_passed_nor_failed():
    attempt = greys([draw("bright"), stop()], [250], verifier=FakeVerifier(blind=("c4",)))
    assert attempt.gate == "retries in validate"
    assert "could not be judged" in attempt.reason
    blind = FaultyVerifier(MeasuringVerifier(), garbage=1.0)
    assert world(verifier=blind).gate == "retries in generate_base_image"


def pair():
    """A bright picture and a dark one."""
    return (Image.new("RGB", (4, 4), (v, v, v)) for v in (200, 10))


class Fixed:
    """A judge that prefers the first or the second it is shown, or the brighter one."""

    def __init__(self, answer):
        self.answer = answer
        self.name = f"always {answer}"
        self.asked = 0

    def prefer(self, first, second, goal, references=()):
        self.asked += 1
        if self.answer == "brighter":
            return Preference(float(first.getpixel((0, 0)) > second.getpixel((0, 0))), evidence=(Evidence("", "seen"),))
        return Preference(self.answer)


def test_an_edit_that_every_judge_finds_worse_ends_the_trajectory():
    worse = [BASE, draw("darker", "edit", ("IMG_GEN_0",)), stop()]
    assert greys(worse, [250, 220], judges=(Fixed("brighter"), Fixed("brighter"))).gate == "degraded"
    assert greys(worse, [250, 220], judges=(Fixed("brighter"), Fixed(0.5))).gate == ""
    unguarded = Rules(guard=False)
    assert greys(worse, [250, 220], unguarded, judges=(Fixed("brighter"), Fixed("brighter"))).gate == ""


def test_a_vote_does_not_depend_on_the_order_and_the_order_is_random():
    bright, dark = pair()
    votes = [prefer(Fixed("brighter"), bright, dark, Goal("bright"), Random(seed)) for seed in range(20)]
    assert {vote.preferred for vote in votes} == {1.0}
    assert {vote.first for vote in votes} == {True, False}
    assert votes[0].note == "seen"


def test_a_trajectory_is_kept_only_if_every_judge_prefers_it():
    bright, dark = pair()
    sure = Fixed("brighter")
    assert unanimous(ballot((sure, sure), bright, dark, Goal("bright"), 0))
    for other in (Fixed(0.5), Fixed(None)):
        assert not unanimous(ballot((sure, other), bright, dark, Goal("bright"), 0))
    assert not unanimous(ballot((sure, sure), dark, bright, Goal("bright"), 0))


def test_a_judge_that_cannot_tell_is_asked_again_and_is_then_a_tie():
    judge = Fixed(None)
    vote = prefer(judge, *pair(), Goal(""), Random(0))
    assert (judge.asked, vote.preferred, vote.word) == (2, 0.5, "tie")


@given(st.sampled_from(list(ALLOWED)), st.sampled_from(["generate", "edit", "stop"]), st.booleans(), st.booleans())
def test_a_call_is_either_allowed_in_its_state_or_refused_in_words(state, action, referring, checked):
    expects = (STEP_CHECK,) if checked else ()
    decision = Decision(action, "because", "do it", ("IMG_GEN_0",) if referring else (), expects)
    assert call(state, decision) in (*ALLOWED[state], "refused")


def call(state, decision):
    try:
        return tool_of(state, decision)
    except FormatError as error:
        return "refused" if error.remedy else ""


def finished(script=None, values=(60, 250)):
    """A straightened run whose first validation found gaps."""
    script = script or [BASE, stop("It looks done."), draw("the brightest", "edit", ("IMG_GEN_0",)), stop("Now it is.")]
    attempt = greys(script, values)
    return straighten(attempt.trajectory, attempt.album)[0], attempt.log


def test_the_log_is_told_with_what_was_observed_and_mended():
    trajectory, log = finished()
    thoughts = LogNarrator().tell(trajectory, log)
    assert thoughts[0] == "I want a first grey."
    assert thoughts[1].startswith("Checked against the goal, <IMG_GEN_0> does not hold up. Is the picture brighter")
    assert thoughts[1].endswith("I want the brightest.")
    assert thoughts[2] == "Now it is."
    told = narrated(trajectory, thoughts)
    assert [s.decision.reasoning for s in told.steps] == list(thoughts[:2])
    with pytest.raises(ReplyError, match="2 thoughts were told for 3"):
        narrated(trajectory, thoughts[:2])


class Teller:
    name = "teller"

    def __init__(self, *replies):
        self.replies = list(replies)
        self.asked = []

    def chat(self, messages, schema=None, logprobs=False):
        self.asked.append(messages)
        return Reply(self.replies.pop(0))


def test_a_vlm_tells_the_log_and_is_told_what_was_found():
    trajectory, log = finished()
    client = Teller('{"thoughts": ["I begin.", "<IMG_GEN_0> is too dark,\\n so I brighten it.", "It is bright."]}')
    assert VLMNarrator(client).tell(trajectory, log)[1] == "<IMG_GEN_0> is too dark, so I brighten it."
    shown = client.asked[0][1].parts[0]
    assert "the brightest" in shown
    assert "Is the picture brighter than 200?" in shown


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        ('{"thoughts": ["one"]}', "1 thoughts for 3"),
        ('{"thoughts": ["one", " ", "three"]}', "Thought 1 is empty"),
        ('{"thoughts": ["<IMG_GEN_0> is good", "two", "three"]}', "IMG_GEN_0, which is drawn after"),
        ("nothing", "no usable chain of thought"),
    ],
)
def test_a_narrative_that_does_not_fit_is_asked_for_again_and_then_refused(reply, problem):
    trajectory, log = finished()
    with pytest.raises(ReplyError, match=problem):
        VLMNarrator(Teller(reply, reply)).tell(trajectory, log)
    good = '{"thoughts": ["one", "two", "three"]}'
    assert VLMNarrator(Teller(reply, good)).tell(trajectory, log) == ("one", "two", "three")


def test_words_about_a_picture_that_was_dropped_do_not_name_another():
    second = dataclasses.replace(EDIT, reasoning="Try one.")
    third = Decision("edit", "<IMG_GEN_1> went astray, <IMG_GEN_0> did not.", "brighten", ("IMG_GEN_0",), (STEP_CHECK,))
    attempt = greys([BASE, second, stop(), third, stop()], [60, 120, 250])
    straight, _ = straighten(attempt.trajectory, attempt.album)
    assert straight.steps[1].decision.reasoning == "an earlier try went astray, <IMG_GEN_0> did not."
