"""The sentences in which the rule-based controller thinks. Training writes the same: keep them stable."""

from __future__ import annotations

from collections.abc import Sequence

from .edits import Edit
from .phrases import counted, group_words, listed, noun_words, the
from .scene import Group, Noun


def empty() -> str:
    return "Nothing is drawn yet."


def redraw() -> str:
    return "The picture is spoiled."


def done() -> str:
    return "Everything is there."


def missing(noun: Noun, count: int = 1) -> str:
    """'A blue square is missing.', 'Two blue squares are missing.'"""
    return _sentence(f"{counted(noun, count)} {'is' if count == 1 else 'are'} missing.")


def extra(noun: Noun) -> str:
    return f"There is one {noun_words(noun)} too many."


def forbidden(noun: Noun) -> str:
    return f"There should be no {noun_words(noun, many=True)}."


def wrong_color(target: Noun, color: str) -> str:
    return _sentence(f"{the(target)} should be {color}.")


def wrong_size(target: Noun, size: str) -> str:
    return _sentence(f"{the(target)} should be {size}.")


def wrong_shape(target: Noun, new: Noun) -> str:
    return _sentence(f"{the(target)} should be a {noun_words(new)}.")


def misplaced(target: Noun) -> str:
    return _sentence(f"{the(target)} is in the wrong place.")


def because(edit: Edit) -> str:
    """Why this edit is made, in one sentence. Raises KeyError for a kind that is none of `edits.KINDS`."""
    reasons = {
        "add": lambda: missing(edit.new),
        "remove": lambda: extra(edit.target),
        "recolor": lambda: wrong_color(edit.target, edit.new.color or "red"),
        "replace": lambda: wrong_shape(edit.target, edit.new),
        "move": lambda: misplaced(edit.target),
        "resize": lambda: wrong_size(edit.target, edit.new.size or "medium"),
    }
    return reasons[edit.kind]()


def draw(groups: Sequence[Group]) -> str:
    """The first round's instruction: 'draw a red circle in row two column two and a blue square'."""
    return f"draw {listed([group_words(g) for g in groups])}"


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:]
