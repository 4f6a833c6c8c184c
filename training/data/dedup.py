"""No training prompt may be an evaluation prompt, nor nearly one (A.3), nor come twice.

Similarity is the Jaccard index of the sets of word trigrams. The search is exact: two sets with an index of at least t
share one of the first |A| - ceil(t |A|) + 1 members of each, in any order common to both, here the rarest first
(prefix filtering: Bayardo et al., Scaling up all pairs similarity search, 2007).
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from clvr.shapes.sampler import held_back

from .candidates import Prompt, evaluation
from .config import DedupConfig

_WORD = re.compile(r"\w+")
Kind = Literal["evaluation, exact", "evaluation, near", "held back", "twice, exact", "twice, near"]
KINDS: tuple[Kind, ...] = ("evaluation, exact", "evaluation, near", "held back", "twice, exact", "twice, near")
Shingle = tuple[str, ...]


@dataclass(frozen=True)
class Dropped:
    """A candidate that was left out, and what it is like: that prompt, where it stands, and how similar it is."""

    prompt: Prompt
    kind: Kind
    like: str = ""
    place: str = ""
    similarity: float = 1.0


def normal(text: str) -> str:
    """Its words alone, in lower case."""
    return " ".join(_WORD.findall(text.casefold()))


def shingles(text: str, size: int = 3) -> frozenset[Shingle]:
    """Word trigrams, with marks for beginning and end, so that the shortest text has some."""
    words = ["", "", *normal(text).split(), "", ""]
    return frozenset(tuple(words[i : i + size]) for i in range(len(words) - size + 1))


def jaccard(one: frozenset[Shingle], other: frozenset[Shingle]) -> float:
    return len(one & other) / len(one | other)


class Index:
    """Texts by their place, to be searched for near copies. `common` counts how often a shingle occurs at all."""

    def __init__(self, threshold: float, common: Mapping[Shingle, int]) -> None:
        self._threshold = threshold
        self._common = common
        self._texts: list[tuple[str, str, frozenset[Shingle]]] = []
        self._by_shingle: dict[Shingle, list[int]] = defaultdict(list)

    def add(self, place: str, text: str) -> None:
        grams = shingles(text)
        for gram in self._prefix(grams):
            self._by_shingle[gram].append(len(self._texts))
        self._texts.append((place, text, grams))

    def nearest(self, text: str) -> tuple[float, str, str] | None:
        """Similarity, place and text of the most similar one from the threshold on; the earliest of equals."""
        grams = shingles(text)
        met = {number for gram in self._prefix(grams) for number in self._by_shingle.get(gram, ())}
        scored = [(jaccard(grams, self._texts[number][2]), -number) for number in met]
        similarity, number = max(scored, default=(0.0, 0))
        if similarity < self._threshold:
            return None
        place, found, _ = self._texts[-number]
        return similarity, place, found

    def _prefix(self, grams: frozenset[Shingle]) -> list[Shingle]:
        ordered = sorted(grams, key=lambda gram: (self._common.get(gram, 0), gram))
        return ordered[: len(grams) - math.ceil(self._threshold * len(grams) - 1e-9) + 1]


def deduplicate(
    prompts: Sequence[Prompt], config: DedupConfig, world: bool = True
) -> tuple[list[Prompt], list[Dropped]]:
    """What may be used, and what was dropped. `world`: leave out the built-in world's held-back tenth too. Raises
    what `evaluation` raises."""
    tests = [pair for name in config.against for pair in evaluation(name)]
    search = _Search(tests, prompts, config, world)
    kept, dropped = [], []
    for prompt in prompts:
        match = search.match(prompt)
        if match is None:
            search.own.add(prompt.source, prompt.text)
            search.seen[normal(prompt.text)] = prompt.source
            kept.append(prompt)
        else:
            dropped.append(match)
    return kept, dropped


class _Search:
    def __init__(
        self, tests: Sequence[tuple[str, str]], prompts: Sequence[Prompt], config: DedupConfig, world: bool
    ) -> None:
        common = _counted([text for _, text in tests] + [p.text for p in prompts])
        self.exact = {normal(text): place for place, text in reversed(tests)}
        self.tests, self.own = Index(config.near, common), Index(config.near_own, common)
        self.seen: dict[str, str] = {}
        self.world = world
        for place, text in tests:
            self.tests.add(place, text)

    def match(self, prompt: Prompt) -> Dropped | None:
        return next(self._matches(prompt), None)

    def _matches(self, prompt: Prompt) -> Iterator[Dropped]:
        words = normal(prompt.text)
        if words in self.exact:
            yield Dropped(prompt, "evaluation, exact", prompt.text, self.exact[words])
        if near := self.tests.nearest(prompt.text):
            yield Dropped(prompt, "evaluation, near", near[2], near[1], near[0])
        if self.world and held_back(prompt.text):
            yield Dropped(prompt, "held back", place="the built-in world's held-back tenth")
        if words in self.seen:
            yield Dropped(prompt, "twice, exact", prompt.text, self.seen[words])
        if near := self.own.nearest(prompt.text):
            yield Dropped(prompt, "twice, near", near[2], near[1], near[0])


def _counted(texts: Iterable[str]) -> Counter[Shingle]:
    return Counter(gram for text in texts for gram in shingles(text))
