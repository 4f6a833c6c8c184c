"""What a detector can answer: yes/no questions in English, read into a number, a colour or a place of things."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Relation = Literal["left", "right", "above", "below"]
Comparison = Literal["exactly", "at least", "at most"]

COLORS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray",
)  # fmt: skip
_SAME = {"grey": "gray", "violet": "purple", "golden": "yellow"}
_NUMBERS = {
    word: number
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
    )
}


@dataclass(frozen=True)
class Thing:
    """What to look for, in the singular, and the colour that it is to have."""

    noun: str
    color: str | None = None

    def __str__(self) -> str:
        return f"{self.color} {self.noun}" if self.color else self.noun


@dataclass(frozen=True)
class Number:
    """How many of a thing there are to be; presence is at least 1, absence exactly 0."""

    thing: Thing
    number: int
    comparison: Comparison = "exactly"

    def holds(self, count: int) -> bool:
        if self.comparison == "exactly":
            return count == self.number
        return count >= self.number if self.comparison == "at least" else count <= self.number


@dataclass(frozen=True)
class Colored:
    """Whether every instance of a thing has a colour; the thing itself is named without it."""

    thing: Thing
    color: str


@dataclass(frozen=True)
class Placed:
    """Whether one thing lies left of, right of, above or below another."""

    thing: Thing
    relation: Relation
    other: Thing


Question = Number | Colored | Placed

_COLOR = "|".join((*COLORS, *_SAME))
_SCENE = r"(?: (?:visible|shown|depicted|present))?(?: (?:in|on|within) (?:the|this) (?:image|picture|photo|scene))?"
_SHOWS = r"does (?:the|this) (?:image|picture|photo|scene) (?:show|contain|include|have|depict|feature)"
_OPENING = rf"(?:(?:is|are) there|{_SHOWS}|can you see|do you see)"
_THING = r"[a-z][a-z '\-]*?"
_COUNT = rf"\d{{1,3}}|{'|'.join(_NUMBERS)}"
_SIDES: dict[str, Relation] = {
    "to the left of": "left",
    "left of": "left",
    "on the left of": "left",
    "on the left side of": "left",
    "to the right of": "right",
    "right of": "right",
    "on the right of": "right",
    "on the right side of": "right",
    "above": "above",
    "below": "below",
}
_SIDE = "|".join(sorted(_SIDES, key=len, reverse=True))
_UNCLEAR = re.compile(
    r"\b(and|or|with|without|that|which|who|whose|of|in|on|at|by|near|behind|between|wearing|holding|each|all"
    r"|both|not|but|than|next|same|other|only|from|made|over|under|above|below|beneath|left|right|top|bottom)\b"
    r"|\w \w+ing$"
)
"""Words with which a description says more than a detector's box can show."""


def read(question: str) -> Question | None:
    """The question, or None where it is not of a form that is known for certain."""
    text = re.sub(r"\s+", " ", question.strip().lower().rstrip("?. "))
    for pattern, make in _FORMS:
        match = re.fullmatch(pattern, text)
        if match:
            return make(match)
    return None


def _thing(words: str, plural: bool = False) -> Thing | None:
    words = re.sub(r"^(?:a|an|the|any|some) ", "", words.strip())
    match = re.fullmatch(rf"(?:({_COLOR}) )?(.+)", words)
    if match is None or _UNCLEAR.search(match[2]) or len(match[2].split()) > 4:
        return None
    noun = singular(match[2]) if plural else match[2]
    return Thing(noun, _color(match[1]) if match[1] else None)


def _color(word: str) -> str:
    return _SAME.get(word, word)


def singular(noun: str) -> str:
    """'apples' -> 'apple', 'boxes' -> 'box', 'glasses' -> 'glass'; what ends otherwise stays."""
    irregular = {"people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse"}
    *before, last = noun.split()
    if last in irregular:
        last = irregular[last]
    elif last.endswith("ies") and len(last) > 4:
        last = f"{last[:-3]}y"
    elif last.endswith(("ches", "shes", "xes", "sses")):
        last = last[:-2]
    elif last.endswith("s") and not last.endswith(("ss", "us")):
        last = last[:-1]
    return " ".join([*before, last])


def _number(match: re.Match[str]) -> Number | None:
    words = match["count"]
    count = int(words) if words.isdigit() else _NUMBERS[words]
    thing = _thing(match["thing"], plural=count != 1)
    if thing is None:
        return None
    how = (match["how"] or "exactly").strip()
    if how == "more than":
        return Number(thing, count + 1, "at least")
    if how in ("fewer than", "less than"):
        return Number(thing, count - 1, "at most")
    return Number(thing, count, "at least" if how == "at least" else "at most" if how == "at most" else "exactly")


def _present(match: re.Match[str]) -> Number | None:
    thing = _thing(match["thing"], plural=match["article"] in ("any ", "some "))
    return thing and Number(thing, 1, "at least")


def _absent(match: re.Match[str]) -> Number | None:
    thing = _thing(match["thing"], plural=True)
    return thing and Number(thing, 0)


def _colored(match: re.Match[str]) -> Colored | None:
    thing = _thing(match["thing"], plural=match["verb"] == "are")
    return Colored(Thing(thing.noun), _color(match["color"])) if thing and thing.color is None else None


def _placed(match: re.Match[str]) -> Placed | None:
    thing, other = _thing(match["thing"]), _thing(match["other"])
    return Placed(thing, _SIDES[match["side"]], other) if thing and other else None


_FORMS: tuple[tuple[str, Callable[[re.Match[str]], Question | None]], ...] = (
    (
        rf"{_OPENING} (?P<how>exactly |at least |at most |more than |fewer than |less than |only )?"
        rf"(?P<count>{_COUNT}) (?P<thing>{_THING}){_SCENE}",
        _number,
    ),
    (rf"{_OPENING} no (?P<thing>{_THING}){_SCENE}", _absent),
    (rf"is the (?:image|picture|photo|scene) free of (?P<thing>{_THING})", _absent),
    (rf"is (?:the|a|an) (?P<thing>{_THING}) (?P<side>{_SIDE}) (?:the |a |an )(?P<other>{_THING}){_SCENE}", _placed),
    (rf"(?P<verb>is|are) the (?P<thing>{_THING}) (?P<color>{_COLOR})(?: in colou?r)?", _colored),
    (rf"{_OPENING} (?P<article>a |an |any |some )(?P<thing>{_THING}){_SCENE}", _present),
    (rf"is (?P<article>a |an )(?P<thing>{_THING}) (?:visible|shown|depicted|present){_SCENE}", _present),
)
