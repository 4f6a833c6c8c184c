"""one-shot: the whole goal at once, each time afresh. With several candidates it is best-of-N."""

from __future__ import annotations

from ..trajectory import Brief, Trajectory
from .base import Climb, Means


class OneShot(Climb):
    """The baseline of every comparison. The best drawing is the result."""

    name = "one-shot"

    def brief(self, trajectory: Trajectory, means: Means) -> Brief:
        return Brief(tactic="one-shot")
