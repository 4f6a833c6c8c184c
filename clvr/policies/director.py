"""director: goals, a gate, stages from global to local, candidates and rollback (VisionDirector, CVPR 2026)."""

from __future__ import annotations

from ..trajectory import Brief, Trajectory
from . import gate, tactics
from .base import Climb, Means


class Director(Climb):
    """The whole goal at once where that is likely to work, else its first batch of checks; then the failed checks
    in batches of one or two. The system's own settings are 6 rounds and a few candidates a round: the budget's."""

    name = "director"

    def brief(self, trajectory: Trajectory, means: Means) -> Brief:
        checks = trajectory.goal.checks
        if trajectory.canvas is not None:
            return tactics.staged(trajectory, checks)
        if gate.one_shot(checks, means.candidates):
            return Brief(tactic="one-shot")
        first = sorted(checks, key=lambda check: tactics.GLOBAL_TO_LOCAL.index(check.kind))
        return Brief(tactics.ids([check for check in first if check.parent is None][: tactics.BATCH]))
