"""clvr: the controller decides what every round is about, as in the paper (section 3.3)."""

from __future__ import annotations

from ..trajectory import Brief, Trajectory
from .base import Climb, Means


class ClosedLoop(Climb):
    """Plan, draw, verify, correct, until the controller or the budget says stop; with rollback."""

    name = "clvr"

    def brief(self, trajectory: Trajectory, means: Means) -> Brief:
        return Brief()
