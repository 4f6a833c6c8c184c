"""A checklist as text: one check a line, to be read and edited by a person.

    line      = [ id ":" ] [ "[" [ kind ] [ "x" weight ] "]" ] question [ "(if" id ")" ]
    id        = letters, digits, "_", "-" and whatever else is no space, none of : ( ) [ ] " and no # at its start;
                or any text, as a JSON string
    question  = the rest of the line; or any text, as a JSON string

Empty lines and those that begin with # say nothing. Without an id a check is named after its question, without a
kind it is of kind other, without a weight it counts 1; `(if id)` names the check that must hold for it."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn, cast, get_args

from ..errors import FormatError
from ..trajectory import Check, CheckKind
from .questions import slug
from .tidying import circular, unique

KINDS: tuple[CheckKind, ...] = get_args(CheckKind)
EXAMPLE = "[count x2] Are there exactly 3 red apples? (if apples)"
GUIDE = f"""# One check a line; yes is what the picture should show:
#   id: [kind xWEIGHT] question (if id of the check that must hold first)
# Id, kind, weight and (if …) may be left out. Kinds: {", ".join(KINDS)}.
"""
"""What stands above a checklist in a file."""

_PLAIN = r"[^\s:()\[\]\"#][^\s:()\[\]\"]*"
_NAME = rf"(?:{_PLAIN}|\"(?:[^\"\\]|\\.)*\")"
_ID = re.compile(rf"({_NAME})\s*:\s+")
_TAG = re.compile(r"\[([^\]]*)\]\s*")
_WEIGHT = re.compile(r"x([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)", re.IGNORECASE)
_CONDITION = re.compile(rf"\(if ({_NAME})\)$")
_ANY_CONDITION = re.compile(r"\(if\b[^()]*\)$")


@dataclass(frozen=True)
class _Line:
    number: int
    text: str
    id: str
    kind: CheckKind
    weight: float
    question: str
    parent: str | None

    def wrong(self, thing: str, remedy: str) -> NoReturn:
        _wrong(self.number, thing, remedy)


def to_text(checks: Iterable[Check]) -> str:
    """Checks as text that `parse_text` reads back as they are."""
    checks = list(checks)
    needed = {check.parent for check in checks}
    names = Counter(name for check in checks for name in {check.id, slug(check.question)})
    lines = [_written(check, check.id in needed or not _obvious(check, names)) for check in checks]
    return "".join(f"{line}\n" for line in lines)


def parse_text(text: str) -> tuple[Check, ...]:
    """The checks in a text; none where it holds none. Raises FormatError, which names the line, for what does not
    keep to the form, for an id that is there twice, and for a parent that is not there or depends on the check."""
    rows = text.removeprefix("\ufeff").split("\n")
    said = [(number, row.strip()) for number, row in enumerate(rows, 1)]
    lines = [_read(number, row) for number, row in said if row and not row.startswith("#")]
    ids = _ids(lines)
    parents = {name: line.parent for name, line in zip(ids, lines, strict=True)}
    for name, line in zip(ids, lines, strict=True):
        _require_parent(name, line, parents)
    pairs = zip(ids, lines, strict=True)
    return tuple(Check(name, line.question, line.kind, line.parent, line.weight) for name, line in pairs)


def _obvious(check: Check, names: Mapping[str, int]) -> bool:
    """Whether the check would be named like this without being told so."""
    return slug(check.question) == check.id and names[check.id] == 1


def _written(check: Check, named: bool) -> str:
    head = f"{_name(check.id)}: " if named else ""
    weight = "" if check.weight == 1 else f" x{check.weight!r}".removesuffix(".0")
    tail = f" (if {_name(check.parent)})" if check.parent is not None else ""
    line = f"{head}[{check.kind}{weight}] {check.question}{tail}"
    return line if _reads_as(line, check) else f"{head}[{check.kind}{weight}] {_quoted(check.question)}{tail}"


def _reads_as(line: str, check: Check) -> bool:
    try:
        read = _read(0, line.strip())
    except FormatError:
        return False
    return line.isprintable() and (read.question, read.parent) == (check.question, check.parent)


def _name(text: str) -> str:
    return text if re.fullmatch(_PLAIN, text) else _quoted(text)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _unquoted(text: str) -> str:
    """A JSON string's text; anything else as it is."""
    try:
        value = json.loads(text) if text.startswith('"') else None
    except ValueError:
        return text
    return value if isinstance(value, str) else text


def _read(number: int, row: str) -> _Line:
    """A line that says something. Raises FormatError."""
    rest, name, kind, weight, parent = row, "", "other", 1.0, None
    if match := _ID.match(rest):
        name, rest = _unquoted(match[1]), rest[match.end() :]
    if match := _TAG.match(rest):
        kind, weight = _tag(number, match[1])
        rest = rest[match.end() :]
    if match := _CONDITION.search(rest):
        parent, rest = _unquoted(match[1]), rest[: match.start()]
    elif match := _ANY_CONDITION.search(rest):
        _wrong(number, f"'{match[0]}' does not name a check.", "Write (if id), with the id that begins another line.")
    question = _unquoted(rest.strip())
    if not question:
        _wrong(number, "there is no question.", f"Write for example: {EXAMPLE}")
    return _Line(number, row, name, cast(CheckKind, kind), weight, question, parent)


def _tag(number: int, text: str) -> tuple[str, float]:
    kind, weight = "other", 1.0
    for word in text.lower().split():
        if match := _WEIGHT.fullmatch(word):
            weight = float(match[1])
        elif word in KINDS:
            kind = word
        else:
            near = difflib.get_close_matches(word, KINDS, 1)
            hint = f"Did you mean '{near[0]}'? " if near else ""
            _wrong(number, f"'{word}' in [{text}] is neither a kind nor a weight.", f"{hint}{_TAG_REMEDY}")
    if not (0 < weight < math.inf):
        _wrong(
            number,
            f"a weight of {weight:g} cannot be used.",
            "Give one above 0, such as x2; delete the line to leave the check out.",
        )
    return kind, weight


_TAG_REMEDY = f"Kinds are {', '.join(KINDS)}; a weight is written x2."


def _ids(lines: list[_Line]) -> list[str]:
    """Those that are given, and names for the rest."""
    first: dict[str, _Line] = {}
    for line in lines:
        if line.id and line.id in first:
            line.wrong(f"'{line.id}' is the id of line {first[line.id].number} already.", "Give each check its own.")
        if line.id:
            first[line.id] = line
    taken = set(first)
    ids: list[str] = []
    for line in lines:
        ids.append(line.id or unique(slug(line.question), taken))
        taken.add(ids[-1])
    return ids


def _require_parent(name: str, line: _Line, parents: Mapping[str, str | None]) -> None:
    if line.parent is None:
        return
    if line.parent not in parents:
        near = difflib.get_close_matches(line.parent, parents, 1)
        there = f"Did you mean '{near[0]}'?" if near else f"The ids are {', '.join(parents)}."
        line.wrong(f"no check has the id '{line.parent}'.", f"{there} Or leave (if …) out.")
    if circular(name, parents):
        line.wrong(f"'{name}' needs '{line.parent}', which needs '{name}'.", "Leave one (if …) out.")


def _wrong(number: int, thing: str, remedy: str) -> NoReturn:
    raise FormatError(f"Line {number} of the checklist: {thing}", remedy)
