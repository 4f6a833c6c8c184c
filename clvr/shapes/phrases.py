"""The built-in world's language, written: nouns, prompts and edits as text. `language` reads it back."""

from __future__ import annotations

from collections.abc import Sequence

from .scene import Cell, Group, Noun, Spec

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
PREFIX = "a photo of "


def plural(shape: str) -> str:
    return shape + ("es" if shape == "cross" else "s")


def noun_words(noun: Noun, many: bool = False) -> str:
    """'large red circle', without an article; an open shape is a 'shape'."""
    shape = noun.shape or "shape"
    return " ".join(filter(None, (noun.size, noun.color, plural(shape) if many else shape)))


def counted(noun: Noun, count: int) -> str:
    """'a red circle', 'two red circles'."""
    if count == 1:
        return f"a {noun_words(noun)}"
    return f"{NUMBERS[count] if count < len(NUMBERS) else count} {noun_words(noun, many=True)}"


def the(noun: Noun, count: int = 1) -> str:
    return f"the {noun_words(noun, many=count > 1)}"


def place(cell: Cell) -> str:
    """'in row two column three'; rows and columns count from one at the top left."""
    return f"in row {NUMBERS[cell[0] + 1]} column {NUMBERS[cell[1] + 1]}"


def group_words(group: Group) -> str:
    words = counted(group.noun, group.count)
    return f"{words} {place(group.cell)}" if group.cell else words


def prompt_words(spec: Spec, prefix: bool = False) -> str:
    """A spec as a prompt that `language.parse` reads back to the same spec.

    Relations follow the mention of their later group: 'a red circle and a green square above the circle'."""
    said: set[int] = set()
    clauses = [_clause(spec, i, said) for i in range(len(spec.groups)) if i not in said]
    clauses += [f"no {noun_words(n, many=True)}" for n in spec.absent]
    return (PREFIX if prefix else "") + listed(clauses)


def _clause(spec: Spec, index: int, said: set[int]) -> str:
    """A group and what it stands in relation to; a chain where that is new and has a relation of its own."""
    said.add(index)
    words = group_words(spec.groups[index])
    while relation := next((r for r in spec.relations if r.a == index), None):
        index = relation.b
        other = spec.groups[index]
        if index in said:
            return f"{words} {relation.kind} {the(other.noun, other.count)}"
        said.add(index)
        words += f" {relation.kind} {group_words(other)}"
    return words


def listed(parts: Sequence[str]) -> str:
    """'x', 'x and y', 'x, y and z'."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def sayable(spec: Spec) -> bool:
    """Whether every relation starts at a group of its own, so that `prompt_words` says all of them."""
    starts = [r.a for r in spec.relations]
    return len(set(starts)) == len(starts)
