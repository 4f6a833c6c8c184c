"""What a benchmark is to everything here: prompts with tags, what a judge is asked, and the scores that follow."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..trajectory import Check, encode
from ..vlm.rating import Rubric

Values = Mapping[str, float | None]
"""Scores of one image by measure; None where it was not judged."""


@dataclass(frozen=True)
class Item:
    """One prompt. `id` is unique in its suite and can be a file's name. `image` is the path of its picture within
    the folder that the official scorer reads, `beside` further files there. A judge answers `checks`, or gives the
    scores of `rubrics`, told `explanation` besides the prompt."""

    id: str
    prompt: str
    tags: Mapping[str, str]
    image: str
    checks: tuple[Check, ...] = ()
    rubrics: tuple[Rubric, ...] = ()
    explanation: str = ""
    beside: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Of all that a verdict depends on besides the image."""
        asked = [self.prompt, self.explanation, encode(self.checks), encode(self.rubrics)]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


@dataclass(frozen=True)
class Measure:
    """A score that each image has, from 0 to `highest`. `yes_or_no`: 0 or 1, so that its mean is a proportion."""

    name: str
    words: str
    yes_or_no: bool = False
    highest: float = 1.0


@dataclass(frozen=True)
class Overall:
    """A weighted mean of a measure's means over the values of a tag."""

    name: str
    measure: str
    tag: str
    weights: Mapping[str, float]


CORRECT = Measure("correct", "images on which every check holds", yes_or_no=True)
CHECKS = Measure("checks", "checks that hold, by image")


@dataclass(frozen=True)
class Suite:
    """`tag` is the kind of tag that macro averages run over; the first measure is the headline; `values` turns the
    scores of a rubric into those of the measures."""

    name: str
    title: str
    items: tuple[Item, ...]
    tag: str
    measures: tuple[Measure, ...] = (CORRECT, CHECKS)
    overalls: tuple[Overall, ...] = ()
    values: Callable[[Values], Values] = dict
    official: str = ""

    @property
    def rated(self) -> bool:
        """Whether its judge has to give scores, which only a VLM can."""
        return any(item.rubrics for item in self.items)

    @property
    def digest(self) -> str:
        listed = [(item.id, item.image, item.digest) for item in self.items]
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def spread(items: Sequence[Item], tag: str, limit: int | None) -> tuple[Item, ...]:
    """The first `limit` items, taken in turn from each value of the tag; a higher limit only adds to them."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.tags[tag], []).append(item)
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*groups.values()))
    return tuple(item for item in in_turn if item is not None)[:limit] if limit is not None else tuple(items)
