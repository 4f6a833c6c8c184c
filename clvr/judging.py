"""Dual-track verification (section 3.1): passive against the step's instruction, active against the goal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

from .budget import Budget
from .errors import VLMError
from .ports import Comparer, Preference, Verifier
from .trajectory import Check, CheckVerdict, Cost, Evidence, Goal, Usage, Verdict

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass
class Bench:
    """Judges a step's candidates and keeps account of what that cost. `spent` is the run's cost before."""

    verifier: Verifier
    budget: Budget
    spent: Cost
    comparer: Comparer | None = None
    free: bool = False
    """Whether the verifier is known to answer without a VLM, so that the limit on calls is not its own."""
    cost: Cost = field(default_factory=Cost)
    notes: list[str] = field(default_factory=list)

    def judge(
        self, image: Image, checks: Sequence[Check], references: Sequence[Image], last: bool = False
    ) -> Verdict | None:
        """None where there is nothing to ask, or the budget forbids it. `last` marks the one verdict without
        which a drawing would be worth nothing: it may still be asked for when time is up."""
        if not checks:
            return None
        forbidden = self._forbidden(last)
        if forbidden:
            self._note(f"not judged: {forbidden}")
            return None
        began = perf_counter()
        try:
            verdict = self.verifier.judge(image, checks, references)
        except VLMError as error:
            self._note(f"not judged: {error}")
            verdict = unjudged(checks, self.verifier.name, str(error))
        self.free = self.free or verdict.usage.calls == 0
        self.cost += Cost(seconds={"verify": perf_counter() - began}, usage=verdict.usage)
        return verdict

    def judge_each(
        self,
        images: Sequence[Image],
        checks: Sequence[Check],
        references: Sequence[Image],
        vital: bool = False,
    ) -> list[Verdict | None]:
        """One verdict an image. `vital`: the first image is judged even where time is up."""
        return [self.judge(image, checks, references, last=vital and i == 0) for i, image in enumerate(images)]

    def prefer(self, first: Image, second: Image, goal: Goal, references: Sequence[Image]) -> float | None:
        """The probability that the first image is better; None where nobody could tell, or might be asked."""
        forbidden = self._forbidden(last=False)
        if self.comparer is None or forbidden:
            return None
        began = perf_counter()
        try:
            preference = self.comparer.prefer(first, second, goal, references)
        except VLMError as error:
            self._note(f"not compared: {error}")
            preference = Preference(None, Usage(calls=1))
        self.cost += Cost(seconds={"verify": perf_counter() - began}, usage=preference.usage)
        return preference.first

    def exhausted(self, steps: int) -> str:
        total = self.spent + self.cost
        return self.budget.exhausted(total, steps, total.total_seconds)

    def _forbidden(self, last: bool) -> str:
        total, budget = self.spent + self.cost, self.budget
        if budget.vlm_calls is not None and total.usage.calls >= budget.vlm_calls and not self.free:
            return f"the budget of {budget.vlm_calls} VLM calls is used"
        if budget.tokens is not None and total.usage.tokens >= budget.tokens and not self.free:
            return f"the budget of {budget.tokens} tokens is used"
        if budget.seconds is not None and total.total_seconds >= budget.seconds and not last:
            return f"the budget of {budget.seconds:g} seconds is used"
        return ""

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)


def unjudged(checks: Sequence[Check], judge: str, reason: str) -> Verdict:
    """The verdict of a judge that failed: no check passed, none failed, one call was spent."""
    evidence = (Evidence(judge, reason),)
    return Verdict(tuple(CheckVerdict(c.id, "unjudged", evidence=evidence) for c in checks), Usage(calls=1))
