"""A set of prompts in tiers of complexity, and targeted trimming to fill the sparse ones (appendix A.7)."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..errors import GrammarError
from ..shapes.language import parse
from ..shapes.phrases import prompt_words, sayable
from ..shapes.scene import Group, Noun, Spec
from .complexity import DEFAULT, Parts, Weights, complexity, of_spec
from .tiers import TIERS, edges, tier

Span = tuple[int, int]
ANY_LENGTH: Span = (0, sys.maxsize)


class Reader(Protocol):
    """Who takes prompts apart."""

    def count(self, prompt: str) -> Parts: ...

    def simpler(self, prompt: str) -> Iterator[str]:
        """The prompt with one secondary element less, in the order in which they are given up. Each is shorter."""
        ...


class GrammarReader:
    """Prompts of the built-in world, exactly. Raises GrammarError for others."""

    def count(self, prompt: str) -> Parts:
        return of_spec(parse(prompt), prompt)

    def simpler(self, prompt: str) -> Iterator[str]:
        return (prompt_words(spec) for spec in simpler(parse(prompt)) if _natural(spec))


def simpler(spec: Spec) -> Iterator[Spec]:
    """The spec without one of: an absence, a relation, a place, a size, a color, one object of several, a whole group.
    What was said last goes first."""
    replace = dataclasses.replace
    for i in _backwards(spec.absent):
        yield replace(spec, absent=_without(spec.absent, i))
    for i in _backwards(spec.relations):
        yield replace(spec, relations=_without(spec.relations, i))
    changes: tuple[Callable[[Group], Group], ...] = (
        lambda group: replace(group, cell=None),
        lambda group: replace(group, noun=replace(group.noun, size=None)),
        lambda group: replace(group, noun=replace(group.noun, color=None)),
        lambda group: replace(group, count=max(1, group.count - 1)),
    )
    for change in changes:
        for i in _backwards(spec.groups):
            if (less := change(spec.groups[i])) != spec.groups[i]:
                yield replace(spec, groups=(*spec.groups[:i], less, *spec.groups[i + 1 :]))
    named = {end for relation in spec.relations for end in (relation.a, relation.b)}
    last = len(spec.groups) - 1
    if last > 0 and last not in named:
        yield replace(spec, groups=spec.groups[:last])


def _backwards(items: Sequence[object]) -> range:
    return range(len(items) - 1, -1, -1)


def _without(items: tuple, index: int) -> tuple:
    return (*items[:index], *items[index + 1 :])


def _natural(spec: Spec) -> bool:
    """Whether it can be said, is understood as meant, and no description means another one's objects too."""
    nouns: list[Noun] = [*(group.noun for group in spec.groups), *spec.absent]
    alone = not any(a is not b and a.covers(b) for a in nouns for b in nouns)
    if not (alone and sayable(spec)):
        return False
    try:
        return parse(prompt_words(spec)) == spec
    except GrammarError:
        return False


@dataclass(frozen=True)
class Sample:
    """`source`: the prompt that it was trimmed from, '' for one as given."""

    prompt: str
    parts: Parts
    complexity: float
    tier: int
    source: str = ""

    def to_dict(self) -> dict[str, object]:
        row = {"prompt": self.prompt, "complexity": self.complexity, "tier": self.tier, "parts": self.parts.to_dict()}
        return {**row, "source": self.source} if self.source else row


@dataclass(frozen=True)
class Scheme:
    """How prompts are sorted: `upper` are the tiers' edges, `words` the interval that keeps length out of it."""

    upper: tuple[float, ...]
    words: Span = ANY_LENGTH
    weights: Weights = DEFAULT

    def sample(self, prompt: str, parts: Parts, source: str = "") -> Sample:
        score = complexity(parts, self.weights)
        return Sample(prompt, parts, score, tier(score, self.upper), source)

    def fits(self, sample: Sample) -> bool:
        return self.words[0] <= sample.parts.words <= self.words[1]


def stratify(
    prompts: Iterable[str],
    reader: Reader,
    count: int = TIERS,
    words: Span = ANY_LENGTH,
    per_tier: int = 0,
    weights: Weights = DEFAULT,
) -> list[Sample]:
    """The prompts within the interval of words, easiest first. Edges are quantiles of all that were given; a tier with
    fewer than `per_tier` is filled with harder prompts that were trimmed, as far as that leads there.

    Raises what the reader raises, and SettingError."""
    counted = {prompt: reader.count(prompt) for prompt in prompts}
    upper = edges([complexity(parts, weights) for parts in counted.values()], count)
    scheme = Scheme(tuple(upper), words, weights)
    given = [scheme.sample(prompt, parts) for prompt, parts in counted.items()]
    kept = [sample for sample in given if scheme.fits(sample)]
    for number in range(1, count + 1):
        kept += _filled(number, given, kept, reader, scheme, per_tier)
    return sorted(kept, key=lambda sample: (sample.complexity, sample.prompt))


def _filled(
    number: int, given: Sequence[Sample], kept: Sequence[Sample], reader: Reader, scheme: Scheme, wanted: int
) -> list[Sample]:
    """What a tier lacks, from the nearest harder prompts and from its own that are too long."""
    known = {sample.prompt for sample in (*given, *kept)}
    missing = wanted - sum(sample.tier == number for sample in kept)
    donors = [s for s in given if s.tier > number or (s.tier == number and not scheme.fits(s))]
    donors.sort(key=lambda sample: sample.complexity)
    found: list[Sample] = []
    for donor in donors if missing > 0 else ():
        trimmed = trim(donor, number, reader, scheme)
        if trimmed is not None and trimmed.prompt not in known:
            known.add(trimmed.prompt)
            found.append(trimmed)
        if len(found) == missing:
            break
    return found


def trim(start: Sample, goal: int, reader: Reader, scheme: Scheme) -> Sample | None:
    """Remove one secondary element after the other until the sample lies in the tier `goal` and has a fitting length.
    None where every removal would go past either."""
    current: Sample | None = start
    while current is not None and not (current.tier == goal and scheme.fits(current)):
        candidates = (scheme.sample(p, reader.count(p), start.prompt) for p in reader.simpler(current.prompt))
        current = next((c for c in candidates if _leads_on(c, current, goal, scheme)), None)
    return current


def _leads_on(candidate: Sample, before: Sample, goal: int, scheme: Scheme) -> bool:
    """Neither past the region nor in a circle."""
    shrunk = (candidate.parts.words, candidate.complexity) < (before.parts.words, before.complexity)
    return shrunk and candidate.tier >= goal and candidate.parts.words >= scheme.words[0]
