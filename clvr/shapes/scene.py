"""What a picture of the built-in world holds: shapes on a 4 x 4 grid, and the layouts that satisfy a prompt."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import GrammarError

SHAPES = ("circle", "square", "triangle", "cross")
COLORS = ("red", "green", "blue", "yellow", "purple", "black")
SIZES = ("small", "medium", "large")
RELATIONS = ("left of", "right of", "above", "below")
GRID = 4
MAX_COUNT = 6
CAPACITY = GRID * GRID

Cell = tuple[int, int]
"""Row, column, from 0 at the top left."""

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
STEP = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
"""Where a cell's neighbour in that relation lies: (row, column) offsets."""


@dataclass(frozen=True)
class Noun:
    """A description: any of its parts may be open (None)."""

    shape: str | None = None
    color: str | None = None
    size: str | None = None

    def matches(self, item: Item) -> bool:
        return self.shape in (None, item.shape) and self.color in (None, item.color) and self.size in (None, item.size)

    def covers(self, other: Noun) -> bool:
        """True when whatever fits `other` fits this description too."""
        return (
            self.shape in (None, other.shape) and self.color in (None, other.color) and self.size in (None, other.size)
        )


@dataclass(frozen=True)
class Item:
    """One object in a cell of the grid."""

    shape: str
    color: str
    size: str
    cell: Cell

    @property
    def noun(self) -> Noun:
        return Noun(self.shape, self.color, None if self.size == "medium" else self.size)


@dataclass(frozen=True)
class Group:
    """`count` objects of one description, in `cell` where a place was named (count is 1 then)."""

    noun: Noun
    count: int = 1
    cell: Cell | None = None


@dataclass(frozen=True)
class Relation:
    """Every object of group `a` lies `kind` every object of group `b`."""

    a: int
    kind: str
    b: int


@dataclass(frozen=True)
class Spec:
    """What a prompt asks for."""

    groups: tuple[Group, ...]
    relations: tuple[Relation, ...] = ()
    absent: tuple[Noun, ...] = ()

    @property
    def total(self) -> int:
        return sum(g.count for g in self.groups)


@dataclass(frozen=True)
class Scene:
    items: tuple[Item, ...]

    def at(self, cell: Cell) -> Item | None:
        return next((i for i in self.items if i.cell == cell), None)

    def matching(self, noun: Noun) -> list[Item]:
        return [i for i in self.items if noun.matches(i)]

    def free(self) -> list[Cell]:
        taken = {i.cell for i in self.items}
        return [c for c in CELLS if c not in taken]

    def without(self, item: Item) -> Scene:
        return Scene(tuple(i for i in self.items if i is not item))

    def plus(self, *items: Item) -> Scene:
        return Scene((*self.items, *items))

    def swapped(self, item: Item, **changes: object) -> Scene:
        new = dataclasses.replace(item, **changes)  # type: ignore[arg-type]
        return Scene(tuple(new if i is item else i for i in self.items))


CELLS: tuple[Cell, ...] = tuple((r, c) for r in range(GRID) for c in range(GRID))
MIDDLE_FIRST: tuple[Cell, ...] = tuple(sorted(CELLS, key=lambda p: ((p[0] - 1.5) ** 2 + (p[1] - 1.5) ** 2, p[0], p[1])))
"""Where an object goes that was given no place: the free cell nearest the middle, then in reading order."""

_BLOCKS = {1: (1, 1), 2: (1, 2), 3: (1, 3), 4: (2, 2), 5: (2, 3), 6: (2, 3)}
"""Rows and columns of the block in which a group of that many stands."""


def related(a: Cell, kind: str, b: Cell) -> bool:
    """Whether cell a lies `kind` cell b: strictly, along that axis."""
    row, column = STEP[kind]
    return (a[0] - b[0]) * row + (a[1] - b[1]) * column > 0


def entailed(spec: Spec) -> Spec:
    """The spec with the relations that overlapping descriptions bring along: a relation of 'a circle'
    holds for the red circle of another group as well."""
    relations: dict[Relation, None] = {}
    for r in spec.relations:
        a, b = spec.groups[r.a].noun, spec.groups[r.b].noun
        if a == b:
            relations[r] = None
            continue
        for i, left in enumerate(spec.groups):
            for j, right in enumerate(spec.groups):
                if meant_by(a, b, left.noun) and meant_by(b, a, right.noun) and i != j:
                    relations[Relation(i, r.kind, j)] = None
    return dataclasses.replace(spec, relations=tuple(relations))


def meant_by(noun: Noun, other: Noun, candidate: Noun) -> bool:
    """Whether `noun` means such an object in a sentence that names `other` too: in 'a circle left of a
    red circle' the first one is not red."""
    return noun.covers(candidate) and not (noun.covers(other) and other.covers(candidate))


