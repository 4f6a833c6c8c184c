"""One shot or in stages: what a checklist's size and kinds say about drawing it at once (VisionDirector)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..trajectory import Check, CheckKind

FEASIBILITY: Mapping[CheckKind, float] = {
    "object": 0.98,
    "style": 0.95,
    "color": 0.95,
    "shape": 0.95,
    "size": 0.9,
    "other": 0.9,
    "count": 0.9,
    "absence": 0.9,
    "position": 0.7,
    "text": 0.7,
}
"""The chance that one drawing satisfies one check of a kind: rounded from what distilled models of 4 to 12 B reach
on GenEval's tasks, a task of two or three checks being their product. An order of magnitude, not a promise."""
LIKELY = 0.5
"""A one-shot drawing is tried first where one of a round's candidates is at least this likely to satisfy all."""


def chance(checks: Sequence[Check]) -> float:
    """The chance in (0, 1] that one drawing satisfies every check, as if each stood alone."""
    return math.prod(FEASIBILITY[check.kind] for check in checks)


def one_shot(checks: Sequence[Check], candidates: int) -> bool:
    """Whether a round of so many independent drawings is likely to hold one that satisfies every check."""
    return 1 - (1 - chance(checks)) ** max(1, candidates) >= LIKELY
