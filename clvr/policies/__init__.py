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

SUMMARIES: dict[str, str] = {
    "clvr": "the controller decides what every round is about, as in the paper; for most prompts",
    "director": "in stages from global to local, one or two failed checks a round; for long lists of constraints",
    "strokes": "object by object, each inspected before the next one begins; for crowded scenes",
    "auto": "all at once where that is likely to work, else in stages, and another approach where a round did not "
    "help; when in doubt",
    "one-shot": "the whole prompt at once, afresh every round: with candidates, best-of-N; for easy prompts",
}
"""What each does and when to use it, in a line."""


def find_policy(name: str) -> Policy:
    """Raises FormatError for a name that is not in POLICIES."""
    if name not in POLICIES:
        raise FormatError(f"There is no policy '{name}'.", f"Known are {', '.join(POLICIES)}.")
    return POLICIES[name]


__all__ = ["POLICIES", "SUMMARIES", "Means", "Policy", "Ruling", "find_policy"]
