"""Exact checks of the built-in world: typed queries, their questions, and their answers from what was seen.

A check is judged from its question alone, so `read_query(query.question)` gives the query back."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..errors import GrammarError
from ..trajectory import Box, Check, CheckKind
from .edits import Edit, apply, find
from .found import Found
from .language import read_count, read_noun
from .phrases import listed, noun_words, place, the
from .scene import GRID, RELATIONS, STEP, Cell, Noun, Scene, Spec

HALF_CELL = 0.5 / GRID
"""How far apart two objects must be along an axis to stand in a relation, as a fraction of the picture."""


@dataclass(frozen=True)
class Answer:
    """Yes, no, or None where it cannot be told; what was seen, as a sentence and boxes."""

    holds: bool | None
    note: str
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True)
class Exists:
    noun: Noun

    @property
    def question(self) -> str:
        return f"Is there a {noun_words(self.noun)}?"

    def answer(self, found: Sequence[Found], before: Sequence[Found] | None = None) -> Answer:
        sure, unsure = _sorted_out(found, self.noun)
        holds = True if sure else None if unsure else False
        return Answer(holds, _seen(self.noun, sure, unsure), _boxes(sure or unsure))


@dataclass(frozen=True)
class Count:
    """Exactly so many. `Noun()` counts everything in the picture."""

    noun: Noun
    count: int

    @property
    def question(self) -> str:
        if self.count == 1:
            return f"Is there exactly 1 {noun_words(self.noun)}?"
        return f"Are there exactly {self.count} {noun_words(self.noun, many=True)}?"

    def answer(self, found: Sequence[Found], before: Sequence[Found] | None = None) -> Answer:
        sure, unsure = _sorted_out(found, self.noun)
        possible = len(sure) <= self.count <= len(sure) + len(unsure)
        holds = False if not possible else None if unsure else True
        return Answer(holds, _seen(self.noun, sure, unsure), _boxes(sure + unsure))


@dataclass(frozen=True)
class Absent:
    noun: Noun

    @property
    def question(self) -> str:
        return f"Are there no {noun_words(self.noun, many=True)}?"

    def answer(self, found: Sequence[Found], before: Sequence[Found] | None = None) -> Answer:
        sure, unsure = _sorted_out(found, self.noun)
        holds = False if sure else None if unsure else True
        return Answer(holds, _seen(self.noun, sure, unsure), _boxes(sure + unsure))


@dataclass(frozen=True)
class Related:
    """Every `a` lies `kind` every `b`, centre to centre, by half a cell at least; and there is one of each.
    Where one description covers the other ('a circle left of a red circle'), it means the remaining ones;
    where both are the same, one pair is enough."""

    a: Noun
    kind: str
    b: Noun
    many_a: bool = False
    many_b: bool = False

    @property
    def question(self) -> str:
        verb = "Are" if self.many_a else "Is"
        a, b = the(self.a, 1 + self.many_a), the(self.b, 1 + self.many_b)
        return f"{verb} {a} {self.kind} {b}?"

    def answer(self, found: Sequence[Found], before: Sequence[Found] | None = None) -> Answer:
        sure_a, maybe_a = _sorted_out(found, self.a, _narrower(self.a, self.b))
        sure_b, maybe_b = _sorted_out(found, self.b, _narrower(self.b, self.a))
        pairs = [(a, b, self._holds(a, b)) for a in sure_a + maybe_a for b in sure_b + maybe_b if a is not b]
        certain = [holds for a, b, holds in pairs if a in sure_a and b in sure_b]
        boxes = _boxes(sure_a + sure_b)
        if self.a == self.b:
            certain = [any(certain)] if certain else []
            pairs = [p for p in pairs if p[2]] or pairs
        if not all(certain):
            return Answer(False, self._note("does not lie"), boxes)
        if not (sure_a or maybe_a) or not (sure_b or maybe_b):
            return Answer(False, "One of the two is not there.", boxes)
        if not certain or not all(holds for _, _, holds in pairs):
            return Answer(None, "Not all of them can be told.", boxes)
        return Answer(True, self._note("lies"), boxes)

    def _holds(self, a: Found, b: Found) -> bool:
        row, column = STEP[self.kind]
        return (a.centre[0] - b.centre[0]) * column + (a.centre[1] - b.centre[1]) * row >= HALF_CELL

    def _note(self, verb: str) -> str:
        return f"{noun_words(self.a).capitalize()} {verb} {self.kind} {noun_words(self.b)}."


@dataclass(frozen=True)
class At:
    noun: Noun
    cell: Cell

    @property
    def question(self) -> str:
        return f"Is there a {noun_words(self.noun)} {place(self.cell)}?"

    def answer(self, found: Sequence[Found], before: Sequence[Found] | None = None) -> Answer:
        here = [f for f in found if f.cell == self.cell]
        return Exists(self.noun).answer(here)


@dataclass(frozen=True)
class Empty:
    cell: Cell

    @property
    def question(self) -> str:
        return f"Is there nothing {place(self.cell)}?"

    def answer(self, found: Sequence[Found], before: Sequence[Found] | None = None) -> Answer:
        return Absent(Noun()).answer([f for f in found if f.cell == self.cell])


@dataclass(frozen=True)
class Unchanged:
    """Everything outside these places is as it was in the picture that was edited."""

    cells: tuple[Cell, ...]

    @property
    def question(self) -> str:
        if not self.cells:
            return "Is everything as before?"
        return f"Is everything as before except {listed([place(c) for c in self.cells])}?"

    def answer(self, found: Sequence[Found], before: Sequence[Found] | None = None) -> Answer:
        if before is None:
            return Answer(None, "There is no earlier picture.")
        now, then = self._by_cell(found), self._by_cell(before)
        pairs = [(now.get(c, []), then.get(c, [])) for c in sorted({*now, *then})]
        same = [_same(a, b) for a, b in pairs]
        odd = [f for (a, _), s in zip(pairs, same, strict=True) if not s for f in a]
        if False in same:
            return Answer(False, "Something else changed.", _boxes(odd))
        return Answer(None if None in same else True, "The rest is as before.", _boxes(odd))

    def _by_cell(self, found: Sequence[Found]) -> dict[Cell, list[Found]]:
        out: dict[Cell, list[Found]] = {}
        for one in found:
            if one.cell not in self.cells:
                out.setdefault(one.cell, []).append(one)
        return out


Query = Exists | Count | Absent | Related | At | Empty | Unchanged

_PLACE = r"in row (\w+),? column (\w+)"
_PATTERNS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], Query]], ...] = (
    (re.compile(rf"Is there nothing {_PLACE}\?"), lambda m: Empty(_cell(m[1], m[2]))),
    (re.compile(rf"Is there an? (.+) {_PLACE}\?"), lambda m: At(read_noun(m[1]), _cell(m[2], m[3]))),
    (re.compile(r"(?:Is|Are) there exactly (\d+) (.+)\?"), lambda m: Count(read_noun(m[2]), int(m[1]))),
    (re.compile(r"Are there no (.+)\?"), lambda m: Absent(read_noun(m[1]))),
    (re.compile(r"Is there an? (.+)\?"), lambda m: Exists(read_noun(m[1]))),
    (
        re.compile(rf"(Is|Are) the (.+?) ({'|'.join(RELATIONS)}) the (.+)\?"),
        lambda m: Related(read_noun(m[2]), m[3], read_noun(m[4]), m[1] == "Are", _is_plural(m[4])),
    ),
    (
        re.compile(rf"Is everything as before(?: except ((?:{_PLACE}(?:, | and )?)+))?\?"),
        lambda m: Unchanged(tuple(_cell(r, c) for r, c in re.findall(_PLACE, m[1] or ""))),
    ),
)


@lru_cache(maxsize=4096)
def read_query(question: str) -> Query | None:
    """The query behind a question; None for a question that the measuring verifier cannot judge."""
    for pattern, build in _PATTERNS:
        match = pattern.fullmatch(question.strip())
        if match:
            try:
                return build(match)
            except GrammarError:
                return None
    return None


def checklist(spec: Spec) -> tuple[Check, ...]:
    """Everything that a picture of this spec must hold, and nothing else in it."""
    nouns = list(dict.fromkeys(g.noun for g in spec.groups))
    checks = [_check(Exists(n), _kind(n), _slug(n)) for n in nouns]
    for noun in nouns:
        wanted = sum(g.count for g in spec.groups if noun.covers(g.noun))
        checks.append(_check(Count(noun, wanted), "count", f"{_slug(noun)}-count", _slug(noun)))
    for group in spec.groups:
        if group.cell is not None:
            spot = f"{_slug(group.noun)}-at-{group.cell[0] + 1}-{group.cell[1] + 1}"
            checks.append(_check(At(group.noun, group.cell), "position", spot, _slug(group.noun)))
    for relation in spec.relations:
        a, b = spec.groups[relation.a], spec.groups[relation.b]
        query = Related(a.noun, relation.kind, b.noun, a.count > 1, b.count > 1)
        name = f"{_slug(a.noun)}-{relation.kind.replace(' ', '-')}-{_slug(b.noun)}"
        checks.append(_check(query, "position", name, _slug(a.noun)))
    checks += [_check(Absent(n), "absence", f"no-{_slug(n)}") for n in spec.absent]
    if Noun() not in nouns:
        checks.append(_check(Count(Noun(), spec.total), "count", "total"))
    return tuple({c.id: c for c in checks}.values())


def expectations(edit: Edit, before: Scene | None = None) -> tuple[Check, ...]:
    """What the picture after this edit must show; with the scene before it, where, and that the rest stayed.
    Raises GrammarError where the edit cannot be done on that scene."""
    if before is None:
        return _loose(edit)
    after = apply(before, edit)
    changed = [i for i in after.items if i not in before.items]
    cells = [i.cell for i in changed]
    left = [i.cell for i in before.items if i not in after.items and i.cell not in cells]
    queries: list[tuple[Query, CheckKind]] = []
    queries.extend((At(i.noun, i.cell), _kind(i.noun)) for i in changed)
    queries.extend((Empty(c), "absence") for c in left)
    if edit.anchor is not None and changed:
        anchor = find(before, edit.anchor.noun)
        if len(after.matching(changed[0].noun)) == len(after.matching(anchor.noun)) == 1:
            queries.append((Related(changed[0].noun, edit.anchor.relation, anchor.noun), "position"))
    queries.append((Unchanged(tuple(sorted({*cells, *left}))), "other"))
    return _numbered(queries)


def drawn(spec: Spec) -> tuple[Check, ...]:
    """What a picture drawn from scratch for this spec must show: its checklist, as a step's own."""
    return tuple(Check(f"e-{c.id}", c.question, c.kind, f"e-{c.parent}" if c.parent else None) for c in checklist(spec))


