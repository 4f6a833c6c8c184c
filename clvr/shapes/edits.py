"""Edits of a scene: what can be asked, how it is said, and what it does."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import GrammarError
from .phrases import noun_words, place, the
from .scene import MIDDLE_FIRST, STEP, Cell, Item, Noun, Scene, related

KINDS = ("add", "remove", "recolor", "replace", "move", "resize")


@dataclass(frozen=True)
class Anchor:
    """Where to: `relation` to the one object that `noun` describes."""

    relation: str
    noun: Noun


@dataclass(frozen=True)
class Edit:
    """One change. `target` describes the object that changes (with `cell` where the words alone are not
    enough), `new` what appears or what it turns into, `to` or `anchor` where it goes."""

    kind: str
    target: Noun = Noun()
    cell: Cell | None = None
    new: Noun = Noun()
    to: Cell | None = None
    anchor: Anchor | None = None


def say(edit: Edit) -> str:
    """The edit as an instruction; `language.parse_edit` reads it back."""
    target = the(edit.target) + (f" {place(edit.cell)}" if edit.cell else "")
    where = f" {place(edit.to)}" if edit.to else ""
    if edit.anchor:
        where = f" {edit.anchor.relation} {the(edit.anchor.noun)}"
    return {
        "add": f"add a {noun_words(edit.new)}{where}",
        "remove": f"remove {target}",
        "recolor": f"recolor {target} to {edit.new.color}",
        "replace": f"replace {target} with a {noun_words(edit.new)}",
        "move": f"move {target}{where.replace(' in row', ' to row')}",
        "resize": f"make {target} {edit.new.size}",
    }[edit.kind]


def apply(scene: Scene, edit: Edit) -> Scene:
    """The scene after the edit. Raises GrammarError where it cannot be done: no such object, several, no room."""
    if edit.kind == "add":
        new = edit.new
        cell = _destination(scene, edit, None)
        return scene.plus(Item(new.shape or "circle", new.color or "red", new.size or "medium", cell))
    item = find(scene, edit.target, edit.cell)
    if edit.kind == "remove":
        return scene.without(item)
    if edit.kind == "recolor":
        return scene.swapped(item, color=edit.new.color)
    if edit.kind == "resize":
        return scene.swapped(item, size=edit.new.size)
    if edit.kind == "replace":
        new = edit.new
        return scene.swapped(
            item, shape=new.shape or item.shape, color=new.color or item.color, size=new.size or "medium"
        )
    return scene.swapped(item, cell=_destination(scene, edit, item))


def find(scene: Scene, noun: Noun, cell: Cell | None = None) -> Item:
    """The one object that is meant. Raises GrammarError for none or several."""
    found = [i for i in scene.matching(noun) if cell in (None, i.cell)]
    if len(found) == 1:
        return found[0]
    what = the(noun) + (f" {place(cell)}" if cell else "")
    raise GrammarError(
        f"'{what}' means {len(found)} objects in this picture.", "Describe exactly one, or name its row and column."
    )


def _destination(scene: Scene, edit: Edit, moving: Item | None) -> Cell:
    free = [c for c in MIDDLE_FIRST if c in set(scene.free())]
    if edit.to is not None:
        if edit.to not in free:
            raise GrammarError(f"There is something {place(edit.to)} already.", "Name a free place.")
        return edit.to
    if edit.anchor is None:
        if not free:
            raise GrammarError("There is no free place left in this picture.", "Remove something first.")
        return free[0]
    anchor = find(scene, edit.anchor.noun)
    row, column = STEP[edit.anchor.relation]
    beside = (anchor.cell[0] + row, anchor.cell[1] + column)
    if beside in free:
        return beside
    options = [c for c in free if related(c, edit.anchor.relation, anchor.cell)]
    if not options or anchor is moving:
        raise GrammarError(f"Nothing is free {edit.anchor.relation} {the(edit.anchor.noun)}.", "Name another place.")
    return options[0]
