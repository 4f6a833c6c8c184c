"""VisionDirector's reward for a planner (CVPR 2026, "GRPO Post-training Planner").

An alignment VLM that has no part in the run scores the final image from 0 to 5, by typography, lighting and layout.
Where the goal's checklist can be judged, as in the built-in world, the score is 5 times the share of it that holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from clvr.ports import Verifier
from clvr.trajectory import Goal
from clvr.vlm.rating import Criterion, Rubric, VLMRater

if TYPE_CHECKING:
    from PIL.Image import Image

HIGHEST = 5
RUBRIC = Rubric("rate_director", tuple(Criterion(name, HIGHEST) for name in ("typography", "lighting", "layout")))


class Judge(Protocol):
    """Scores a final image in [0, 5]; None where it could not."""

    def score(self, image: Image, goal: Goal, references: Sequence[Image]) -> float | None: ...


@dataclass(frozen=True)
class ByRubric:
    """The paper's: a VLM that rates by three criteria."""

    rater: VLMRater

    def score(self, image: Image, goal: Goal, references: Sequence[Image]) -> float | None:
        """The mean of the criteria; None where one of them is unjudged, since means of different criteria do not
        compare."""
        return mean(self.rater.rate(image, RUBRIC, goal.prompt).scores)


@dataclass(frozen=True)
class ByChecks:
    """The share of the goal's checklist that holds, by weight."""

    verifier: Verifier

    def score(self, image: Image, goal: Goal, references: Sequence[Image]) -> float | None:
        share = self.verifier.judge(image, goal.checks, references).score(goal.checks)
        return None if share is None else HIGHEST * share


def mean(scores: Mapping[str, float | None]) -> float | None:
    judged = [score for score in scores.values() if score is not None]
    return sum(judged) / len(judged) if judged and len(judged) == len(scores) else None


def reward(alignment: float | None, drawings: int, cost: float) -> float | None:
    """In [0, 5]: the alignment of the final image, less `cost` for each drawing after the first. The paper has no
    such cost (0): its runs became shorter without. None for a final image that could not be scored; 0 for none."""
    if not drawings:
        return 0.0
    return None if alignment is None else max(0.0, alignment - cost * (drawings - 1))
