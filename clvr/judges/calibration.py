"""From labelled answers to a threshold: balanced accuracy, reliability, and how sure both are."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..errors import FormatError
from ..intervals import wilson

BINS = 10
RESAMPLES = 1000
Interval = tuple[float, float]


@dataclass(frozen=True)
class Sample:
    """A judge's P(yes) of one check, None where it gave none, and the true answer. `picture` tells which samples
    belong to one picture, and are resampled together."""

    probability: float | None
    answer: bool
    picture: str = ""


@dataclass(frozen=True)
class Bin:
    """Samples whose probability lies in [low, high): how many, their mean probability, how many are truly yes, and
    the share of those with its 95 % Wilson interval."""

    low: float
    high: float
    count: int
    mean: float
    yes: int
    interval: Interval

    @property
    def share(self) -> float:
        return self.yes / self.count


@dataclass(frozen=True)
class Calibration:
    """`threshold` maximises the balanced accuracy, (share of yes judged yes + share of no judged no) / 2. Both come
    with 95 % intervals from resampling pictures. `at_half`: the balanced accuracy at 0.5. `ece`: the expected
    calibration error, the mean distance of a bin's probability from its share of yes, weighted by count. `brier`:
    the mean squared error of the probabilities."""

    threshold: float
    threshold_interval: Interval
    accuracy: float
    accuracy_interval: Interval
    at_half: float
    ece: float
    brier: float
    bins: tuple[Bin, ...]
    curve: tuple[tuple[float, float], ...]
    yes: int
    no: int
    unjudged: int


def calibrate(samples: Sequence[Sample], seed: int = 0, resamples: int = RESAMPLES) -> Calibration:
    """Raises FormatError where yes or no is missing among the samples that have a probability."""
    pairs = _pairs(samples)
    yes = sum(answer for _, answer in pairs)
    if not yes or yes == len(pairs):
        raise FormatError(
            f"Of {len(samples)} answers {len(pairs)} have a probability, {yes} of them for a true yes.",
            "Both yes and no are needed, from a judge that gives probabilities: a Qwen3-VL in this process, or a "
            "server with logprobs.",
        )
    curve = accuracies(pairs)
    threshold, accuracy = best(curve)
    thresholds, values = _resampled(samples, seed, resamples)
    bins = reliability(pairs)
    return Calibration(
        threshold,
        _central(thresholds, threshold),
        accuracy,
        _central(values, accuracy),
        balanced_accuracy(pairs, 0.5),
        sum(b.count * abs(b.mean - b.share) for b in bins) / len(pairs),
        statistics.fmean((p - answer) ** 2 for p, answer in pairs),
        bins,
        tuple(curve),
        yes,
        len(pairs) - yes,
        len(samples) - len(pairs),
    )


def balanced_accuracy(pairs: Sequence[tuple[float, bool]], threshold: float) -> float:
    """Yes is said from the threshold on. Raises ZeroDivisionError without a yes or a no."""
    right = [sum((p >= threshold) == answer for p, answer in pairs if answer == wanted) for wanted in (True, False)]
    total = [sum(answer == wanted for _, answer in pairs) for wanted in (True, False)]
    return (right[0] / total[0] + right[1] / total[1]) / 2


def accuracies(pairs: Sequence[tuple[float, bool]]) -> list[tuple[float, float]]:
    """(threshold, balanced accuracy) halfway between neighbouring probabilities, and beyond the ends where that is
    still in [0, 1]; ascending."""
    ordered = sorted(pairs)
    yes = sum(answer for _, answer in ordered)
    no = len(ordered) - yes
    levels = sorted({p for p, _ in ordered})
    cuts = [0.0, *(max((a + b) / 2, math.nextafter(a, 1)) for a, b in pairwise(levels))]
    curve, at, missed, refused = [], 0, 0, 0
    for cut in cuts:
        while at < len(ordered) and ordered[at][0] < cut:
            missed += ordered[at][1]
            refused += not ordered[at][1]
            at += 1
        curve.append((cut, ((yes - missed) / yes + refused / no) / 2))
    return curve


def best(curve: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The highest accuracy; of equal ones the threshold nearest to 0.5."""
    return max(curve, key=lambda point: (round(point[1], 12), -abs(point[0] - 0.5)))


def reliability(pairs: Sequence[tuple[float, bool]]) -> tuple[Bin, ...]:
    """Ten bins of equal width; empty ones are left out, and 1 belongs to the last."""
    bins = []
    for index in range(BINS):
        inside = [(p, answer) for p, answer in pairs if min(int(p * BINS), BINS - 1) == index]
        if inside:
            yes = sum(answer for _, answer in inside)
            mean = statistics.fmean(p for p, _ in inside)
            ends = index / BINS, (index + 1) / BINS
            bins.append(Bin(*ends, len(inside), mean, yes, wilson(yes, len(inside))))
    return tuple(bins)


def _pairs(samples: Sequence[Sample]) -> list[tuple[float, bool]]:
    return [(s.probability, s.answer) for s in samples if s.probability is not None]


def _resampled(samples: Sequence[Sample], seed: int, resamples: int) -> tuple[list[float], list[float]]:
    """Best threshold and its accuracy of bootstrap resamples of whole pictures; one without a yes or a no is left
    out."""
    pictures: dict[str, list[tuple[float, bool]]] = {}
    for sample in samples:
        if sample.probability is not None:
            pictures.setdefault(sample.picture, []).append((sample.probability, sample.answer))
    groups, rng = list(pictures.values()), random.Random(seed)
    thresholds, values = [], []
    for _ in range(resamples):
        pairs = [pair for group in rng.choices(groups, k=len(groups)) for pair in group]
        if len({answer for _, answer in pairs}) == 2:
            threshold, accuracy = best(accuracies(pairs))
            thresholds.append(threshold)
            values.append(accuracy)
    return thresholds, values


def _central(values: Sequence[float], otherwise: float) -> Interval:
    """The middle 95 %."""
    if not values:
        return otherwise, otherwise
    ordered = sorted(values)
    cut = round(0.025 * (len(ordered) - 1))
    return ordered[cut], ordered[-1 - cut]
