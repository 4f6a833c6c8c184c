"""What a judge says of one image: checks by a verifier, or scores by a rater. What it cannot tell is None."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from ..errors import VLMConnectionError, VLMError, VLMSetupError
from ..judging import unjudged
from ..ports import Verifier
from ..trajectory import Check, CheckVerdict, Usage, Verdict
from ..vlm.rating import Rating, Rubric
from .suite import Item, Suite, Values

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Judged:
    """`values` by measure; the verdict on the checks; the reasons for scores by criterion."""

    values: Values
    verdict: Verdict = field(default_factory=Verdict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    usage: Usage = Usage()


class Rater(Protocol):
    @property
    def name(self) -> str: ...

    def rate(self, image: Image, rubric: Rubric, prompt: str, explanation: str = "") -> Rating:
        """A call that fails is unjudged; only a broken set-up raises."""
        ...


class Judge(Protocol):
    @property
    def name(self) -> str: ...

    def judge(self, image: Image, item: Item) -> Judged: ...


@dataclass(frozen=True)
class CheckJudge:
    """For suites of checks: correct is that all hold, checks the weighted share that does."""

    verifier: Verifier

    @property
    def name(self) -> str:
        return self.verifier.name

    def judge(self, image: Image, item: Item) -> Judged:
        """Raises VLMSetupError or VLMConnectionError where the judge cannot be asked at all."""
        try:
            verdict = self.verifier.judge(image, item.checks)
        except (VLMSetupError, VLMConnectionError):
            raise
        except VLMError as error:
            verdict = unjudged(item.checks, self.name, str(error))
        values = {"correct": correct(verdict, item.checks), "checks": verdict.score(item.checks)}
        return Judged(values, verdict, usage=verdict.usage)


@dataclass(frozen=True)
class RatingJudge:
    """For suites of rubrics: the scores of all rubrics, combined as the suite says."""

    rater: Rater
    suite: Suite

    @property
    def name(self) -> str:
        return self.rater.name

    def judge(self, image: Image, item: Item) -> Judged:
        scores: dict[str, float | None] = {}
        reasons: dict[str, str] = {}
        usage = Usage()
        for rubric in item.rubrics:
            rating = self.rater.rate(image, rubric, item.prompt, item.explanation)
            scores.update(rating.scores)
            reasons.update(rating.reasons)
            usage += rating.usage
        return Judged(self.suite.values(scores), reasons=reasons, usage=usage)


def correct(verdict: Verdict, checks: Sequence[Check]) -> float | None:
    """1 where every check holds, 0 where one fails, None where none fails and one was not judged."""
    outcomes = [outcome for _, outcome in verdict.effective(checks)]
    if "fail" in outcomes:
        return 0.0
    return None if "unjudged" in outcomes or not outcomes else 1.0


def in_question_order(verdict: Verdict, checks: Sequence[Check]) -> tuple[CheckVerdict, ...]:
    """The results as they count: one a check, a descendant of a failed one skipped."""
    by_id = {r.check: r for r in verdict.results}
    return tuple(
        CheckVerdict(check.id, outcome) if check.id not in by_id or outcome == "skipped" else by_id[check.id]
        for check, outcome in verdict.effective(checks)
    )
