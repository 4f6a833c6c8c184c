"""The built-in suite: held-back prompts of the built-in world, whose checks the measuring verifier can answer."""

from __future__ import annotations

import random
from functools import cache

from ..shapes.checks import checklist
from ..shapes.sampler import CATEGORIES, prompt
from ..shapes.scene import Spec
from .suite import Item, Suite

A_CATEGORY = 100
"""Prompts a category at most: few can be said of one object."""
_SEED = 1
_PATIENCE = 60
"""Prompts in a row that brought nothing new."""


@cache
def builtin() -> Suite:
    """Always the same prompts, none of which any training saw."""
    items = tuple(item for category in CATEGORIES for item in _category(category))
    return Suite("builtin", "Built-in world", items, "category")


def _category(category: str) -> list[Item]:
    rng = random.Random(f"{_SEED}/{category}")
    found: dict[str, Spec] = {}
    idle = 0
    while len(found) < A_CATEGORY and idle < _PATIENCE:
        text, spec = prompt(category, rng, held=True)
        idle = idle + 1 if text in found else 0
        found.setdefault(text, spec)
    return [_item(f"{category}-{i:03}", category, text, spec) for i, (text, spec) in enumerate(found.items())]


def _item(name: str, category: str, text: str, spec: Spec) -> Item:
    tags = {"category": category, "objects": str(spec.total)}
    return Item(name, text, tags, f"{name}.png", checklist(spec))