def _loose(edit: Edit) -> tuple[Check, ...]:
    target, new = edit.target, edit.new
    changed = Noun(new.shape or target.shape, new.color or target.color, new.size or target.size)
    where = edit.to or (edit.cell if edit.kind != "move" else None)
    queries: list[tuple[Query, CheckKind]] = []
    if edit.kind == "remove":
        queries.append((Empty(where) if where else Absent(target), "absence"))
    else:
        wanted = {"add": new, "replace": new, "move": target}.get(edit.kind, changed)
        queries.append((At(wanted, where) if where else Exists(wanted), _kind(wanted)))
        if edit.anchor is not None:
            queries.append((Related(wanted, edit.anchor.relation, edit.anchor.noun), "position"))
    return _numbered(queries)


def _numbered(queries: Iterable[tuple[Query, CheckKind]]) -> tuple[Check, ...]:
    return tuple(_check(q, kind, f"e{n}") for n, (q, kind) in enumerate(queries, 1))


def _check(query: Query, kind: CheckKind, name: str, parent: str | None = None) -> Check:
    return Check(name, query.question, kind, parent)


def _kind(noun: Noun) -> CheckKind:
    return "size" if noun.size else "color" if noun.color else "shape" if noun.shape else "object"


def _slug(noun: Noun) -> str:
    return noun_words(noun).replace(" ", "-")


