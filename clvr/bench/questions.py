"""GenEval's metadata as yes/no questions: an object, how many, which colour, where, how large.

What the official scorer detects is asked here. A count is a minimum, unless `exclude` or the suite makes it exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..trajectory import Check

_PAIRS = ("scissors", "skis")
_PLURALS = {
    "person": "people",
    "sheep": "sheep",
    "knife": "knives",
    "computer mouse": "computer mice",
    "broccoli": "heads of broccoli",
    **{name: name for name in _PAIRS},
}
_REGIONS = {"left": "left part", "right": "right part", "above": "upper part", "below": "lower part"}
_RELATIONS = {"left of": "to the left of", "right of": "to the right of", "above": "above", "below": "below"}
REGIONS, RELATIONS, SIZES = tuple(_REGIONS), tuple(_RELATIONS), ("larger", "smaller")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")


@dataclass(frozen=True)
class Wanted:
    """One entry of `include`. `position`: the relation, and the index of the entry that it is to."""

    name: str
    count: int = 1
    color: str = ""
    position: tuple[str, int] | None = None
    region: str = ""
    size: str = ""
    exact: bool = False

    @property
    def many(self) -> bool:
        return self.count > 1

    @property
    def words(self) -> str:
        return plural(self.name) if self.many else self.name

    @property
    def verb(self) -> str:
        return "Are" if self.many or self.name in _PAIRS else "Is"


def checks(wanted: Sequence[Wanted]) -> tuple[Check, ...]:
    """The checks of a picture that is to show all of `wanted`, each attribute under the object that it needs."""
    made: list[Check] = []
    for entry, name in zip(wanted, _names(wanted), strict=True):
        made.append(Check(name, f"Is there {a(entry.name)}?", "object"))
        if entry.many or entry.exact:
            made.append(Check(f"{name}-count", _count(entry), "count", name))
        if entry.color:
            made.append(Check(f"{name}-color", f"{entry.verb} {_the(entry)} {entry.color}?", "color", name))
        if entry.position:
            other = wanted[entry.position[1]]
            place = f"{_RELATIONS[entry.position[0]]} the {other.words}"
            made.append(Check(f"{name}-position", f"{entry.verb} {_the(entry)} {place}?", "position", name))
        if entry.region:
            place = f"in the {_REGIONS[entry.region]} of the image"
            made.append(Check(f"{name}-region", f"{entry.verb} {_the(entry)} {place}?", "position", name))
    made += _sizes(wanted)
    return tuple(made)


def a(noun: str) -> str:
    """With its article; what comes in pairs as one."""
    if noun in _PAIRS:
        return f"a pair of {noun}"
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def plural(noun: str) -> str:
    if noun in _PLURALS:
        return _PLURALS[noun]
    return noun + ("es" if noun.endswith(("s", "ch", "sh", "x")) else "s")


def _count(entry: Wanted) -> str:
    least = "exactly" if entry.exact else "at least"
    verb = "Are" if entry.many else "Is"
    return f"{verb} there {least} {entry.count} {entry.words}?"


def _the(entry: Wanted) -> str:
    return f"the {entry.words}"


def _sizes(wanted: Sequence[Wanted]) -> list[Check]:
    """'larger' and 'smaller' as drawn, one against the other: a question that needs the first of the two."""
    large = next(((w, n) for w, n in zip(wanted, _names(wanted), strict=True) if w.size == "larger"), None)
    small = next((w for w in wanted if w.size == "smaller"), None)
    if large is None or small is None:
        return []
    question = f"{large[0].verb} {_the(large[0])} drawn larger than {_the(small)}?"
    return [Check(f"{large[1]}-size", question, "size", large[1])]


def _names(wanted: Sequence[Wanted]) -> list[str]:
    """An id for each entry: its class, numbered where a class comes twice."""
    names: list[str] = []
    for entry in wanted:
        slug = entry.name.replace(" ", "-")
        same = sum(n == slug or n.startswith(f"{slug}~") for n in names)
        names.append(f"{slug}~{same + 1}" if same else slug)
    return names
