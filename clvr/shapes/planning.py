"""From what is there to what is wanted: which object stands for which, and the edits that are left to do."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .found import Found
from .scene import (
    CELLS,
    GRID,
    MIDDLE_FIRST,
    STEP,
    Cell,
    Item,
    Noun,
    Relation,
    Spec,
    entailed,
    forbidden,
    realise,
)

_NODES = 2000
"""Search nodes in all before every object is asked for in its planned place: a tenth of a second or so."""

KEEP, ALTER, MOVE, ADD = 0, 1, 1, 2
"""Costs. A fresh object leaves an old one to be removed, hence 2."""


@dataclass(frozen=True)
class Slot:
    """One wanted object: what is asked for, and the concrete object that is drawn for it."""

    group: int
    noun: Noun
    item: Item
    fixed: bool


@dataclass(frozen=True)
class Placement:
    """A slot's object: the one that was found (None: to be added), and the cell where it belongs."""

    slot: Slot
    found: Found | None
    cell: Cell

    @property
    def centre(self) -> tuple[float, float]:
        """Where it will be (x, y), as fractions of the picture."""
        if self.found is not None and self.found.cell == self.cell:
            return self.found.centre
        return (self.cell[1] + 0.5) / GRID, (self.cell[0] + 0.5) / GRID


@dataclass(frozen=True)
class Plan:
    placements: tuple[Placement, ...]
    leftover: tuple[Found, ...]


def slots(spec: Spec, seed: int) -> list[Slot]:
    """The wanted objects with their preferred cells, fixed by the seed. Raises GrammarError where none do."""
    items = iter(realise(spec, random.Random(seed)).items)
    return [
        Slot(g, group.noun, next(items), group.cell is not None)
        for g, group in enumerate(spec.groups)
        for _ in range(group.count)
    ]


def make_plan(spec: Spec, wanted: Sequence[Slot], found: Sequence[Found]) -> Plan:
    """The cheapest way to get there that the search finds: keep, alter, move, add, in this order."""
    search = _Search(spec, wanted, found)
    for budget in range(search.least([]), ADD * len(wanted) + 1):
        placements = search.place([], budget)
        if placements is not None:
            break
    else:
        placements = _as_drawn(wanted, found)
    used = {id(p.found) for p in placements if p.found is not None}
    return Plan(tuple(placements), tuple(f for f in found if id(f) not in used))


def suits(spec: Spec, slot: Slot, one: Found) -> bool:
    """Whether a found object can stand for the slot as it is."""
    wrong = any(one.fits(n) is not False for n in forbidden(spec, slot.noun))
    return one.clear and one.fits(slot.noun) is True and not wrong


def other_cells(spec: Spec, plan: Plan, index: int, taken: set[Cell]) -> Iterator[Cell]:
    """Free cells where the placement at `index` could go as well, given all others."""
    mine = plan.placements[index]
    if mine.slot.fixed:
        return
    others = [p for i, p in enumerate(plan.placements) if i != index]
    relations = entailed(spec).relations
    for cell in MIDDLE_FIRST:
        moved = Placement(mine.slot, None, cell)
        if cell not in taken and cell != mine.cell and _agrees(relations, moved, others):
            yield cell


class _Search:
    """Depth first over the slots, with a budget for the cost."""

    def __init__(self, spec: Spec, wanted: Sequence[Slot], found: Sequence[Found]) -> None:
        self.spec, self.wanted, self.found = spec, wanted, found
        self.relations = entailed(spec).relations
        self.suits = {(i, j): suits(spec, s, f) for i, s in enumerate(wanted) for j, f in enumerate(found)}
        occupied = {f.cell for f in found}
        self.free = [c for c in MIDDLE_FIRST if c not in occupied]
        self.nodes = 0

    def place(self, done: list[Placement], budget: int) -> list[Placement] | None:
        if len(done) == len(self.wanted):
            return done
        self.nodes += 1
        if self.nodes > _NODES or self.least(done) > budget:
            return None
        for cost, option in self.options(done):
            if cost <= budget and _agrees(self.relations, option, done):
                result = self.place([*done, option], budget - cost)
                if result is not None:
                    return result
        return None

    def least(self, done: Sequence[Placement]) -> int:
        """A lower bound for the cost of the rest: objects that are not there must be added."""
        unused = len(self.found) - sum(p.found is not None for p in done)
        return ADD * max(0, len(self.wanted) - len(done) - unused)

    def options(self, done: Sequence[Placement]) -> Iterator[tuple[int, Placement]]:
        """What may become of the next slot, cheapest first."""
        index = len(done)
        slot = self.wanted[index]
        used = {id(p.found) for p in done if p.found is not None}
        taken = {p.cell for p in done}
        left = [(j, f) for j, f in enumerate(self.found) if id(f) not in used]
        here = [(j, f) for j, f in left if f.cell not in taken and (not slot.fixed or f.cell == slot.item.cell)]
        here.sort(key=lambda pair: (not self.suits[index, pair[0]], -_likeness(slot, pair[1])))
        for j, one in here:
            yield KEEP if self.suits[index, j] else ALTER, Placement(slot, one, one.cell)
        cells = [c for c in self.cells(slot, done) if c not in taken]
        movable = next((f for j, f in left if self.suits[index, j]), None)
        if movable is not None:
            for cell in cells:
                yield MOVE, Placement(slot, movable, cell)
        for cell in cells:
            yield ADD, Placement(slot, None, cell)

    def cells(self, slot: Slot, done: Sequence[Placement]) -> list[Cell]:
        """Free cells, the planned one first, then those beside related objects, then from the middle."""
        if slot.fixed:
            return [slot.item.cell] if slot.item.cell in self.free else []
        beside = [_beside(slot.group, r, p) for p in done for r in self.relations]
        first = [slot.item.cell, *(c for c in beside if c)]
        return [c for c in dict.fromkeys([*first, *self.free]) if c in self.free]


def _beside(group: int, relation: Relation, other: Placement) -> Cell | None:
    """The cell next to `other` in which this relation holds for an object of `group`."""
    row, column = STEP[relation.kind]
    if (relation.a, relation.b) == (group, other.slot.group):
        cell = (other.cell[0] + row, other.cell[1] + column)
    elif (relation.b, relation.a) == (group, other.slot.group):
        cell = (other.cell[0] - row, other.cell[1] - column)
    else:
        return None
    return cell if cell in CELLS else None


def _agrees(relations: Sequence[Relation], new: Placement, others: Sequence[Placement]) -> bool:
    for other in others:
        pair = (new.slot.group, other.slot.group)
        for r in relations:
            if (r.a, r.b) == pair and not _lies(new, r.kind, other):
                return False
            if (r.b, r.a) == pair and not _lies(other, r.kind, new):
                return False
    return True


def _lies(a: Placement, kind: str, b: Placement) -> bool:
    row, column = STEP[kind]
    apart = (a.centre[0] - b.centre[0]) * column + (a.centre[1] - b.centre[1]) * row
    return apart >= 0.5 / GRID


def _likeness(slot: Slot, one: Found) -> int:
    """How many parts of a found object are right already; being in the planned cell counts half."""
    item = one.item
    parts = [(slot.noun.shape, item.shape), (slot.noun.color, item.color), (slot.noun.size, item.size)]
    return 2 * sum(want in (None, have) for want, have in parts) + (one.cell == slot.item.cell)


def _as_drawn(wanted: Sequence[Slot], found: Sequence[Found]) -> list[Placement]:
    """Every slot in its planned cell, whatever stands there now."""
    return [Placement(s, next((f for f in found if f.cell == s.item.cell), None), s.item.cell) for s in wanted]
