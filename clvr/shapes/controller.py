"""The rule-based controller: measures the canvas, compares it with the goal, asks for one edit a round."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from ..errors import GrammarError
from ..ports import NO_BRIEF, Album, Checklist
from ..trajectory import Brief, Check, Decision, Goal, Trajectory, Verdict, referenced
from . import reasoning
from .checks import checklist, drawn, expectations
from .edits import Anchor, Edit, apply, say
from .found import Found, seen
from .language import parse, parse_edit
from .measure import measure
from .planning import Placement, Plan, Slot, make_plan, other_cells, slots, suits
from .scene import STEP, Cell, Group, Noun, Scene, Spec, entailed
from .verifier import judge_found

Where = Literal["place", "relation", "none"]
"""How an edit says where: by row and column; by a neighbour if there is one; not at all if any will do."""


@dataclass(frozen=True)
class Proposal:
    """An edit that would help, why, and whether it is a second choice."""

    edit: Edit
    reason: str
    second: bool = False


@dataclass(frozen=True)
class Prospect:
    """A proposal, and the verdict on the picture that it promises."""

    proposal: Proposal
    promise: Verdict


_OTHER_WORDS: Mapping[Where, Where] = {"none": "place", "place": "relation", "relation": "place"}


class ShapesController:
    """`ports.Controller` for the built-in world.

    Draws the first `first_objects` objects, then asks for one edit a round: of those that were tried least,
    the one that promises the best score. The seed of the trajectory fixes where things go."""

    def __init__(self, first_objects: int = 1, where: Where = "none") -> None:
        self.first_objects = first_objects
        self.where: Where = where

    @property
    def name(self) -> str:
        return "shapes controller"

    def checklist(self, goal: Goal, images: Album) -> Checklist:
        """Raises GrammarError for a goal outside the grammar, or one that no picture can satisfy."""
        spec = wanted(goal, images)
        slots(spec, 0)
        return Checklist(checklist(spec))

    def decide(self, trajectory: Trajectory, images: Album, brief: Brief = NO_BRIEF) -> Decision:
        if brief.tactic == "rephrase":
            other = ShapesController(self.first_objects, _OTHER_WORDS[self.where])
            return other.decide(trajectory, images, dataclasses.replace(brief, tactic="edit"))
        spec = wanted(trajectory.goal, images)
        planned = slots(spec, trajectory.seed)
        label, checks = _canvas(trajectory), checklist(spec)
        focus = tuple(c for c in checks if c.id in brief.checks)
        at_once = brief.tactic in ("one-shot", "redraw") and not trajectory.goal.references
        if label is None:
            return _at_once(trajectory.goal, spec) if at_once else self._draw(planned, reasoning.empty(), focus)
        found = measure(images[label])
        if judge_found(found, checks).satisfied(checks):
            return Decision("stop", reasoning.done())
        if at_once:
            return _at_once(trajectory.goal, spec)
        if _spoiled(found, spec):
            return self._draw(planned, reasoning.redraw(), focus)
        plan = make_plan(spec, planned, found)
        prospects = [Prospect(p, _promise(p.edit, found, checks)) for p in self._proposals(spec, plan, found)]
        if not prospects:
            return self._draw(planned, reasoning.redraw(), focus)
        now = judge_found(found, checks)
        return _edit(_choose(_towards(focus, prospects, now), trajectory, now, checks), found, label)

    def _draw(self, planned: Sequence[Slot], reason: str, focus: Sequence[Check] = ()) -> Decision:
        """Draw the first few objects, of those that the round is about, in their places."""
        about = [slot for slot in planned if _serves(slot, focus)] or planned
        first = [s.item for s in about[: max(1, self.first_objects)]]
        groups = tuple(Group(i.noun, 1, i.cell) for i in first)
        return Decision("generate", reason, reasoning.draw(groups), expects=drawn(Spec(groups)))

    def _proposals(self, spec: Spec, plan: Plan, found: Sequence[Found]) -> Iterator[Proposal]:
        for placement in plan.placements:
            if placement.found is not None:
                yield from self._mend(spec, placement, placement.found, found)
        for one in plan.leftover:
            yield from self._remove(spec, one, found)
        taken = {f.cell for f in found} | {p.cell for p in plan.placements}
        for index, placement in enumerate(plan.placements):
            if placement.found is None and not any(f.cell == placement.cell for f in found):
                yield from self._add(spec, plan, index, taken, found)

    def _mend(self, spec: Spec, placement: Placement, one: Found, found: Sequence[Found]) -> Iterator[Proposal]:
        slot, (target, cell) = placement.slot, self._target(one, found)
        if one.cell != placement.cell:
            to, anchor = self._destination(placement, found, bound=True)
            yield Proposal(Edit("move", target, cell, to=to, anchor=anchor), reasoning.misplaced(target))
        elif not suits(spec, slot, one):
            edit = _alteration(slot, one, target, cell, spec)
            yield Proposal(edit, reasoning.because(edit))
            if edit.kind != "replace":
                again = Edit("replace", target, cell, slot.item.noun)
                yield Proposal(again, reasoning.because(again), second=True)
        else:
            return
        yield Proposal(Edit("remove", target, cell), reasoning.misplaced(target), second=True)

    def _remove(self, spec: Spec, one: Found, found: Sequence[Found]) -> Iterator[Proposal]:
        target, cell = self._target(one, found)
        banned = next((n for n in spec.absent if one.fits(n)), None)
        reason = reasoning.forbidden(banned) if banned else reasoning.extra(target)
        yield Proposal(Edit("remove", target, cell), reason)

    def _add(self, spec: Spec, plan: Plan, index: int, taken: set[Cell], found: Sequence[Found]) -> Iterator[Proposal]:
        placement = plan.placements[index]
        noun = placement.slot.item.noun
        bound = any(placement.slot.group in (r.a, r.b) for r in entailed(spec).relations)
        to, anchor = self._destination(placement, found, bound or placement.slot.fixed)
        yield Proposal(Edit("add", new=noun, to=to, anchor=anchor), reasoning.missing(noun))
        if self.where != "place":
            yield Proposal(Edit("add", new=noun, to=placement.cell), reasoning.missing(noun), second=True)
        for cell in other_cells(spec, plan, index, taken):
            yield Proposal(Edit("add", new=noun, to=cell), reasoning.missing(noun), second=True)

    def _target(self, one: Found, found: Sequence[Found]) -> tuple[Noun, Cell | None]:
        noun = one.item.noun
        alike = sum(noun.matches(f.item) for f in found) > 1
        return noun, one.cell if alike or self.where == "place" else None

    def _destination(
        self, placement: Placement, found: Sequence[Found], bound: bool
    ) -> tuple[Cell | None, Anchor | None]:
        """Where to, as a place or as an anchor; neither where the place does not matter."""
        if self.where == "none" and not bound:
            return None, None
        anchor = _neighbour(placement, found) if self.where == "relation" else None
        return (None, anchor) if anchor else (placement.cell, None)


def _neighbour(placement: Placement, found: Sequence[Found]) -> Anchor | None:
    """An object beside the placement's cell that words alone single out."""
    for kind, (row, column) in STEP.items():
        cell = (placement.cell[0] - row, placement.cell[1] - column)
        for one in found:
            alone = sum(one.item.noun.matches(f.item) for f in found) == 1
            if one.cell == cell and alone and one is not placement.found:
                return Anchor(kind, one.item.noun)
    return None


