"""Named ways to run the loop: which candidate of a step is chosen, and whether it becomes the canvas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from .errors import FormatError
from .trajectory import Candidate, Check, Goal, Trajectory, Verdict


@dataclass(frozen=True)
class Ruling:
    """Whether a drawing becomes the canvas, and what the user should know about why."""

    accepted: bool
    notes: tuple[str, ...] = ()


class Policy(Protocol):
    """`expects` are the step's own checks, for the passive verdict."""

    @property
    def name(self) -> str: ...

    def choose(self, candidates: Sequence[Candidate], goal: Goal, expects: Sequence[Check]) -> int:
        """Index of the candidate that stands for the step."""
        ...

    def settle(self, trajectory: Trajectory, candidate: Candidate, expects: Sequence[Check]) -> Ruling:
        """Rule over the chosen candidate, given everything before it."""
        ...


class ClosedLoop:
    """The paper's loop with rollback: keep what does not make the picture worse (section 3.1, 3.3)."""

    name = "clvr"

    def choose(self, candidates: Sequence[Candidate], goal: Goal, expects: Sequence[Check]) -> int:
        """By the active score, then the passive score, then the lowest index; an unjudged one comes last."""

        def rank(index: int) -> tuple[float, float, int]:
            candidate = candidates[index]
            active, passive = _score(candidate.active, goal.checks), _score(candidate.passive, expects)
            return (-1.0 if active is None else active, -1.0 if passive is None else passive, -index)

        return max(range(len(candidates)), key=rank)

    def settle(self, trajectory: Trajectory, candidate: Candidate, expects: Sequence[Check]) -> Ruling:
        """Accept when the score did not drop below the canvas' score, and, where it only stayed equal, the
        instruction was not failed. Without two scores to compare, the passive verdict decides."""
        canvas = trajectory.canvas
        if canvas is None:
            return Ruling(True)
        score, before = _score(candidate.active, trajectory.goal.checks), trajectory.score(canvas)
        failed = _failed(candidate.passive, expects)
        if score is None or before is None:
            return Ruling(not failed, _unjudged(candidate, expects))
        if score < before:
            return Ruling(False, (f"rolled back: the score fell from {before:.3g} to {score:.3g}",))
        if score == before and failed:
            return Ruling(False, (f"rolled back: the instruction was not carried out ({', '.join(failed)})",))
        return Ruling(True)


POLICIES: dict[str, Policy] = {policy.name: policy for policy in (ClosedLoop(),)}


def find_policy(name: str) -> Policy:
    """Raises FormatError for a name that is not in POLICIES."""
    if name not in POLICIES:
        raise FormatError(f"There is no policy '{name}'.", f"Known are {', '.join(POLICIES)}.")
    return POLICIES[name]


def _score(verdict: Verdict | None, checks: Sequence[Check]) -> float | None:
    return verdict.score(checks) if verdict else None


def _failed(verdict: Verdict | None, checks: Sequence[Check]) -> list[str]:
    """Questions that a verdict answers with no."""
    return [c.question for c, outcome in verdict.effective(checks) if outcome == "fail"] if verdict else []


def _unjudged(candidate: Candidate, expects: Sequence[Check]) -> tuple[str, ...]:
    """Why there was nothing to compare; silent where the goal's checklist simply was not due."""
    passive = _score(candidate.passive, expects)
    failed = _failed(candidate.passive, expects)
    notes = (f"rolled back: the instruction was not carried out ({', '.join(failed)})",) if failed else ()
    if candidate.active is None:
        return notes
    basis = "nothing could be judged" if passive is None else "the instruction's checks decide"
    return (*notes, f"no score to compare with the canvas: {basis}")
