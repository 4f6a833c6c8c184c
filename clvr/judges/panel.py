"""Several judges who vote on every check, or on every pair of images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

from .. import ports
from ..errors import SettingError, VLMConnectionError, VLMError, VLMSetupError
from ..ports import Comparer, Preference, Verifier, release
from ..together import together
from ..trajectory import Check, CheckVerdict, Evidence, Goal, Outcome, Usage, Verdict
from .seats import Seat, Statement, raw_replies, ruled

if TYPE_CHECKING:
    from PIL.Image import Image

Agreement = Literal["all", "majority", "weighted"]
AGREEMENTS: tuple[Agreement, ...] = get_args(Agreement)
_TIE = 1e-9


class Panel:
    """`ports.Verifier`: the members' common verdict.

    `all` takes what every vote says, `majority` what more votes say, `weighted` what has more weight. An
    unjudged check is no vote; a tie, and a disagreement under `all`, is unjudged. The probability is the weighted
    mean of those that were given. `concurrent` asks the members at once, each in a thread of its own: for
    servers, not for models that share this machine. Raises SettingError for weights that do not fit."""

    def __init__(
        self,
        members: Sequence[Verifier],
        agreement: Agreement = "majority",
        weights: Sequence[float] = (),
        concurrent: bool = False,
    ) -> None:
        self._weights = _checked(members, agreement, weights)
        self._seats = [Seat(member) for member in members]
        self._agreement: Agreement = agreement
        self._concurrent = concurrent
        self.comparer = _comparing(members, self._weights)

    @property
    def name(self) -> str:
        return f"panel ({self._agreement}): {', '.join(seat.name for seat in self._seats)}"

    @property
    def at_once(self) -> int:
        return min(ports.at_once(seat.verifier) for seat in self._seats)

    def release(self) -> None:
        release(*(seat.verifier for seat in self._seats))

    def judge(self, image: Image, checks: Sequence[Check], references: Sequence[Image] = ()) -> Verdict:
        """A member that fails leaves its vote out. Raises what a member raises that was named wrongly."""
        verdicts = self._ask(image, checks, references)
        results = tuple(self._count(check, verdicts) for check in checks)
        return Verdict(results, sum((v.usage for v in verdicts), Usage()))

    def _ask(self, image: Image, checks: Sequence[Check], references: Sequence[Image]) -> list[Verdict]:
        calls = [partial(seat.judge, image, checks, references) for seat in self._seats]
        return together(calls, len(calls) if self._concurrent else 1)

    def _count(self, check: Check, verdicts: Sequence[Verdict]) -> CheckVerdict:
        pairs = zip(self._seats, verdicts, strict=True)
        statements = [Statement.of(seat, verdict, check) for seat, verdict in pairs]
        outcome = self._outcome([s.vote for s in statements])
        tally = Evidence("panel", _tally([s.vote for s in statements], self._agreement), says=outcome)
        evidence = ruled((tally, *(e for s in statements for e in s.evidence())), outcome)
        return CheckVerdict(check.id, outcome, self._probability(statements), evidence, raw_replies(statements))

    def _outcome(self, votes: Sequence[bool | None]) -> Outcome:
        weights = self._weights if self._agreement == "weighted" else [1.0] * len(votes)
        yes = sum(w for w, vote in zip(weights, votes, strict=True) if vote is True)
        no = sum(w for w, vote in zip(weights, votes, strict=True) if vote is False)
        if abs(yes - no) <= _TIE or (self._agreement == "all" and yes and no):
            return "unjudged"
        return "pass" if yes > no else "fail"

    def _probability(self, statements: Sequence[Statement]) -> float | None:
        given = [
            (weight, s.result.probability)
            for weight, s in zip(self._weights, statements, strict=True)
            if s.result and s.result.probability is not None
        ]
        return weighted_mean(given)


class ComparerPanel:
    """`ports.Comparer`: the weighted mean of what the members say; those that cannot tell are left out.

    Raises SettingError for weights that do not fit."""

    def __init__(self, members: Sequence[Comparer], weights: Sequence[float] = ()) -> None:
        self._weights = _checked(members, "weighted" if weights else "majority", weights)
        self._members = list(members)
        self._reached: set[int] = set()

    @property
    def name(self) -> str:
        return f"panel: {', '.join(member.name for member in self._members)}"

    def release(self) -> None:
        release(*self._members)

    def prefer(self, first: Image, second: Image, goal: Goal, references: Sequence[Image] = ()) -> Preference:
        """A member that fails leaves its vote out. Raises what a member raises that was named wrongly."""
        said = [self._ask(index, first, second, goal, references) for index in range(len(self._members))]
        weighed = zip(self._weights, said, strict=True)
        replies = [(m.name, p.raw) for m, p in zip(self._members, said, strict=True) if p.raw]
        return Preference(
            weighted_mean([(weight, p.first) for weight, p in weighed if p.first is not None]),
            sum((p.usage for p in said), Usage()),
            tuple(e for p in said for e in p.evidence),
            "\n\n".join(f"{name}:\n{raw}" for name, raw in replies),
        )

    def _ask(self, index: int, first: Image, second: Image, goal: Goal, references: Sequence[Image]) -> Preference:
        member = self._members[index]
        try:
            preference = member.prefer(first, second, goal, references)
        except VLMError as error:
            if index not in self._reached and isinstance(error, (VLMSetupError, VLMConnectionError)):
                raise
            return Preference(None, Usage(calls=1), (Evidence(member.name, str(error)),))
        self._reached.add(index)
        return preference


def weighted_mean(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Of (weight, value); None where nothing has weight."""
    total = sum(weight for weight, _ in pairs)
    return sum(weight * value for weight, value in pairs) / total if total > 0 else None


def _comparing(members: Sequence[Verifier], weights: Sequence[float]) -> ComparerPanel | None:
    """Those members that can compare and have a weight."""
    found = [(ports.comparer(member), weight) for member, weight in zip(members, weights, strict=True)]
    able = [(comparer, weight) for comparer, weight in found if comparer and weight]
    return ComparerPanel([comparer for comparer, _ in able], [weight for _, weight in able]) if able else None


def _checked(members: Sequence[object], agreement: str, weights: Sequence[float]) -> list[float]:
    """A weight a member. Raises SettingError."""
    if not members:
        raise SettingError("A panel has no members.", "Name at least one judge.")
    if agreement not in AGREEMENTS:
        raise SettingError(f"There is no agreement {agreement!r}.", f"Use {', '.join(AGREEMENTS)}.")
    if weights and len(weights) != len(members):
        raise SettingError(
            f"{len(weights)} weights cannot be given to {len(members)} judges.", "Give one weight a judge, in order."
        )
    if any(not 0 <= weight < float("inf") for weight in weights) or (weights and not sum(weights)):
        raise SettingError("A judge's weight must be 0 or more, and one must be above 0.", "For example 2,1,1.")
    return list(weights) or [1.0] * len(members)


def _tally(votes: Sequence[bool | None], agreement: Agreement) -> str:
    yes, no, rest = votes.count(True), votes.count(False), votes.count(None)
    silent = f", {rest} cannot tell" if rest else ""
    return f"{yes} of {len(votes)} say yes, {no} no{silent} ({agreement})"
