from __future__ import annotations

import json

import pytest
from hypothesis import given

from clvr.errors import FormatError
from clvr.trajectory import (
    Candidate,
    Check,
    CheckVerdict,
    Cost,
    Decision,
    Goal,
    Step,
    Trajectory,
    Usage,
    Verdict,
    label_index,
)

from .strategies import few, trajectories

CHECKS = (Check("a", "A?"), Check("b", "B?", parent="a"), Check("c", "C?", weight=2))


def verdict(**outcomes):
    return Verdict(tuple(CheckVerdict(name, outcome) for name, outcome in outcomes.items()))


def step(index, accepted=True, **outcomes):
    active = verdict(**outcomes) if outcomes else None
    return Step(index, Decision("generate"), (Candidate(1, active=active),), 0, accepted)


@few
@given(trajectories())
def test_a_trajectory_survives_json(trajectory):
    assert Trajectory.from_dict(json.loads(json.dumps(trajectory.to_dict()))) == trajectory


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"version": 2}, "version 2"),
        ({"seed": "1"}, "seed"),
        ({"seed": True}, "seed"),
        ({"colour": 1}, "colour"),
        ({"goal": {}}, "prompt"),
        ({"steps": {}}, "steps"),
        ({"preparation": {"nfe": 1.5}}, "nfe"),
    ],
)
def test_a_wrong_field_is_named(change, named):
    data = {**Trajectory(Goal("x")).to_dict(), **change}
    with pytest.raises(FormatError, match=named):
        Trajectory.from_dict(data)


@pytest.mark.parametrize(
    ("outcomes", "score"),
    [
        ({}, None),
        ({"a": "unjudged", "b": "unjudged", "c": "unjudged"}, None),
        ({"a": "pass", "b": "pass", "c": "pass"}, 1.0),
        ({"a": "pass", "b": "pass", "c": "unjudged"}, 1.0),
        ({"a": "pass", "b": "fail", "c": "pass"}, 0.75),
        ({"a": "fail", "b": "pass", "c": "pass"}, 0.5),
    ],
)
def test_the_score_counts_judged_checks_and_no_child_of_a_failed_parent(outcomes, score):
    assert verdict(**outcomes).score(CHECKS) == score


def test_an_unjudged_check_is_not_satisfied():
    assert verdict(a="pass", b="pass", c="pass").satisfied(CHECKS)
    assert not verdict(a="pass", b="pass").satisfied(CHECKS)
    assert not verdict().satisfied(())


def test_parents_in_a_circle_end():
    circle = (Check("a", "A?", parent="b"), Check("b", "B?", parent="a"))
    assert verdict(a="pass", b="fail").score(circle) is not None


def test_the_best_step_is_judged_highest_accepted_latest():
    goal = Goal("x", checks=CHECKS)
    steps = (
        step(0, a="pass", b="fail", c="fail"),
        step(1, a="pass", b="pass", c="pass"),
        step(2, accepted=False, a="pass", b="pass", c="pass"),
        step(3),
    )
    trajectory = Trajectory(goal, steps)
    assert trajectory.best is steps[1]
    assert trajectory.canvas is steps[3]
    assert Trajectory(goal).best is None


def test_steps_cannot_be_appended_out_of_order():
    with pytest.raises(FormatError, match="append-only"):
        Trajectory(Goal("x")).append(step(1))


def test_costs_add_up_by_phase():
    total = Cost(1, {"plan": 1.0}, Usage(1, 2, 3)) + Cost(2, {"plan": 0.5, "draw": 2.0}, Usage(1, 1, 1))
    assert total == Cost(3, {"plan": 1.5, "draw": 2.0}, Usage(2, 3, 4))
    assert total.total_seconds == 3.5


@pytest.mark.parametrize("label", ["", "IMG_GEN_", "IMG_X_1", "IMG_GEN_1 ", "IMG_GEN_-1"])
def test_what_is_no_label_is_refused(label):
    with pytest.raises(FormatError):
        label_index(label)


def test_labels_split():
    assert label_index("IMG_GEN_12") == ("GEN", 12)
    assert label_index("IMG_REF_0") == ("REF", 0)
