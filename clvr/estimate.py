"""What a run will take: what its budget allows, and how long that took on this machine before."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .budget import Budget
from .past import CHECKLIST, Past, vlm_name
from .ports import Controller, Generator, Size, Verifier

UNNAMED = "model@"
"""How a server is called whose only model has not been asked for its name yet."""
_MODEL = re.compile(r"[^ ,]*@")


@dataclass(frozen=True)
class Setup:
    """Who would draw, plan and judge: what past steps must share to be compared. `nfe` is of one image."""

    generator: str
    vlm: str
    size: Size
    nfe: int

    @classmethod
    def of(cls, generator: Generator, controller: Controller, verifier: Verifier, size: Size | None = None) -> Setup:
        return cls(generator.name, vlm_name(controller, verifier), size or generator.default_size, generator.nfe(1))

    def draws(self, past: Past) -> bool:
        return (past.generator, past.size, past.nfe) == (self.generator, self.size, self.nfe)

    def asks(self, past: Past) -> bool:
        """Whether the same models planned and judged. One without a name yet is known by its server alone."""
        if UNNAMED in self.vlm:
            return _MODEL.sub("@", past.vlm) == _MODEL.sub("@", self.vlm)
        return past.vlm == self.vlm


@dataclass(frozen=True)
class Range:
    """A tenth of the past lay below `low`, a tenth above `high`."""

    low: float = 0.0
    median: float = 0.0
    high: float = 0.0

    @classmethod
    def of(cls, values: Sequence[float]) -> Range:
        if not values:
            return cls()
        ranked, tenth = sorted(values), (len(values) - 1) // 10
        return cls(ranked[tenth], statistics.median(ranked), ranked[-1 - tenth])

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.median + other.median, self.high + other.high)

    def times(self, count: float) -> Range:
        return Range(self.low * count, self.median * count, self.high * count)

    def at_most(self, limit: float | None) -> Range:
        if limit is None:
            return self
        return Range(min(self.low, limit), min(self.median, limit), min(self.high, limit))


@dataclass(frozen=True)
class Estimate:
    """What a run takes if it uses all of its budget. `seconds`, `vlm_calls` and `tokens` are None where nothing
    of the kind was done here yet. `basis`: the past steps that it rests on. `usual`: the rounds that past runs
    of the same setup took, in the median; 0 where there was none."""

    steps: int
    images: int
    nfe: int
    seconds: Range | None = None
    vlm_calls: int | None = None
    tokens: int | None = None
    basis: int = 0
    usual: int = 0

    def line(self) -> str:
        """For a person, in one line."""
        counts = [(self.steps, "round"), (self.images, "image"), (self.nfe, "function evaluation")]
        counts += [(self.vlm_calls or 0, "VLM call"), (self.tokens or 0, "token")]
        told = "up to " + ", ".join(_counted(n, name) for n, name in counts if n)
        if self.seconds is None:
            return f"{told}; the time is not known: nothing like it was drawn here before"
        low, median, high = (roughly(s) for s in (self.seconds.low, self.seconds.median, self.seconds.high))
        spread = f" ({low} to {high})" if low != high else ""
        usual = f"; runs so far ended after {_counted(self.usual, 'round')}" if self.usual else ""
        return f"{told}: {median}{spread}, going by {_counted(self.basis, 'past step')}{usual}"


@dataclass(frozen=True)
class _Part:
    """What a part of a run costs the VLM and in time."""

    seconds: Range = Range()
    calls: float = 0.0
    tokens: float = 0.0

    def __add__(self, other: _Part) -> _Part:
        return _Part(self.seconds + other.seconds, self.calls + other.calls, self.tokens + other.tokens)

    def times(self, count: float) -> _Part:
        return _Part(self.seconds.times(count), self.calls * count, self.tokens * count)


def estimate(budget: Budget, setup: Setup, past: Sequence[Past]) -> Estimate:
    """From the steps that the same generator drew at this size, and those that the same VLM planned and judged."""
    steps = [p for p in past if p.index != CHECKLIST]
    drawn, asked = [p for p in steps if setup.draws(p)], [p for p in steps if setup.asks(p)]
    opening = _opening([p for p in past if p.index == CHECKLIST and setup.asks(p)])
    planning, judging = _planning(asked), _judging(asked)
    encoding, drawing = _encoding(drawn), _drawing(drawn)
    each = planning + encoding + (drawing + judging).times(budget.candidates)
    before = opening + planning
    most = min(
        budget.steps,
        _rounds(budget.seconds, before.seconds.median, each.seconds.median),
        _rounds(budget.vlm_calls, before.calls, each.calls),
        _rounds(budget.tokens, before.tokens, each.tokens),
    )
    rounds, images = _drawings(budget, setup.nfe, int(most))
    whole = opening + (planning + encoding).times(rounds) + (drawing + judging).times(images)
    return Estimate(
        rounds,
        images,
        images * setup.nfe,
        whole.seconds.at_most(budget.seconds) if drawn and asked else None,
        math.ceil(min(whole.calls, budget.vlm_calls or math.inf)) if asked else None,
        math.ceil(min(whole.tokens, budget.tokens or math.inf)) if asked else None,
        min(len(drawn), len(asked)),
        min(rounds, _usual([p for p in drawn if setup.asks(p)])),
    )


def roughly(seconds: float) -> str:
    """Two figures are enough: 0.4 s, 35 s, 3 min 20 s, 1 h 5 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds / 10) * 10, 60)
    if minutes < 10:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _opening(lists: Sequence[Past]) -> _Part:
    return _part([(sum(p.seconds.values()), p.calls, p.tokens) for p in lists])