def wanted(goal: Goal, images: Album) -> Spec:
    """The goal as a spec. With a reference picture the prompt may be an edit of it; then the goal is the
    edited picture, place by place. Raises GrammarError."""
    try:
        return _parsed(goal.prompt)
    except GrammarError:
        if not goal.references:
            raise
        edit = parse_edit(goal.prompt)
    after = apply(_scene(measure(images[referenced(0)])), edit)
    return Spec(tuple(Group(i.noun, 1, i.cell) for i in after.items))


@lru_cache(maxsize=64)
def _parsed(prompt: str) -> Spec:
    return parse(prompt)


def _at_once(goal: Goal, spec: Spec) -> Decision:
    """The whole goal as the instruction, and nothing to add to it."""
    return Decision("generate", "", goal.prompt, expects=drawn(spec))


def _serves(slot: Slot, focus: Sequence[Check]) -> bool:
    """Whether a picture of this object alone satisfies one of the checks."""
    return bool(judge_found(seen(Scene((slot.item,))), focus).score(focus))


def _towards(focus: Sequence[Check], prospects: Sequence[Prospect], now: Verdict) -> Sequence[Prospect]:
    """Those that promise more of the checks in focus; all where none does."""
    score = now.score(focus) or 0.0
    return [p for p in prospects if (p.promise.score(focus) or 0.0) > score] or prospects


def _canvas(trajectory: Trajectory) -> str | None:
    if trajectory.canvas is not None:
        return trajectory.canvas.label
    return referenced(0) if trajectory.goal.references and not trajectory.steps else None


def _scene(found: Sequence[Found]) -> Scene:
    return Scene(tuple(f.item for f in found))


def _spoiled(found: Sequence[Found], spec: Spec) -> bool:
    """More that is unclear than is clear, or far too much of everything: a fresh start is cheaper."""
    unclear = sum(not f.clear for f in found)
    return unclear > max(2, len(found) // 2) or len(found) > 2 * spec.total + 4


def _alteration(slot: Slot, one: Found, target: Noun, cell: Cell | None, spec: Spec) -> Edit:
    """The smallest edit that turns a found object into the slot's."""
    item, noun = one.item, slot.noun
    right = {
        "shape": one.shape is not None and noun.shape in (None, item.shape),
        "color": one.color is not None and noun.color in (None, item.color),
        "size": noun.size in (None, one.size),
    }
    if not right["color"] and right["shape"] and right["size"]:
        recolored = dataclasses.replace(one, color=slot.item.color)
        if suits(spec, slot, recolored):
            return Edit("recolor", target, cell, Noun(color=slot.item.color))
    if not right["size"] and right["shape"] and right["color"]:
        return Edit("resize", target, cell, Noun(size=noun.size))
    return Edit("replace", target, cell, slot.item.noun)


def _choose(prospects: Sequence[Prospect], trajectory: Trajectory, now: Verdict, checks: Sequence[Check]) -> Proposal:
    """The least tried, first choices before second ones, then by the score that it promises. What lowers the
    score would be rolled back, and comes last."""
    tried = Counter(s.decision.instruction for s in trajectory.steps)
    score = now.score(checks) or 0.0

    def rank(prospect: Prospect) -> tuple[bool, int, bool, float]:
        promise, proposal = prospect.promise.score(checks) or 0.0, prospect.proposal
        return promise < score, tried[say(proposal.edit)], proposal.second, -promise

    return min(prospects, key=rank).proposal


def _promise(edit: Edit, found: Sequence[Found], checks: Sequence[Check]) -> Verdict:
    """The verdict on the picture after the edit; on nothing where it cannot be carried out."""
    try:
        after = apply(_scene(found), edit)
    except GrammarError:
        return Verdict()
    return judge_found(seen(after), checks)


def _edit(proposal: Proposal, found: Sequence[Found], label: str) -> Decision:
    try:
        expects = expectations(proposal.edit, _scene(found))
    except GrammarError:
        expects = expectations(proposal.edit)
    return Decision("edit", proposal.reason, say(proposal.edit), (label,), expects)