def _cell(row: str, column: str) -> Cell:
    return (read_count(row) or 0) - 1, (read_count(column) or 0) - 1


def _is_plural(words: str) -> bool:
    return words.endswith("s") and not words.endswith("cross")


def _narrower(noun: Noun, other: Noun) -> Noun | None:
    """The description whose objects `noun` leaves out when both appear in one sentence."""
    return other if noun != other and noun.covers(other) else None


def _sorted_out(found: Sequence[Found], noun: Noun, but: Noun | None = None) -> tuple[list[Found], list[Found]]:
    """Those that fit for sure, and those that may."""
    sure: list[Found] = []
    maybe: list[Found] = []
    for one in found:
        fits, excluded = one.fits(noun), one.fits(but) if but else False
        if fits is False or excluded is True:
            continue
        (maybe if fits is None or excluded is None else sure).append(one)
    return sure, maybe


def _same(now: Sequence[Found], then: Sequence[Found]) -> bool | None:
    """Whether a place holds the same objects as before."""
    if len(now) != len(then):
        return False
    if not all(f.clear and f.size for f in (*now, *then)):
        return None
    return sorted((f.shape, f.color, f.size) for f in now) == sorted((f.shape, f.color, f.size) for f in then)


def _seen(noun: Noun, sure: Sequence[Found], unsure: Sequence[Found]) -> str:
    what = noun_words(noun, many=len(sure) != 1)
    note = f"{len(sure) or 'No'} {what} seen."
    return f"{note} {len(unsure)} more cannot be told." if unsure else note


def _boxes(found: Sequence[Found]) -> tuple[Box, ...]:
    return tuple(f.box for f in found)