def _planning(steps: Sequence[Past]) -> _Part:
    return _part([(p.seconds.get("plan", 0.0), p.plan_calls, p.plan_tokens) for p in steps])


def _judging(steps: Sequence[Past]) -> _Part:
    """Of one image, by the passive and the active verdict."""
    judged = [p for p in steps if p.judged]
    seconds = [p.seconds.get("verify", 0.0) / p.judged for p in judged]
    usage = [((p.calls - p.plan_calls) / p.judged, (p.tokens - p.plan_tokens) / p.judged) for p in judged]
    return _part([(s, *u) for s, u in zip(seconds, usage, strict=True)])


def _encoding(steps: Sequence[Past]) -> _Part:
    return _part([(p.seconds.get("encode", 0.0), 0, 0) for p in steps])


def _drawing(steps: Sequence[Past]) -> _Part:
    """Of one image. Whatever is neither asking nor encoding is drawing."""
    elsewhere = ("plan", "verify", "encode")
    seconds = (sum(s for phase, s in p.seconds.items() if phase not in elsewhere) / p.images for p in steps)
    return _part([(s, 0, 0) for s in seconds])


def _part(costs: Sequence[tuple[float, float, float]]) -> _Part:
    if not costs:
        return _Part()
    seconds, calls, tokens = zip(*costs, strict=True)
    return _Part(Range.of(seconds), statistics.median(calls), statistics.median(tokens))


def _rounds(limit: float | None, before: float, each: float) -> float:
    """How many rounds may be drawn. A round is drawn if the limit is not reached after its planning: the largest
    k with before + (k - 1) · each < limit, and at least one."""
    if limit is None or (each <= 0 and before < limit):
        return math.inf
    return max(1, math.ceil((limit - before) / each)) if each > 0 else 1


def _drawings(budget: Budget, nfe: int, rounds: int) -> tuple[int, int]:
    """Rounds and images that the function evaluations pay, as the loop spends them: whole rounds first, then the
    candidates that are left, and one more image where a rest is left even then."""
    if budget.nfe is None:
        return rounds, rounds * budget.candidates
    nfe = max(nfe, 1)
    done = min(rounds, budget.nfe // (budget.candidates * nfe))
    images, left = done * budget.candidates, budget.nfe - done * budget.candidates * nfe
    while done < rounds and left > 0:
        count = max(1, left // nfe)
        done, images, left = done + 1, images + count, left - count * nfe
    return done, images


def _usual(steps: Sequence[Past]) -> int:
    """The median of the rounds that runs took, from how many got as far as each index."""
    runs = sum(p.index == 0 for p in steps)
    reached = 0
    while runs and 2 * sum(p.index == reached for p in steps) >= runs:
        reached += 1
    return reached


def _counted(number: int, name: str) -> str:
    return f"{number:,} {name}{'' if number == 1 else 's'}"
