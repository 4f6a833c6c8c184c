"""Seeded prompts and edits of the built-in world, and the tenth that is held back."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

from ..errors import GrammarError
from .edits import Anchor, Edit, apply, say
from .phrases import PREFIX, prompt_words, sayable
from .scene import (
    CELLS,
    COLORS,
    MAX_COUNT,
    RELATIONS,
    SHAPES,
    SIZES,
    Group,
    Item,
    Noun,
    Relation,
    Scene,
    Spec,
    realise,
)

CATEGORIES = ("single", "two", "counting", "colors", "position", "attribution", "complex")
"""GenEval's six, and prompts of 3 to 8 objects with relations."""

_SIZED = 0.25


def held_back(text: str) -> bool:
    """Whether a prompt or an instruction belongs to the tenth that no training sees."""
    body = " ".join(text.lower().removeprefix(PREFIX).split())
    return hashlib.sha256(f"clvr-shapes-288:{body}".encode()).digest()[0] % 10 == 0


def noun(rng: random.Random, color: bool = True, sized: float = _SIZED) -> Noun:
    size = rng.choice(("small", "large")) if rng.random() < sized else None
    return Noun(rng.choice(SHAPES), rng.choice(COLORS) if color else None, size)


def spec(category: str, rng: random.Random) -> Spec:
    """A random spec of a category, satisfiable on the grid."""
    while True:
        candidate = _SPECS[category](rng)
        try:
            realise(candidate, random.Random(0))
        except GrammarError:
            continue
        return candidate


def _single(rng: random.Random) -> Spec:
    return Spec((Group(noun(rng, color=False)),))


def _two(rng: random.Random) -> Spec:
    first, second = rng.sample(SHAPES, 2)
    a, b = noun(rng, color=False), noun(rng, color=False)
    return Spec((Group(Noun(first, None, a.size)), Group(Noun(second, None, b.size))))


def _counting(rng: random.Random) -> Spec:
    return Spec((Group(noun(rng, color=rng.random() < 0.3, sized=0.15), rng.randint(2, MAX_COUNT)),))


def _colors(rng: random.Random) -> Spec:
    return Spec((Group(noun(rng)),))


def _position(rng: random.Random) -> Spec:
    base = _two(rng) if rng.random() < 0.5 else _attribution(rng)
    return Spec(base.groups, (Relation(0, rng.choice(RELATIONS), 1),))


def _attribution(rng: random.Random) -> Spec:
    first, second = rng.sample(SHAPES, 2)
    red, blue = rng.sample(COLORS, 2)
    a, b = noun(rng), noun(rng)
    return Spec((Group(Noun(first, red, a.size)), Group(Noun(second, blue, b.size))))


def _complex(rng: random.Random) -> Spec:
    return complex_spec(rng, rng.choice((3, 3, 4, 4, 4, 5, 5, 5, 6, 7, 8)))


def complex_spec(rng: random.Random, total: int) -> Spec:
    """Exactly `total` objects in two to five groups, with relations from a later group to an earlier one."""
    counts: list[int] = []
    while sum(counts) < total:
        counts.append(min(rng.choice((1, 1, 1, 2, 2, 3)), total - sum(counts)))
    nouns: list[Noun] = []
    while len(nouns) < len(counts):
        new = noun(rng, sized=0.1)
        if not any(new.covers(n) or n.covers(new) for n in nouns):
            nouns.append(new)
    groups = tuple(Group(n, c) for n, c in zip(nouns, counts, strict=True))
    relations = tuple(
        Relation(i, rng.choice(RELATIONS), rng.randrange(i)) for i in range(1, len(groups)) if rng.random() < 0.5
    )
    absent = (Noun(None, "black"),) if rng.random() < 0.08 and all(n.color != "black" for n in nouns) else ()
    return Spec(groups, relations, absent)


_SPECS: dict[str, Callable[[random.Random], Spec]] = {
    "single": _single,
    "two": _two,
    "counting": _counting,
    "colors": _colors,
    "position": _position,
    "attribution": _attribution,
    "complex": _complex,
}


def prompt(category: str, rng: random.Random, held: bool | None = None) -> tuple[str, Spec]:
    """A prompt and its spec; `held` asks for one inside (True) or outside (False) the held-back tenth."""
    while True:
        candidate = spec(category, rng)
        text = prompt_words(candidate, prefix=rng.random() < 0.5)
        if sayable(candidate) and held in (None, held_back(text)):
            return text, candidate


def canvas(rng: random.Random, least: int = 1, most: int = 6) -> Scene:
    """A scene to edit: objects anywhere on the grid, descriptions often alike."""
    count = rng.randint(least, most)
    items = [_item(rng, cell) for cell in rng.sample(CELLS, count)]
    if count > 1 and rng.random() < 0.25:
        twin = items[0]
        items[1] = Item(twin.shape, twin.color, twin.size, items[1].cell)
    return Scene(tuple(items))


def _item(rng: random.Random, cell: tuple[int, int]) -> Item:
    size = rng.choice(SIZES) if rng.random() < 0.4 else "medium"
    return Item(rng.choice(SHAPES), rng.choice(COLORS), size, cell)


def edit(kind: str, scene: Scene, rng: random.Random, placed: float = 0.5) -> Edit | None:
    """A random edit of that kind that can be done on the scene; None where a try found none.

    `placed` is the share that names a row and column."""
    by_place = rng.random() < placed
    item = rng.choice(scene.items) if scene.items else None
    if kind == "add":
        where = _where(scene, rng, by_place, rng.random() < 0.6, None)
        candidate = Edit("add", new=noun(rng, sized=0.2), to=where[0], anchor=where[1])
    elif item is None:
        return None
    else:
        cell = item.cell if by_place or len(scene.matching(item.noun)) > 1 else None
        target = item.noun
        if kind == "move":
            where = _where(scene, rng, by_place, True, item)
            candidate = Edit("move", target, cell if not by_place else None, to=where[0], anchor=where[1])
        else:
            candidate = Edit(kind, target, cell, _change(kind, item, rng))
    try:
        apply(scene, candidate)
    except GrammarError:
        return None
    return candidate


def _change(kind: str, item: Item, rng: random.Random) -> Noun:
    if kind == "recolor":
        return Noun(color=rng.choice([c for c in COLORS if c != item.color]))
    if kind == "resize":
        return Noun(size=rng.choice([s for s in ("small", "large") if s != item.size]))
    if kind == "replace":
        while (new := noun(rng, sized=0.2)).matches(item):
            continue
        return new
    return Noun()


def _where(
    scene: Scene, rng: random.Random, by_place: bool, by_anchor: bool, moving: Item | None
) -> tuple[tuple[int, int] | None, Anchor | None]:
    if by_place:
        return rng.choice(scene.free()), None
    anchors = [i for i in scene.items if i is not moving and len(scene.matching(i.noun)) == 1]
    if by_anchor and anchors:
        return None, Anchor(rng.choice(RELATIONS), rng.choice(anchors).noun)
    return None, None


def edit_sample(kind: str, rng: random.Random, held: bool | None = None, placed: float = 0.5) -> tuple[Scene, Edit]:
    """A scene and an edit of it, with its instruction inside or outside the held-back tenth."""
    while True:
        scene = canvas(rng)
        candidate = edit(kind, scene, rng, placed)
        if candidate is not None and held in (None, held_back(say(candidate))):
            return scene, candidate
