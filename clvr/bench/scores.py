"""From results to scores: proportions with Wilson's interval, means with the normal one; micro and macro averages."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..intervals import Z, normal, wilson
from .results import Result
from .suite import Measure, Overall, Suite


@dataclass(frozen=True)
class Estimate:
    """A score over `n` judged images with its 95 % interval; None where nothing was judged, or where one image in a
    group leaves no spread to estimate. `lacking`: groups with a weight but no judged image, left out of the mean."""

    name: str
    measure: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    interval: Literal["Wilson", "normal"] = "normal"
    lacking: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """The images of one value of a tag."""

    tag: str
    value: str
    images: int
    missing: int
    unjudged: int
    estimates: tuple[Estimate, ...]


@dataclass(frozen=True)
class Summary:
    """`missing`: prompts without an image; `unjudged`: images whose headline score is None. Neither counts as a
    failure."""

    scores: tuple[Estimate, ...]
    groups: tuple[Group, ...]
    prompts: int
    images: int
    judged: int
    unjudged: int
    missing: int


def summarise(suite: Suite, results: Sequence[Result]) -> Summary:
    headline = suite.measures[0].name
    there = [r for r in results if r.image]
    unjudged = sum(r.values.get(headline) is None for r in there)
    averages = [(_micro(m, there), _macro(suite, m, there)) for m in suite.measures]
    overalls = [_overall(suite, o, there) for o in suite.overalls]
    scores = [*averages[0], *overalls, *(s for pair in averages[1:] for s in pair)]
    tags = dict.fromkeys(tag for item in suite.items for tag in item.tags)
    return Summary(
        tuple(scores),
        tuple(group for tag in tags for group in _groups(suite, tag, results)),
        prompts=len({r.item for r in results}),
        images=len(there),
        judged=len(there) - unjudged,
        unjudged=unjudged,
        missing=len(results) - len(there),
    )


def mean(measure: Measure, results: Iterable[Result], name: str) -> Estimate:
    """Of one measure over all judged results alike."""
    values = _values(measure.name, results)
    if not values:
        return Estimate(name, measure.name, None, interval="Wilson" if measure.yes_or_no else "normal")
    value = statistics.fmean(values)
    if measure.yes_or_no:
        low, high = wilson(round(sum(values)), len(values))
        return Estimate(name, measure.name, value, low, high, len(values), "Wilson")
    return Estimate(name, measure.name, value, *_clipped(measure, *normal(values)), len(values))


def weighted(measure: Measure, groups: Mapping[str, Sequence[float]], weights: Mapping[str, float],
             name: str) -> Estimate:  # fmt: skip
    """Σ w·mean / Σ w over the groups that have a value, with the normal interval of independent groups: the variance
    is Σ (w / Σ w)² s² / n."""
    there = {g: groups[g] for g in weights if groups.get(g)}
    lacking = tuple(g for g in weights if g not in there)
    if not there:
        return Estimate(name, measure.name, None, lacking=lacking)
    total = sum(weights[g] for g in there)
    value = sum(weights[g] / total * statistics.fmean(v) for g, v in there.items())
    n = sum(map(len, there.values()))
    low = high = None
    if all(len(v) > 1 for v in there.values()):
        variance = sum((weights[g] / total) ** 2 * statistics.variance(v) / len(v) for g, v in there.items())
        spread = Z * math.sqrt(variance)
        low, high = _clipped(measure, value - spread, value + spread)
    return Estimate(name, measure.name, value, low, high, n, lacking=lacking)


def _micro(measure: Measure, results: Sequence[Result]) -> Estimate:
    return mean(measure, results, f"{measure.name}, micro average over images")


def _macro(suite: Suite, measure: Measure, results: Sequence[Result]) -> Estimate:
    values = _by_tag(suite.tag, measure.name, results)
    weights = dict.fromkeys(values, 1.0)
    return weighted(measure, values, weights, f"{measure.name}, macro average over {suite.tag}")


def _overall(suite: Suite, overall: Overall, results: Sequence[Result]) -> Estimate:
    measure = next(m for m in suite.measures if m.name == overall.measure)
    return weighted(measure, _by_tag(overall.tag, measure.name, results), overall.weights, overall.name)


def _groups(suite: Suite, tag: str, results: Sequence[Result]) -> list[Group]:
    values = list(dict.fromkeys(item.tags[tag] for item in suite.items))
    if all(value.isdecimal() for value in values):
        values.sort(key=int)
    made = []
    for value in values:
        members = [r for r in results if r.tags.get(tag) == value]
        there = [r for r in members if r.image]
        unjudged = sum(r.values.get(suite.measures[0].name) is None for r in there)
        estimates = tuple(mean(m, there, m.name) for m in suite.measures)
        if members:
            made.append(Group(tag, value, len(there), len(members) - len(there), unjudged, estimates))
    return made


def _by_tag(tag: str, measure: str, results: Iterable[Result]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for result in results:
        value = result.values.get(measure)
        if value is not None:
            found.setdefault(result.tags[tag], []).append(value)
    return found


def _values(measure: str, results: Iterable[Result]) -> list[float]:
    return [v for r in results if (v := r.values.get(measure)) is not None]


def _clipped(measure: Measure, low: float, high: float) -> tuple[float | None, float | None]:
    """Within the measure's range; none where the interval is unbounded."""
    if math.isinf(low):
        return None, None
    return max(0.0, low), min(measure.highest, high)
