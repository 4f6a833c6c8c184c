"""Evidence beside a judge: what can be measured overrules what was only looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import ports
from ..ports import Comparer, Verifier, release
from ..trajectory import Check, CheckVerdict, Verdict
from .seats import Seat, Statement, raw_replies, ruled

if TYPE_CHECKING:
    from PIL.Image import Image


class Witnessed:
    """`ports.Verifier`: a judge, and witnesses that leave unjudged what they cannot measure.

    Where the witnesses that speak agree, their word counts; where they contradict each other or are silent, the
    judge's does. The evidence tells what each said and who was overruled. `spare` asks the judge only what no
    witness decided, which saves time and tokens and loses the judge's word on the rest."""

    def __init__(self, judge: Verifier, witnesses: Sequence[Verifier], spare: bool = False) -> None:
        self._judge = Seat(judge)
        self._witnesses = [Seat(witness) for witness in witnesses]
        self._spare = spare

    @property
    def name(self) -> str:
        return f"{self._judge.name} with {', '.join(seat.name for seat in self._witnesses)}"

    @property
    def comparer(self) -> Comparer | None:
        return ports.comparer(self._judge.verifier)

    def release(self) -> None:
        release(self._judge.verifier, *(seat.verifier for seat in self._witnesses))

    def judge(self, image: Image, checks: Sequence[Check], references: Sequence[Image] = ()) -> Verdict:
        """Whoever fails says nothing, and why. Raises what a judge or witness raises that was named wrongly."""
        heard = [seat.judge(image, checks, references) for seat in self._witnesses]
        testimony = {check.id: self._testimony(check, heard) for check in checks}
        asked = [c for c in checks if not (self._spare and ruling(testimony[c.id]) is not None)]
        opinion = self._judge.judge(image, asked, references)
        results = tuple(_weigh(c, testimony[c.id], Statement.of(self._judge, opinion, c)) for c in checks)
        return Verdict(results, sum((v.usage for v in heard), opinion.usage))

    def _testimony(self, check: Check, heard: Sequence[Verdict]) -> list[Statement]:
        """What the witnesses have to say; one that neither decides nor explains is not mentioned."""
        statements = [Statement.of(s, v, check) for s, v in zip(self._witnesses, heard, strict=True)]
        return [s for s in statements if s.result and (s.vote is not None or s.result.evidence)]


def ruling(testimony: Sequence[Statement]) -> bool | None:
    """What the witnesses say with one voice; None where they are silent or contradict each other."""
    votes = {s.vote for s in testimony if s.vote is not None}
    return votes.pop() if len(votes) == 1 else None


def _weigh(check: Check, testimony: Sequence[Statement], opinion: Statement) -> CheckVerdict:
    """The first statement that says what counts is the verdict; everyone's evidence is kept."""
    measured = ruling(testimony)
    decided = opinion.vote if measured is None else measured
    speakers = [*testimony, opinion] if measured is not None else [opinion, *testimony]
    author = next((s for s in speakers if s.result and s.vote == decided), opinion)
    result = author.result or CheckVerdict(check.id, "unjudged")
    agreeing = [s.result.probability for s in speakers if s.result and s.vote == decided]
    probability = next((p for p in agreeing if p is not None), None)
    evidence = ruled((e for s in speakers for e in s.evidence()), result.outcome)
    return CheckVerdict(check.id, result.outcome, probability, evidence, raw_replies(speakers))