def layout(spec: Spec, rng: random.Random) -> list[list[Cell]]:
    """Cells for each group: compact blocks in the order of mention, related blocks side by side, the whole
    shifted at random. Raises GrammarError where no placement on the grid satisfies the relations."""
    spec = entailed(spec)
    if spec.total > CAPACITY:
        raise GrammarError(
            f"{spec.total} objects do not fit the built-in world's {CAPACITY} places.", "Ask for fewer objects."
        )
    blocks = None if any(g.cell for g in spec.groups) else _blocks(spec, rng)
    cells = blocks or _search(spec, rng)
    if cells is None:
        raise GrammarError("These relations cannot all hold on a 4 x 4 grid.", "Drop or turn one of them.")
    return cells


def _blocks(spec: Spec, rng: random.Random) -> list[list[Cell]] | None:
    corners: list[Cell] = []
    shapes = [_BLOCKS.get(g.count, (2, 3)) for g in spec.groups]
    for i, shape in enumerate(shapes):
        relation = next((r for r in spec.relations if i in (r.a, r.b) and max(r.a, r.b) == i and r.a != r.b), None)
        corners.append(_corner(i, shape, relation, corners, shapes))
    cells = [_fill(c, s, g.count) for c, s, g in zip(corners, shapes, spec.groups, strict=True)]
    flat = [p for group in cells for p in group]
    top, left = min(r for r, _ in flat), min(c for _, c in flat)
    height, width = max(r for r, _ in flat) - top + 1, max(c for _, c in flat) - left + 1
    if height > GRID or width > GRID or len(set(flat)) < len(flat) or not _holds(spec, cells):
        return None
    dr, dc = rng.randint(0, GRID - height) - top, rng.randint(0, GRID - width) - left
    return [[(r + dr, c + dc) for r, c in group] for group in cells]


def _corner(index: int, shape: Cell, relation: Relation | None, corners: list[Cell], shapes: list[Cell]) -> Cell:
    if relation is not None:
        anchor = relation.b if relation.a == index else relation.a
        kind = relation.kind if relation.a == index else OPPOSITE[relation.kind]
        (row, column), (height, width) = corners[anchor], shapes[anchor]
        return {
            "left of": (row, column - shape[1]),
            "right of": (row, column + width),
            "above": (row - shape[0], column),
            "below": (row + height, column),
        }[kind]
    if not corners:
        return (0, 0)
    right = max(c + s[1] for c, s in zip((c for _, c in corners), shapes, strict=False))
    left, top = min(c for _, c in corners), min(r for r, _ in corners)
    if right + shape[1] - left <= GRID:
        return (top, right)
    return (max(c[0] + s[0] for c, s in zip(corners, shapes, strict=False)), left)


def _fill(corner: Cell, shape: Cell, count: int) -> list[Cell]:
    return [(corner[0] + k // shape[1], corner[1] + k % shape[1]) for k in range(count)]


def _holds(spec: Spec, cells: list[list[Cell]]) -> bool:
    return all(related(a, r.kind, b) for r in spec.relations for a in cells[r.a] for b in cells[r.b] if r.a != r.b)


def _search(spec: Spec, rng: random.Random, tries: int = 1000) -> list[list[Cell]] | None:
    """Random placement group by group, each restricted to the cells that its relations leave."""
    for _ in range(tries):
        placed = _place_randomly(spec, rng)
        if placed is not None:
            return placed
    return None


def _place_randomly(spec: Spec, rng: random.Random) -> list[list[Cell]] | None:
    taken: set[Cell] = {g.cell for g in spec.groups if g.cell}
    placed: list[list[Cell]] = []
    for i, group in enumerate(spec.groups):
        open_cells = [group.cell] if group.cell else [c for c in CELLS if c not in taken]
        options = [c for c in open_cells if all(_allowed(c, i, r, placed) for r in spec.relations)]
        if len(options) < group.count:
            return None
        chosen = rng.sample(options, group.count)
        taken.update(chosen)
        placed.append(chosen)
    return placed


def _allowed(cell: Cell, index: int, relation: Relation, placed: list[list[Cell]]) -> bool:
    if relation.a == index and relation.b < index:
        return all(related(cell, relation.kind, b) for b in placed[relation.b])
    if relation.b == index and relation.a < index:
        return all(related(a, relation.kind, cell) for a in placed[relation.a])
    return True


def realise(spec: Spec, rng: random.Random) -> Scene:
    """A scene that satisfies the spec exactly: open attributes drawn at random, nothing extra."""
    cells = layout(spec, rng)
    return Scene(
        tuple(
            _item(group.noun, cell, forbidden(spec, group.noun), rng)
            for group, places in zip(spec.groups, cells, strict=True)
            for cell in places
        )
    )


def forbidden(spec: Spec, noun: Noun) -> list[Noun]:
    """What an object that stands for `noun` must not be: absent things, and what other groups count."""
    return [*spec.absent, *(g.noun for g in spec.groups if not g.noun.covers(noun))]


def _item(noun: Noun, cell: Cell, absent: Sequence[Noun], rng: random.Random) -> Item:
    for _ in range(100):
        item = Item(noun.shape or rng.choice(SHAPES), noun.color or rng.choice(COLORS), noun.size or "medium", cell)
        if not any(n.matches(item) for n in absent):
            return item
    raise GrammarError(
        "The prompt leaves no shape or color for one of its objects.", "Drop a 'no …' or name the object."
    )
