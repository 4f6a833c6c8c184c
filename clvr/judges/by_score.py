"""Two images compared by a judge that looks at each alone: exact where the judge measures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..ports import Preference, Verifier, release
from ..trajectory import Check, Evidence, Goal, Verdict
from .seats import Seat

if TYPE_CHECKING:
    from PIL.Image import Image


class ScoreComparer:
    """`ports.Comparer`: the image with the higher score on the goal's checks, over those that were judged on both.

    `margin`: a difference in score up to this is a tie. The order cannot matter, since no image is seen beside
    the other."""

    def __init__(self, verifier: Verifier, margin: float = 0.0) -> None:
        self._seat = Seat(verifier)
        self._margin = margin

    @property
    def name(self) -> str:
        return f"scores of {self._seat.name}"

    def release(self) -> None:
        release(self._seat.verifier)

    def prefer(self, first: Image, second: Image, goal: Goal, references: Sequence[Image] = ()) -> Preference:
        """Unjudged where no check was judged on both. Raises what a judge raises that was named wrongly."""
        verdicts = [self._seat.judge(image, goal.checks, references) for image in (first, second)]
        common = shared(goal.checks, *verdicts)
        usage = verdicts[0].usage + verdicts[1].usage
        one, other = (weighed(verdict, goal.checks, common) for verdict in verdicts)
        if one is None or other is None:
            return Preference(None, usage, (Evidence(self._seat.name, "No check was judged on both images."),))
        note = f"{one:.0%} against {other:.0%} of {len(common)} checks"
        return Preference(self._probability(one - other), usage, (Evidence(self._seat.name, note),))

    def _probability(self, lead: float) -> float:
        if abs(lead) <= self._margin + 1e-9:
            return 0.5
        return 1.0 if lead > 0 else 0.0


def shared(checks: Sequence[Check], *verdicts: Verdict) -> frozenset[str]:
    """Ids of the checks that every verdict judged, a descendant of a failed check counting as judged."""
    judged = [{check.id for check, outcome in v.effective(checks) if outcome != "unjudged"} for v in verdicts]
    return frozenset(set.intersection(*judged)) if judged else frozenset()


def weighed(verdict: Verdict, checks: Sequence[Check], among: frozenset[str]) -> float | None:
    """The score over some of the checks, in [0, 1]; None where they have no weight."""
    outcomes = [(check, outcome) for check, outcome in verdict.effective(checks) if check.id in among]
    total = sum(check.weight for check, _ in outcomes)
    return sum(check.weight for check, outcome in outcomes if outcome == "pass") / total if total > 0 else None
