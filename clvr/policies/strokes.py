"""strokes: plan, sketch, inspect, refine, as people paint (process-driven generation).

The checklist is cut into strokes: each object with what is said of it, then what relates them. A sketch round asks
for the next stroke; what the picture must satisfy by now are the checks of the strokes begun. Where it does not,
refining rounds follow before the next stroke."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ..trajectory import Brief, Candidate, Check, CheckKind, Decision, Trajectory
from . import tactics
from .base import Climb, Means, Ruling, unmet

_BETWEEN: frozenset[CheckKind] = frozenset({"position", "absence", "style", "other", "text"})
"""Kinds that speak of more than one object, or of the whole picture: they come last."""
_REFINEMENTS = 2
"""Rounds that a stroke may be refined before the next one is begun."""


class Strokes(Climb):
    """Partial goals stroke by stroke, each inspected against what the prompt asks for by now."""

    name = "strokes"

    def brief(self, trajectory: Trajectory, means: Means) -> Brief:
        plan = cut(trajectory.goal.checks)
        begun = _begun(trajectory, plan)
        wrong = tactics.missing(trajectory, [c for stroke in plan[:begun] for c in stroke])
        if wrong and (begun == len(plan) or _refinements(trajectory, plan[begun - 1]) < _REFINEMENTS):
            return self._refine(trajectory, wrong)
        if begun == len(plan):
            return Brief()
        return Brief(tactics.ids(plan[begun]))

    def due(self, trajectory: Trajectory, decision: Decision) -> Sequence[Check]:
        """The checks of every stroke begun, this step's included."""
        plan = cut(trajectory.goal.checks)
        begun = _begun(trajectory, plan)
        if begun < len(plan) and decision.brief.checks == tactics.ids(plan[begun]):
            begun += 1
        return [check for stroke in plan[:begun] for check in stroke] or trajectory.goal.checks

    def settle(self, trajectory: Trajectory, candidate: Candidate, decision: Decision) -> Ruling:
        """As every climb, and what the inspection found: an instruction that was followed and still left its
        checks failed conflicts with the prompt; one that was not followed is the picture's fault."""
        ruling = super().settle(trajectory, candidate, decision)
        found = inspect(candidate, decision, self.due(trajectory, decision))
        return dataclasses.replace(ruling, notes=(*ruling.notes, found)) if found else ruling

    def _refine(self, trajectory: Trajectory, wrong: Sequence[Check]) -> Brief:
        brief = tactics.staged(trajectory, wrong)
        newest = trajectory.steps[-1]
        followed = newest.winner.passive and not unmet(newest.winner.passive, newest.decision.expects)
        if brief.tactic == "edit" and followed and set(brief.checks) & set(newest.decision.brief.checks):
            return dataclasses.replace(brief, tactic="rephrase")
        return brief


def cut(checks: Sequence[Check]) -> list[tuple[Check, ...]]:
    """The strokes in order: a root check with its descendants, then what lies between objects, two at a time."""
    own = [check for check in checks if check.kind not in _BETWEEN]
    roots = [check for check in own if check.parent is None or check.parent not in tactics.ids(own)]
    strokes = [(root, *_descendants(root, own)) for root in roots]
    between = [check for check in checks if check.kind in _BETWEEN]
    pairs = [tuple(between[i : i + tactics.BATCH]) for i in range(0, len(between), tactics.BATCH)]
    return [*strokes, *pairs]


def inspect(candidate: Candidate, decision: Decision, due: Sequence[Check]) -> str:
    """What stands between a picture and what it should satisfy by now; '' where nothing does."""
    if candidate.active is None:
        return ""
    failed = [check.question for check, outcome in candidate.active.effective(due) if outcome == "fail"]
    disobeyed = unmet(candidate.passive, decision.expects)
    if disobeyed:
        return f"the picture does not follow the instruction ({', '.join(disobeyed)})"
    if failed and candidate.passive is not None:
        return f"the instruction was followed, yet by now this should hold: {', '.join(failed)}"
    return ""


def _descendants(root: Check, among: Sequence[Check]) -> list[Check]:
    children = [check for check in among if check.parent == root.id and check is not root]
    return [d for child in children for d in (child, *_descendants(child, among))]


def _begun(trajectory: Trajectory, plan: Sequence[Sequence[Check]]) -> int:
    """How many strokes were sketched, in order."""
    asked = {step.decision.brief.checks for step in trajectory.steps}
    return next((n for n, stroke in enumerate(plan) if tactics.ids(stroke) not in asked), len(plan))


def _refinements(trajectory: Trajectory, stroke: Sequence[Check]) -> int:
    """Rounds since a stroke was sketched."""
    rounds = [step.decision.brief.checks for step in trajectory.steps]
    return len(rounds) - 1 - rounds.index(tactics.ids(stroke))
