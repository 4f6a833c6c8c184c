"""What the policies ask for: gates, batches, tactics, strokes. Trajectories are made by hand."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from clvr.policies import POLICIES, Means, find_policy
from clvr.policies.auto import Auto
from clvr.policies.gate import chance, one_shot
from clvr.policies.strokes import cut, inspect
from clvr.policies.tactics import BATCH, attempts, missing, staged
from clvr.shapes.checks import checklist
from clvr.shapes.language import parse
from clvr.trajectory import Brief, Candidate, Check, CheckVerdict, Decision, Goal, Step, Trajectory, Verdict

from .strategies import trajectories

CHECKS = (
    Check("hat", "Is there a hat?", "object"),
    Check("hat-red", "Is the hat red?", "color", "hat"),
    Check("dog", "Is there a dog?", "object"),
    Check("left", "Is the hat left of the dog?", "position"),
    Check("mood", "Is it a watercolour?", "style"),
)
GOAL = Goal("a red hat left of a dog, watercolour", checks=CHECKS)
MEANS = Means(8)
PROMPT = "a red circle above two blue squares and a green cross"


def verdict(passing):
    return Verdict(tuple(CheckVerdict(c.id, "pass" if c.id in passing else "fail") for c in CHECKS))


def after(*rounds):
    """A trajectory of (brief, checks that hold, accepted)."""
    trajectory = Trajectory(GOAL)
    for brief, passing, accepted in rounds:
        decision = Decision("edit" if trajectory.steps else "generate", brief=brief)
        candidate = Candidate(0, active=verdict(passing))
        trajectory = trajectory.append(Step(len(trajectory.steps), decision, (candidate,), 0, accepted))
    return trajectory


@given(st.lists(st.sampled_from(CHECKS), max_size=12), st.integers(1, 16))
def test_a_longer_checklist_is_less_and_more_candidates_are_more_likely_at_once(checks, candidates):
    assert 0 < chance(checks) <= 1
    assert chance([*checks, CHECKS[0]]) < chance(checks) or not checks
    assert one_shot(checks, candidates + 1) or not one_shot(checks, candidates)


def test_the_gate_sends_short_goals_to_one_shot_and_long_ones_into_stages():
    director = find_policy("director")
    short = Trajectory(Goal("a red hat", checks=CHECKS[:2]))
    long = Trajectory(Goal("much", checks=tuple(Check(f"c{n}", f"{n}?", "position") for n in range(8))))
    assert director.brief(short, MEANS) == Brief(tactic="one-shot")
    assert director.brief(long, MEANS).tactic == ""
    assert len(director.brief(long, MEANS).checks) == BATCH


def test_what_the_canvas_lacks_comes_from_global_to_local_without_what_waits_for_a_parent():
    trajectory = after((Brief(), {"dog"}, True))
    assert [check.id for check in missing(trajectory, CHECKS)] == ["mood", "hat", "left"]


def test_batches_are_of_two_checks_and_those_tried_least_come_first():
    first = staged(after((Brief(), {"dog"}, True)), CHECKS)
    assert first == Brief(("mood", "hat"), "edit")
    second = staged(after((Brief(), {"dog"}, True), (first, {"dog"}, False)), CHECKS)
    assert second == Brief(("left", "mood"), "edit")


def test_a_check_that_fails_again_and_again_changes_the_tactic_every_time():
    rounds = [(Brief(), {"hat", "hat-red", "dog", "left"}, True)]
    tactics = []
    for _ in range(5):
        brief = staged(after(*rounds), CHECKS)
        assert brief.checks == ("mood",)
        tactics.append(brief.tactic)
        rounds.append((brief, {"hat"}, False))
    assert tactics == ["edit", "rephrase", "split", "redraw", "edit"]


def test_an_attempt_that_was_rolled_back_counts_as_failed():
    brief = Brief(("hat",), "edit")
    assert attempts(after((Brief(), set(), True), (brief, {"hat"}, False)), "hat") == 1
    assert attempts(after((Brief(), set(), True), (brief, {"hat"}, True)), "hat") == 0


def test_auto_leaves_the_controller_alone_while_it_gets_on_and_imposes_a_tactic_when_it_is_stuck():
    auto = find_policy("auto")
    assert auto.brief(after((Brief(), {"dog"}, True)), MEANS) == Brief()
    stuck = after((Brief(), {"dog"}, True), (Brief(), set(), False))
    assert auto.brief(stuck, MEANS) == Brief(("mood", "hat"), "edit")


def test_auto_draws_at_once_where_the_budget_pays_for_no_stages():
    long = Trajectory(Goal("much", checks=tuple(Check(f"c{n}", f"{n}?", "position") for n in range(8))))
    assert find_policy("auto").brief(long, Means(1)) == Brief(tactic="one-shot")
    assert find_policy("auto").brief(long, Means(8)) == Brief()
    assert Auto(gate=False).brief(long, Means(1)) == Brief()


def test_auto_without_rollback_keeps_what_is_worse():
    trajectory = after((Brief(), {"dog", "hat"}, True))
    worse = Candidate(0, active=verdict(set()))
    assert not Auto().settle(trajectory, worse, Decision("edit")).accepted
    assert Auto(rollback=False).settle(trajectory, worse, Decision("edit")).accepted


def test_strokes_are_objects_with_what_is_said_of_them_and_then_what_relates_them():
    assert [tuple(c.id for c in stroke) for stroke in cut(CHECKS)] == [("hat", "hat-red"), ("dog",), ("left", "mood")]


def test_every_check_of_a_goal_is_in_exactly_one_stroke():
    checks = checklist(parse(PROMPT))
    drawn = [check for stroke in cut(checks) for check in stroke]
    assert sorted(c.id for c in drawn) == sorted(c.id for c in checks)


def test_strokes_sketches_inspects_refines_and_goes_on():
    strokes = find_policy("strokes")
    rounds = []
    asked = []
    for holds in ({"hat"}, {"hat", "hat-red"}, {"hat", "hat-red", "dog"}, {"hat", "hat-red", "dog", "left"}):
        brief = strokes.brief(after(*rounds), MEANS)
        asked.append(brief.checks)
        rounds.append((brief, holds, True))
    assert asked == [("hat", "hat-red"), ("hat-red",), ("dog",), ("left", "mood")]


def test_a_stroke_that_cannot_be_refined_does_not_hold_up_the_others():
    strokes = find_policy("strokes")
    rounds = []
    for _ in range(3):
        rounds.append((strokes.brief(after(*rounds), MEANS), {"hat"}, not rounds))
    assert strokes.brief(after(*rounds), MEANS) == Brief(("dog",))


def test_an_unfinished_picture_is_compared_by_what_it_should_satisfy_by_now():
    strokes = find_policy("strokes")
    begun = after((Brief(("hat", "hat-red")), {"hat", "mood"}, True))
    nearer = Candidate(0, active=verdict({"hat", "hat-red"}))
    decision = Decision("edit", brief=Brief(("hat-red",), "edit"))
    assert strokes.settle(begun, nearer, decision).accepted
    assert find_policy("clvr").settle(begun, nearer, decision).accepted  # equal score
    further = Candidate(0, active=verdict({"hat", "mood"}))
    assert not strokes.settle(after((Brief(("hat", "hat-red")), {"hat", "hat-red"}, True)), further, decision).accepted


def test_the_inspection_tells_a_picture_that_disobeys_from_an_instruction_that_conflicts():
    expects = (Check("e", "Is there a hat in the corner?"),)
    decision = Decision("edit", expects=expects)

    def found(passive):
        candidate = Candidate(0, Verdict((CheckVerdict("e", passive),)), verdict({"hat"}))
        return inspect(candidate, decision, CHECKS[:2])

    assert "does not follow" in found("fail")
    assert "instruction was followed" in found("pass")
    assert "red" in found("pass")
    done = Candidate(0, Verdict((CheckVerdict("e", "pass"),)), verdict({"hat", "hat-red"}))
    assert inspect(done, decision, CHECKS[:2]) == ""


@given(trajectories(), st.integers(0, 20), st.integers(1, 4))
def test_every_policy_has_a_word_on_every_trajectory_and_names_only_checks_of_the_goal(trajectory, images, candidates):
    known = {check.id for check in trajectory.goal.checks}
    for policy in POLICIES.values():
        brief = policy.brief(trajectory, Means(images, candidates))
        assert set(brief.checks) <= known
        if trajectory.steps:
            step = trajectory.steps[-1]
            assert 0 <= policy.choose(trajectory, step.candidates, step.decision) < len(step.candidates)
            policy.settle(trajectory, step.winner, dataclasses.replace(step.decision, brief=brief))
