"""What every policy is made of, and the ruling that they share: climb, and never step down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..trajectory import Brief, Candidate, Check, Decision, Trajectory, Verdict


@dataclass(frozen=True)
class Ruling:
    """Whether a drawing becomes the canvas, and what the user should know about why."""

    accepted: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Means:
    """What is left of the budget before a round: how many images, this round's included, and how many of them
    one round may draw."""

    images: int
    candidates: int = 1


class Policy(Protocol):
    """`expects` are the step's own checks, for the passive verdict. Everything that a policy knows of the past
    is in the trajectory, so that a resumed run goes on as it would have."""

    @property
    def name(self) -> str: ...

    def brief(self, trajectory: Trajectory, means: Means) -> Brief:
        """What the next round is to work on."""
        ...

    def choose(self, trajectory: Trajectory, candidates: Sequence[Candidate], decision: Decision) -> int:
        """Index of the candidate that stands for the step."""
        ...

    def settle(self, trajectory: Trajectory, candidate: Candidate, decision: Decision) -> Ruling:
        """Rule over the chosen candidate, given everything before it."""
        ...


class Climb:
    """Choose the best candidate, and keep it unless it makes the picture worse (section 3.1, 3.3)."""

    def due(self, trajectory: Trajectory, decision: Decision) -> Sequence[Check]:
        """The checks that count when this step is compared with the canvas."""
        return trajectory.goal.checks

    def choose(self, trajectory: Trajectory, candidates: Sequence[Candidate], decision: Decision) -> int:
        """By the active score, then the passive score, then the lowest index; an unjudged one comes last."""
        due = self.due(trajectory, decision)

        def rank(index: int) -> tuple[float, float, int]:
            candidate = candidates[index]
            active, passive = score(candidate.active, due), score(candidate.passive, decision.expects)
            return (-1.0 if active is None else active, -1.0 if passive is None else passive, -index)

        return max(range(len(candidates)), key=rank)

    def settle(self, trajectory: Trajectory, candidate: Candidate, decision: Decision) -> Ruling:
        """Accept when the score did not drop below the canvas' score, and, where it only stayed equal, the
        instruction was not failed. Without two scores to compare, the passive verdict decides."""
        canvas = trajectory.canvas
        if canvas is None:
            return Ruling(True)
        due = self.due(trajectory, decision)
        now, before = score(candidate.active, due), score(canvas.winner.active, due)
        failed = unmet(candidate.passive, decision.expects)
        if now is None or before is None:
            return Ruling(not failed, _unjudged(candidate, decision.expects))
        if now < before:
            return Ruling(False, (f"rolled back: the score fell from {before:.3g} to {now:.3g}",))
        if now == before and failed:
            return Ruling(False, (f"rolled back: the instruction was not carried out ({', '.join(failed)})",))
        return Ruling(True)


def score(verdict: Verdict | None, checks: Sequence[Check]) -> float | None:
    return verdict.score(checks) if verdict else None


def unmet(verdict: Verdict | None, checks: Sequence[Check]) -> list[str]:
    """Questions that a verdict answers with no."""
    return [c.question for c, outcome in verdict.effective(checks) if outcome == "fail"] if verdict else []


def _unjudged(candidate: Candidate, expects: Sequence[Check]) -> tuple[str, ...]:
    """Why there was nothing to compare; silent where the goal's checklist simply was not due."""
    passive = score(candidate.passive, expects)
    failed = unmet(candidate.passive, expects)
    notes = (f"rolled back: the instruction was not carried out ({', '.join(failed)})",) if failed else ()
    if candidate.active is None:
        return notes
    basis = "nothing could be judged" if passive is None else "the instruction's checks decide"
    return (*notes, f"no score to compare with the canvas: {basis}")
