"""Named ways to run the loop: what a round is to work on, which candidate stands for it, whether it is kept."""

from __future__ import annotations

from ..errors import FormatError
from .auto import Auto
from .base import Means, Policy, Ruling
from .clvr import ClosedLoop
from .director import Director
from .oneshot import OneShot
from .strokes import Strokes

POLICIES: dict[str, Policy] = {p.name: p for p in (ClosedLoop(), Director(), Strokes(), Auto(), OneShot())}


def find_policy(name: str) -> Policy:
    """Raises FormatError for a name that is not in POLICIES."""
    if name not in POLICIES:
        raise FormatError(f"There is no policy '{name}'.", f"Known are {', '.join(POLICIES)}.")
    return POLICIES[name]


__all__ = ["POLICIES", "Means", "Policy", "Ruling", "find_policy"]
