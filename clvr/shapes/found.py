"""What was seen in a picture, as plain data: `measure` makes it from pixels, `seen` from a scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..trajectory import Box
from .scene import GRID, Cell, Item, Noun, Scene


@dataclass(frozen=True)
class Found:
    """One object that was seen. A part that cannot be told is None. `centre` (x, y) and `box` are fractions
    of the picture, `confidence` is the agreement with the best shape in [0, 1], `likely` the best guess where
    a part cannot be told."""

    shape: str | None
    color: str | None
    size: str | None
    cell: Cell
    centre: tuple[float, float]
    box: Box
    confidence: float = 1.0
    likely: Noun = field(default_factory=Noun)

    @property
    def clear(self) -> bool:
        return self.shape is not None and self.color is not None

    @property
    def noun(self) -> Noun:
        """What can be said of it; medium stays unsaid."""
        return Noun(self.shape, self.color, None if self.size == "medium" else self.size)

    @property
    def item(self) -> Item:
        """The object with guesses for what cannot be told."""
        shape, color = self.shape or self.likely.shape or "circle", self.color or self.likely.color or "black"
        return Item(shape, color, self.size or "medium", self.cell)

    def fits(self, noun: Noun) -> bool | None:
        """Whether the description fits; None where that cannot be told."""
        pairs = [(noun.shape, self.shape), (noun.color, self.color), (noun.size, self.size)]
        wanted = [(want, have) for want, have in pairs if want is not None]
        if any(have is not None and have != want for want, have in wanted):
            return False
        return None if any(have is None for _, have in wanted) else True


def to_scene(found: Sequence[Found]) -> Scene | None:
    """The scene that was seen, in reading order; None where an object is unclear or two share a cell."""
    items = [Item(f.shape, f.color, f.size, f.cell) for f in found if f.shape and f.color and f.size]
    if len(items) < len(found) or len({i.cell for i in items}) < len(items):
        return None
    return Scene(tuple(items))


def seen(scene: Scene) -> tuple[Found, ...]:
    """A scene as a perfect eye sees it, in reading order."""
    return tuple(_ideal(item) for item in sorted(scene.items, key=lambda i: i.cell))


def _ideal(item: Item) -> Found:
    x, y = (item.cell[1] + 0.5) / GRID, (item.cell[0] + 0.5) / GRID
    half = 0.4 / GRID
    return Found(item.shape, item.color, item.size, item.cell, (x, y), (x - half, y - half, x + half, y + half))
