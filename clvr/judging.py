"""Dual-track verification (section 3.1): passive against the step's instruction, active against the goal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

from . import ports
from .allowance import Allowance, grant
from .budget import Budget
from .errors import VLMError
from .ports import Preference, Verifier
from .together import together
from .trajectory import Check, CheckVerdict, Cost, Evidence, Goal, Usage, Verdict

if TYPE_CHECKING:
    from PIL.Image import Image

ONE_CALL = Usage(calls=1)
Job = tuple["Image", Sequence[Check], "Sequence[Image]"]
"""An image, what to ask of it, and the images that it was drawn from."""


@dataclass
class Bench:
    """Judges a step's candidates and keeps account of what that cost. `spent` is the run's cost before."""

    verifier: Verifier
    budget: Budget
    spent: Cost
    free: bool = False
    """Whether the verifier is known to answer without a VLM, so that the limit on calls is not its own."""
    cost: Cost = field(default_factory=Cost)
    notes: list[str] = field(default_factory=list)

    def judge(self, image: Image, checks: Sequence[Check], references: Sequence[Image]) -> Verdict | None:
        """None where there is nothing to ask, or the budget forbids it."""
        return self.judge_each([(image, checks, references)])[0]

    def judge_each(self, jobs: Sequence[Job]) -> list[Verdict | None]:
        """One verdict a job, None as in `judge`; several at a time where the verifier allows it."""
        at_once = ports.at_once(self.verifier)
        verdicts: list[Verdict | None] = []
        for start in range(0, len(jobs), at_once):
            verdicts += self._judge_together(jobs[start : start + at_once])
        return verdicts

    def _judge_together(self, jobs: Sequence[Job]) -> list[Verdict | None]:
        asked = [n for n, (_, checks, _) in enumerate(jobs) if checks]
        forbidden = self._forbidden(asking=not self.free) if asked else ""
        if forbidden:
            self._note(f"not judged: {forbidden}")
        if forbidden or not asked:
            return [None] * len(jobs)
        began = perf_counter()
        with grant(self.budget, self.spent + self.cost) as granted:
            calls = [partial(self._ask, jobs[n], granted if len(asked) == 1 else None) for n in asked]
            found = dict(zip(asked, together(calls, len(calls)), strict=True))
        usage = sum((verdict.usage for verdict in found.values()), Usage())
        self.free = self.free or usage.calls == 0
        self.cost += Cost(seconds={"verify": perf_counter() - began}, usage=usage)
        return [found.get(n) for n in range(len(jobs))]

    def _ask(self, job: Job, alone: Allowance | None) -> Verdict:
        """`alone`: what is counted of this call where there is no other."""
        image, checks, references = job
        try:
            return self.verifier.judge(image, checks, references)
        except VLMError as error:
            self._note(f"not judged: {error}")
            return unjudged(checks, self.verifier.name, str(error), alone.made if alone else ONE_CALL)

    def prefer(self, first: Image, second: Image, goal: Goal, references: Sequence[Image]) -> float | None:
        """The probability that the first image is better; None where nobody could tell, or might be asked."""
        comparer = ports.comparer(self.verifier)
        if comparer is None or self._forbidden():
            return None
        began = perf_counter()
        with grant(self.budget, self.spent + self.cost) as granted:
            try:
                preference = comparer.prefer(first, second, goal, references)
            except VLMError as error:
                self._note(f"not compared: {error}")
                preference = Preference(None, granted.made)
        self.cost += Cost(seconds={"verify": perf_counter() - began}, usage=preference.usage)
        return preference.first

    def exhausted(self, steps: int) -> str:
        total = self.spent + self.cost
        return self.budget.exhausted(total, steps, total.total_seconds)

    def _forbidden(self, asking: bool = True) -> str:
        total = self.spent + self.cost
        return self.budget.used(total, total.total_seconds, asking)

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)


def unjudged(checks: Sequence[Check], judge: str, reason: str, usage: Usage = ONE_CALL) -> Verdict:
    """The verdict of a judge that failed: no check passed, none failed."""
    evidence = (Evidence(judge, reason),)
    return Verdict(tuple(CheckVerdict(c.id, "unjudged", evidence=evidence) for c in checks), usage)
