"""Tiers of complexity, and how often a model gets a tier right (appendix A.7, eq. 34)."""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..errors import SettingError
from ..intervals import normal, wilson
from ..trajectory import Outcome

TIERS = 10
Interval = tuple[float, float]


def edges(values: Sequence[float], count: int = TIERS) -> list[float]:
    """The upper ends of all tiers but the last: the quantiles 1/count … (count - 1)/count, interpolated.

    Raises SettingError for no tier or no value."""
    if count < 1 or not values:
        raise SettingError(f"{len(values)} prompts cannot be sorted into {count} tiers.", "Give at least one of each.")
    ordered = sorted(values)
    places = [k * (len(ordered) - 1) / count for k in range(1, count)]
    return [_between(ordered[math.floor(p)], ordered[math.ceil(p)], p - math.floor(p)) for p in places]


def _between(low: float, high: float, share: float) -> float:
    return low if low == high else low + share * (high - low)


def tier(value: float, upper: Sequence[float]) -> int:
    """From 1, the easiest, to len(upper) + 1. Equal values share a tier."""
    return bisect.bisect_left(upper, value) + 1


def tiers(values: Sequence[float], count: int = TIERS) -> list[int]:
    """Each value's tier, 1 to `count`. Many equal values leave tiers empty. Raises SettingError."""
    upper = edges(values, count)
    return [tier(value, upper) for value in values]


def recall(outcomes: Iterable[Outcome]) -> float | None:
    """Fine-grained recall: the satisfied share of the constraints that were judged. What was skipped since its
    parent failed is not satisfied. None where nothing was judged."""
    judged = [outcome for outcome in outcomes if outcome != "unjudged"]
    return judged.count("pass") / len(judged) if judged else None


@dataclass(frozen=True)
class Shot:
    """One judged image. `passed`: all constraints hold. `recall` in [0, 1], or None where it is not known."""

    prompt: str
    complexity: float
    passed: bool
    recall: float | None = None


@dataclass(frozen=True)
class Scored:
    """A prompt over its images: the share that passed, their mean recall."""

    prompt: str
    complexity: float
    passed: float
    recall: float | None
    images: int


def by_prompt(shots: Iterable[Shot]) -> list[Scored]:
    """Images are averaged first, so that every prompt weighs the same however often it was drawn.

    Raises SettingError for a prompt with two complexities."""
    groups: dict[str, list[Shot]] = {}
    for shot in shots:
        groups.setdefault(shot.prompt, []).append(shot)
    return [_scored(prompt, group) for prompt, group in groups.items()]


def _scored(prompt: str, shots: Sequence[Shot]) -> Scored:
    found = {shot.complexity for shot in shots}
    if len(found) > 1:
        raise SettingError(f"{prompt!r:.80} has the complexities {sorted(found)}.", "Give one and the same for each.")
    recalls = [shot.recall for shot in shots if shot.recall is not None]
    return Scored(
        prompt,
        found.pop(),
        statistics.fmean(shot.passed for shot in shots),
        statistics.fmean(recalls) if recalls else None,
        len(shots),
    )


@dataclass(frozen=True)
class Rate:
    """A mean over prompts with its 95 % interval."""

    mean: float
    interval: Interval


@dataclass(frozen=True)
class TierResult:
    """`median` is the tier's place on the axis of complexity; `low` and `high` are the least and the most in it."""

    tier: int
    prompts: int
    low: float
    median: float
    high: float
    passed: Rate
    recall: Rate | None


def by_tier(scored: Sequence[Scored], upper: Sequence[float]) -> list[TierResult]:
    """The tiers that have prompts, easiest first. `upper` are the edges, common to all that are compared."""
    groups: dict[int, list[Scored]] = {}
    for one in scored:
        groups.setdefault(tier(one.complexity, upper), []).append(one)
    return [_tier_result(number, groups[number]) for number in sorted(groups)]


def _tier_result(number: int, scored: Sequence[Scored]) -> TierResult:
    places = [one.complexity for one in scored]
    recalls = [one.recall for one in scored if one.recall is not None]
    return TierResult(
        number,
        len(scored),
        min(places),
        statistics.median(places),
        max(places),
        rate([one.passed for one in scored]),
        rate(recalls) if recalls else None,
    )


def rate(scores: Sequence[float]) -> Rate:
    """Wilson's interval where every score is 0 or 1; otherwise the normal one over prompts, within [0, 1]."""
    mean = statistics.fmean(scores)
    if all(score in (0, 1) for score in scores):
        return Rate(mean, wilson(round(sum(scores)), len(scores)))
    low, high = normal(scores)
    return Rate(mean, (max(0.0, low), min(1.0, high)))


def auc(points: Iterable[tuple[float, float]]) -> float:
    """Area under the rates over the tiers' medians, by trapezoids (eq. 34). Points are (median, rate), in any order;
    fewer than two have no area."""
    return math.fsum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(sorted(points)))


def auc_pass(results: Sequence[TierResult]) -> float:
    return auc((one.median, one.passed.mean) for one in results)


def auc_recall(results: Sequence[TierResult]) -> float | None:
    """None where a tier has no recall."""
    points = [(one.median, one.recall.mean) for one in results if one.recall is not None]
    return auc(points) if len(points) == len(results) else None
