"""Blind comparison of two pictures (3.1): the judge does not know which is whose, and the order is random."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clvr.ports import Comparer
from clvr.trajectory import Goal

from .records import Vote

if TYPE_CHECKING:
    from PIL.Image import Image


def prefer(judge: Comparer, mine: Image, other: Image, goal: Goal, orders: random.Random, tries: int = 2) -> Vote:
    """One judge's vote on whether `mine` is the better one, asked again where it cannot tell. A judge that never can
    is a tie, which is no preference. Raises what the judge raises that was named wrongly."""
    first = orders.random() < 0.5
    shown = (mine, other) if first else (other, mine)
    said = judge.prefer(*shown, goal)
    usage = said.usage
    while said.first is None and tries > 1:
        said, tries = judge.prefer(*shown, goal), tries - 1
        usage += said.usage
    note = "; ".join(evidence.note for evidence in said.evidence if evidence.note)
    if said.first is None:
        return Vote(judge.name, first, 0.5, f"cannot tell: {note}" if note else "cannot tell", usage)
    return Vote(judge.name, first, said.first if first else 1 - said.first, note, usage)


def ballot(judges: Sequence[Comparer], mine: Image, baseline: Image, goal: Goal, seed: int) -> tuple[Vote, ...]:
    """Every judge's vote, each in an order of its own."""
    orders = random.Random(f"{seed}/ballot")
    return tuple(prefer(judge, mine, baseline, goal, orders) for judge in judges)


def unanimous(votes: Sequence[Vote]) -> bool:
    """Whether every judge prefers the trajectory's picture; a tie is no preference."""
    return bool(votes) and all(vote.preferred > 0.5 for vote in votes)
