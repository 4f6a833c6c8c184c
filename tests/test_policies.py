from __future__ import annotations

import pytest

from clvr.errors import FormatError
from clvr.policies import POLICIES, find_policy
from clvr.trajectory import Candidate, Check, CheckVerdict, Decision, Goal, Step, Trajectory, Verdict

GOAL = Goal("x", checks=tuple(Check(n, f"{n}?") for n in "abcd"))
EXPECTS = (Check("e", "e?"), Check("f", "f?"))
DECISION = Decision("edit", expects=EXPECTS)
POLICY = find_policy("clvr")


def active(passes):
    """The first `passes` checks of the goal hold; None: all are unjudged."""
    if passes is None:
        return Verdict(tuple(CheckVerdict(c.id, "unjudged") for c in GOAL.checks))
    outcomes = ["pass" if i < passes else "fail" for i in range(4)]
    return Verdict(tuple(CheckVerdict(c.id, o) for c, o in zip(GOAL.checks, outcomes, strict=True)))


def passive(*outcomes):
    return Verdict(tuple(CheckVerdict(c.id, o) for c, o in zip(EXPECTS, outcomes, strict=False)))


def before(passes, judged=True):
    verdict = active(passes) if judged else None
    step = Step(0, Decision("generate"), (Candidate(0, active=verdict),), 0, True)
    return Trajectory(GOAL, (step,))


@pytest.mark.parametrize(
    ("candidates", "chosen"),
    [
        ([Candidate(0, active=active(1)), Candidate(1, active=active(3))], 1),
        ([Candidate(0, active=active(2)), Candidate(1, active=active(2))], 0),
        ([Candidate(0, passive("fail"), active(2)), Candidate(1, passive("pass"), active(2))], 1),
        ([Candidate(0, passive("pass"), active(1)), Candidate(1, passive("fail"), active(2))], 1),
        ([Candidate(0, active=active(None)), Candidate(1, active=active(0))], 1),
        ([Candidate(0, passive("fail")), Candidate(1, passive("pass"))], 1),
        ([Candidate(0), Candidate(1)], 0),
    ],
)
def test_the_candidate_is_chosen_by_active_then_passive_score_then_index(candidates, chosen):
    assert POLICY.choose(Trajectory(GOAL), candidates, DECISION) == chosen


@pytest.mark.parametrize(
    ("canvas", "candidate", "accepted", "said"),
    [
        (2, Candidate(0, passive("pass"), active(3)), True, ""),
        (2, Candidate(0, passive("fail"), active(3)), True, ""),
        (2, Candidate(0, passive("pass"), active(2)), True, ""),
        (2, Candidate(0, passive("unjudged"), active(2)), True, ""),
        (2, Candidate(0, None, active(2)), True, ""),
        (2, Candidate(0, passive("pass", "fail"), active(2)), False, "not carried out (f?)"),
        (2, Candidate(0, passive("pass"), active(1)), False, "fell from 0.5 to 0.25"),
        (2, Candidate(0, passive("pass"), active(None)), True, "instruction's checks decide"),
        (2, Candidate(0, passive("fail"), active(None)), False, "not carried out"),
        (2, Candidate(0, passive("unjudged"), active(None)), True, "nothing could be judged"),
        (2, Candidate(0, None, active(None)), True, "nothing could be judged"),
        (None, Candidate(0, passive("fail"), active(3)), False, "not carried out"),
        (2, Candidate(0, passive("pass"), None), True, ""),
        (2, Candidate(0, passive("fail"), None), False, "not carried out"),
    ],
)
def test_a_drawing_is_kept_unless_it_made_things_worse(canvas, candidate, accepted, said):
    ruling = POLICY.settle(before(canvas), candidate, DECISION)
    assert ruling.accepted == accepted
    assert said in " ".join(ruling.notes)
    assert bool(ruling.notes) == bool(said)


def test_the_first_drawing_becomes_the_canvas_whatever_it_is():
    assert POLICY.settle(Trajectory(GOAL), Candidate(0, passive("fail"), active(0)), DECISION).accepted


def test_policies_are_found_by_name():
    assert all(find_policy(name).name == name for name in POLICIES)
    with pytest.raises(FormatError, match="Known are clvr"):
        find_policy("magic")
