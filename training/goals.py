"""Held-back prompts of the built-in world with their exact checklists, as evaluations ask for them."""

from __future__ import annotations

import random
from dataclasses import dataclass

from clvr import probe
from clvr.shapes.checks import checklist
from clvr.shapes.sampler import prompt
from clvr.shapes.scene import Spec
from clvr.trajectory import Check

TIERS = 4
SHARES = {"single": 4, "colors": 4, "two": 5, "counting": 8, "attribution": 16, "position": 18, "complex": 45}
"""How often each category is asked for another prompt; those with few prompts run dry."""


@dataclass(frozen=True)
class Task:
    number: int
    text: str
    checks: tuple[Check, ...]
    complexity: float
    tier: int


def tasks(count: int, seed: int) -> list[Task]:
    """Held-back prompts, each once, in quartiles of complexity."""
    rng = random.Random(seed)
    found: dict[str, Spec] = {}
    names, weights = list(SHARES), list(SHARES.values())
    while len(found) < count:
        text, spec = prompt(rng.choices(names, weights)[0], rng, held=True)
        found.setdefault(text, spec)
    values = [probe.complexity(probe.of_spec(spec, text)) for text, spec in found.items()]
    parts = probe.tiers(values, TIERS)
    rows = zip(found.items(), values, parts, strict=True)
    return [Task(n, text, checklist(spec), value, tier) for n, ((text, spec), value, tier) in enumerate(rows)]
