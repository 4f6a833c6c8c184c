"""A judge among others: a failed call leaves its vote out, and what it says is marked as its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import VLMConnectionError, VLMError, VLMSetupError
from ..judging import unjudged
from ..ports import Verifier
from ..trajectory import Check, CheckVerdict, Evidence, Outcome, Verdict

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass
class Seat:
    """A judge, and whether a call of it ever succeeded."""

    verifier: Verifier
    reached: bool = False

    @property
    def name(self) -> str:
        return self.verifier.name

    def judge(self, image: Image, checks: Sequence[Check], references: Sequence[Image]) -> Verdict:
        """A failed call is unjudged, with the reason. Raises VLMSetupError or VLMConnectionError as long as no
        call succeeded: then the judge was named wrongly."""
        if not checks:
            return Verdict()
        try:
            verdict = self.verifier.judge(image, checks, references)
        except VLMError as error:
            if not self.reached and isinstance(error, (VLMSetupError, VLMConnectionError)):
                raise
            return unjudged(checks, self.name, str(error))
        self.reached = True
        return verdict


@dataclass(frozen=True)
class Statement:
    """What one judge says of one check; None where it does not mention the check."""

    judge: str
    result: CheckVerdict | None

    @classmethod
    def of(cls, seat: Seat, verdict: Verdict, check: Check) -> Statement:
        return cls(seat.name, next((r for r in verdict.results if r.check == check.id), None))

    @property
    def vote(self) -> bool | None:
        """Whether it says yes; None for an abstention."""
        outcome = self.result.outcome if self.result else "unjudged"
        return {"pass": True, "fail": False}.get(outcome)

    def evidence(self) -> tuple[Evidence, ...]:
        """The judge's own evidence, marked with what it said. A judge that combines others has marked theirs
        already, and put the line that decided first."""
        if self.result is None:
            return ()
        own = self.result.evidence or (Evidence(self.judge),)
        return tuple(e if e.says else dataclasses.replace(e, says=self.result.outcome) for e in own)


def ruled(evidence: Iterable[Evidence], outcome: Outcome) -> tuple[Evidence, ...]:
    """Evidence with everyone marked as overruled whose yes or no is not the outcome; where that is unjudged, nobody
    is."""
    against = {"pass": "fail", "fail": "pass"}.get(outcome)
    return tuple(dataclasses.replace(e, overruled=e.says is not None and e.says == against) for e in evidence)


def raw_replies(statements: Iterable[Statement]) -> str:
    """Every judge's reply word for word, under its name."""
    replies = [(s.judge, s.result.raw) for s in statements if s.result and s.result.raw]
    return "\n\n".join(f"{judge}:\n{raw}" for judge, raw in replies)
