"""A checklist made sound: one question a check, none twice, parents that exist, no more than can be judged."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..trajectory import Check, CheckKind
from .questions import kind_of, same, slug, split

MOST = 24
"""Checks of a goal, as a VLM is asked for."""


@dataclass(frozen=True)
class Tidied:
    """Checks with unique ids, and what was changed, a sentence each. `compound` are those among the checks that
    ask several things at once and that no rule can take apart."""

    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()
    compound: tuple[Check, ...] = ()


@dataclass(frozen=True)
class _Asked:
    """A check on its way through, and the id of the compound one that it was a part of."""

    check: Check
    part_of: str = ""


def tidy(checks: Iterable[Check], parts: Mapping[str, Sequence[Check]] | None = None, most: int = MOST) -> Tidied:
    """Compound questions are taken apart, by `parts` (by id) where it says how; duplicates become one check with the
    larger weight; ids become slugs; a parent that is unknown or leads round in a circle is dropped; of more than
    `most` checks the least important ones go, a parent never before its children. What is sound stays as it is."""
    notes: list[str] = []
    named = _named(checks, notes)
    asked, compound = _taken_apart(named, parts or {}, notes)
    once = _with_parents(_merged(asked, notes), notes)
    kept = _most_important(once, most, notes)
    return Tidied(tuple(kept), tuple(notes), tuple(check for check in kept if check.id in compound))


def _named(checks: Iterable[Check], notes: list[str]) -> list[Check]:
    """With unique slugs as ids, and parents by these. Of two checks with one id the first is the one meant."""
    given = list(checks)
    meant: dict[str, str] = {}
    taken: set[str] = set()
    ids: list[str] = []
    for check in given:
        name = unique(_slug_of(check), taken)
        taken.add(name)
        ids.append(name)
        meant.setdefault(check.id, name)
    named: list[Check] = []
    for name, check in zip(ids, given, strict=True):
        parent = meant.get(check.parent) if check.parent else None
        if check.parent and parent is None:
            notes.append(f"'{check.question}' named a parent that does not exist, '{check.parent}': it has none now")
        named.append(dataclasses.replace(check, id=name, question=" ".join(check.question.split()), parent=parent))
    return named


def _slug_of(check: Check) -> str:
    """The id where it is a slug already."""
    kept = "".join(letter if letter.isalnum() or letter in "_-" else " " for letter in check.id.lower())
    return "-".join(kept.split()) or slug(check.question)


def unique(name: str, taken: Iterable[str]) -> str:
    """The name, with a number where it is taken."""
    known, number, tried = set(taken), 2, name
    while tried in known:
        tried, number = f"{name}-{number}", number + 1
    return tried


def _taken_apart(
    checks: Sequence[Check], parts: Mapping[str, Sequence[Check]], notes: list[str]
) -> tuple[list[_Asked], set[str]]:
    """One question a check, as far as possible, and the ids of those that still ask several things."""
    asked: list[_Asked] = []
    compound: set[str] = set()
    for check in checks:
        pieces = _pieces(check, parts)
        if pieces is None:
            compound.add(check.id)
        if pieces is None or len(pieces) < 2:
            asked.append(_Asked(check))
            continue
        listed = " and ".join(f"'{piece.question}'" for piece in pieces)
        notes.append(f"'{check.question}' asks several things at once: it is now {listed}")
        asked.extend(_Asked(piece, check.id) for piece in pieces)
    return asked, compound


def _pieces(check: Check, parts: Mapping[str, Sequence[Check]]) -> tuple[Check, ...] | None:
    """What the check asks; None where it asks several things that cannot be told apart."""
    given: list[tuple[str, CheckKind]]
    if check.id in parts:
        given = [(" ".join(part.question.split()), part.kind) for part in parts[check.id]]
    else:
        questions = split(check.question)
        if questions is None:
            return None
        given = [(question, kind_of(question, check.kind)) for question in questions]
    return tuple(Check("", question, kind, check.parent, check.weight) for question, kind in given)


def _merged(asked: Sequence[_Asked], notes: list[str]) -> list[Check]:
    """Each question once, by preference as it was asked on its own, and children with the parent they mean."""
    forms = [same(one.check.question) for one in asked]
    keeper: dict[tuple[str, ...], int] = {}
    for index in sorted(range(len(asked)), key=lambda i: bool(asked[i].part_of)):
        keeper.setdefault(forms[index], index)
    kept = _with_ids({index: asked[index].check for index in keeper.values()})
    became: dict[str, list[str]] = {}
    for index, (form, one) in enumerate(zip(forms, asked, strict=True)):
        first = kept[keeper[form]]
        became.setdefault(one.part_of or one.check.id, []).append(first.id)
        if keeper[form] != index:
            kept[keeper[form]] = _stronger(first, one.check)
            if not one.part_of:
                notes.append(f"'{one.check.question}' asks the same as '{first.question}': they are one check")
    by_id = {check.id: check for check in kept.values()}
    return [_under(kept[index], became, by_id) for index in sorted(kept)]


def _with_ids(checks: Mapping[int, Check]) -> dict[int, Check]:
    """Those that were parts get an id from their question."""
    taken = {check.id for check in checks.values()}
    named: dict[int, Check] = {}
    for index, check in checks.items():
        name = check.id or unique(slug(check.question), taken)
        taken.add(name)
        named[index] = dataclasses.replace(check, id=name)
    return named


def _stronger(check: Check, other: Check) -> Check:
    kind = other.kind if check.kind == "other" else check.kind
    return dataclasses.replace(check, kind=kind, weight=max(check.weight, other.weight))


def _under(check: Check, became: Mapping[str, Sequence[str]], by_id: Mapping[str, Check]) -> Check:
    """Under the check that its parent became; of several parts, the one that shares most words with it."""
    options = [name for name in became.get(check.parent or "", ()) if name != check.id]
    words = set(same(check.question))
    best = max(options, key=lambda name: len(words & set(same(by_id[name].question))), default=None)
    return dataclasses.replace(check, parent=best)


def _with_parents(checks: Sequence[Check], notes: list[str]) -> list[Check]:
    """No check is its own ancestor: the first one of a circle stands alone."""
    parents = {check.id: check.parent for check in checks}
    mended: list[Check] = []
    for check in checks:
        if circular(check.id, parents):
            parents[check.id] = None
            notes.append(f"'{check.question}' depended on itself: it has no parent now")
        mended.append(dataclasses.replace(check, parent=parents[check.id]))
    return mended


def circular(name: str, parents: Mapping[str, str | None]) -> bool:
    """Whether a check is its own ancestor."""
    seen, above = {name}, parents.get(name)
    while above is not None and above not in seen:
        seen.add(above)
        above = parents.get(above)
    return above == name


def _most_important(checks: Sequence[Check], most: int, notes: list[str]) -> list[Check]:
    """By weight, earlier ones first; a check counts as much as the heaviest one that needs it."""
    kept = list(checks)
    while len(kept) > most:
        children = Counter(check.parent for check in kept)
        leaves = [check for check in reversed(kept) if not children[check.id]]
        kept.remove(min(leaves, key=lambda check: check.weight))
    if len(kept) < len(checks):
        gone = ", ".join(f"'{check.question}'" for check in checks if check not in kept)
        notes.append(f"of {len(checks)} checks the {most} most important ones are kept; left out: {gone}")
    return kept
