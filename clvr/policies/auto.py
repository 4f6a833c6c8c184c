"""auto: the gate and the budget choose, the controller plans, tactics change where a plan does not get on."""

from __future__ import annotations

from ..trajectory import Brief, Candidate, Decision, Trajectory
from . import gate, tactics
from .base import Climb, Means, Ruling

_STAGES = 3
"""Images that a staged run needs at least: a first drawing, an addition, a correction."""
_PATIENT = 1
"""Rounds without a new canvas before a tactic is imposed on the controller."""


class Auto(Climb):
    """One shot first where the gate gives it a chance or the budget pays for nothing else, then from its best
    picture on; in stages otherwise. Each part can be switched off, to measure what it adds."""

    def __init__(self, name: str = "auto", gate: bool = True, rollback: bool = True, tactics: bool = True) -> None:
        self.name = name
        self._gate, self._rollback, self._tactics = gate, rollback, tactics

    def brief(self, trajectory: Trajectory, means: Means) -> Brief:
        checks = trajectory.goal.checks
        if trajectory.canvas is None:
            at_once = means.images < _STAGES or gate.one_shot(checks, means.candidates)
            return Brief(tactic="one-shot") if self._gate and at_once else Brief()
        stuck = tactics.idle(trajectory)
        if not self._tactics or stuck < _PATIENT or means.images < 1:
            return Brief()
        return tactics.staged(trajectory, checks)

    def settle(self, trajectory: Trajectory, candidate: Candidate, decision: Decision) -> Ruling:
        return super().settle(trajectory, candidate, decision) if self._rollback else Ruling(True)
