"""What to work on next, and how to change the approach where an attempt failed before."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..trajectory import Brief, Check, CheckKind, Step, Tactic, Trajectory

GLOBAL_TO_LOCAL: tuple[CheckKind, ...] = (
    "style",
    "other",
    "object",
    "count",
    "position",
    "size",
    "shape",
    "color",
    "text",
    "absence",
)
LADDER: tuple[Tactic, ...] = ("edit", "rephrase", "split", "redraw")
"""The tactic after none, one, two, three failed attempts at the same checks; then from the start again."""
BATCH = 2
"""Checks a round, at most (VisionDirector: one or two)."""


def missing(trajectory: Trajectory, among: Sequence[Check]) -> list[Check]:
    """Those checks that the canvas fails, from global to local; what another failed check rules out waits."""
    canvas = trajectory.canvas
    if canvas is None or canvas.winner.active is None:
        return []
    outcomes = {c.id: outcome for c, outcome in canvas.winner.active.effective(trajectory.goal.checks)}
    failed = [check for check in among if outcomes.get(check.id) == "fail"]
    return sorted(failed, key=lambda check: GLOBAL_TO_LOCAL.index(check.kind))


def attempts(trajectory: Trajectory, check: str) -> int:
    """How many rounds were asked to work on a check and did not make it hold."""
    return sum(check in step.decision.brief.checks and not _holds(step, check) for step in trajectory.steps)


def staged(trajectory: Trajectory, among: Sequence[Check]) -> Brief:
    """The next batch: the failed checks that were tried least, by the tactic that is due for them."""
    failed = missing(trajectory, among)
    if not failed:
        return Brief()
    failed.sort(key=lambda check: attempts(trajectory, check.id))
    tries = attempts(trajectory, failed[0].id)
    tactic = LADDER[tries % len(LADDER)]
    count = 1 if tactic == "split" else BATCH
    return Brief(tuple(check.id for check in failed[:count]), tactic)


def idle(trajectory: Trajectory) -> int:
    """Rounds since the canvas last changed."""
    canvas = trajectory.canvas
    return len(trajectory.steps) - 1 - canvas.index if canvas else len(trajectory.steps)


def _holds(step: Step, check: str) -> bool:
    verdict = step.winner.active
    return verdict is not None and step.accepted and verdict.outcome(check) == "pass"


def ids(checks: Collection[Check]) -> tuple[str, ...]:
    return tuple(check.id for check in checks)
