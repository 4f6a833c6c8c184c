"""A round's candidates: judged, compared, one of them chosen, and ruled over by the policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from .byhand import further
from .judging import Bench
from .policies import Ruling, find_policy
from .ports import Verifier
from .state import Pending, State
from .trajectory import Candidate, Check, Step, Verdict

if TYPE_CHECKING:
    from PIL.Image import Image


def open_bench(state: State, verifier: Verifier) -> Bench:
    verdicts = [c.active or c.passive for s in state.trajectory.steps for c in s.candidates]
    free = any(v.usage.calls == 0 for v in verdicts if v)
    return Bench(verifier, state.settings.budget, state.spent, free)


def judge(state: State, pending: Pending, bench: Bench) -> Pending:
    """The round with a verdict for each picture that has none yet: passive ones always, active ones each
    `verify_every`-th step, and in the last that may be drawn."""
    goal, done = state.trajectory.goal, len(state.trajectory.steps) + 1
    fresh = pending.images[len(pending.candidates) :]
    if not fresh:
        return pending
    given = _given(state)
    sources = [state.album[label] for label in pending.decision.references]
    due = done % state.settings.budget.verify_every == 0 or bool(bench.exhausted(done))
    whole = [(image, goal.checks, given) for image in fresh]
    own = [(image, pending.decision.expects, sources) for image in fresh]
    verdicts = bench.judge_each([*whole, *own] if due else own)
    passive, active = verdicts[-len(fresh) :], verdicts[: -len(fresh)]
    if not due and bench.exhausted(done):
        active = bench.judge_each(whole)
    rows = zip(pending.seeds[-len(fresh) :], passive, active or [None] * len(passive), strict=True)
    judged = (Candidate(*row) for row in rows)
    return dataclasses.replace(pending, candidates=(*pending.candidates, *judged))


def judge_further(state: State, pending: Pending, bench: Bench) -> Pending:
    """The candidates judged on what was added to the goal since."""
    given = _given(state)
    pairs = zip(pending.candidates, pending.images, strict=True)
    judged = (further(candidate, state.trajectory.goal, bench, image, given) for candidate, image in pairs)
    return dataclasses.replace(pending, candidates=tuple(judged))


def passes(state: State, pending: Pending) -> bool:
    """Whether one of the candidates is good enough to draw no more of them: it satisfies the goal, or it did what
    the instruction says and would be kept."""
    return any(
        _satisfied(c.active, state.trajectory.goal.checks) or _kept(state, pending, c) for c in pending.candidates
    )


def charged(pending: Pending, bench: Bench) -> Pending:
    """The round with what its judging cost so far."""
    return dataclasses.replace(pending, cost=pending.cost + bench.cost, notes=(*pending.notes, *bench.notes))


def propose(state: State, pending: Pending, bench: Bench) -> tuple[Step, tuple[str, ...]]:
    """The step as the policy would settle it, and what is to be told of that."""
    policy, decision = find_policy(state.settings.policy), pending.decision
    first = policy.choose(state.trajectory, pending.candidates, decision)
    chosen = _by_comparison(state, pending, bench, first)
    ruling = policy.settle(state.trajectory, pending.candidates[chosen], decision)
    ruling = _against_canvas(state, pending, bench, chosen, ruling)
    told = (*bench.notes, *ruling.notes)
    index, spent = len(state.trajectory.steps), charged(pending, bench)
    notes = (*(() if index else state.notes), *spent.notes, *ruling.notes)
    return Step(index, decision, pending.candidates, chosen, ruling.accepted, spent.cost, notes), told


def _by_comparison(state: State, pending: Pending, bench: Bench, chosen: int) -> int:
    """Of candidates whose verdicts leave them even, the one that wins pair by pair; the first on a tie."""
    rivals = [n for n, c in enumerate(pending.candidates) if n != chosen and _even(c, pending.candidates[chosen])]
    for rival in rivals:
        better = bench.prefer(pending.images[rival], pending.images[chosen], state.trajectory.goal, _given(state))
        if better is not None and better > 0.5:
            chosen = rival
    return chosen


def _against_canvas(state: State, pending: Pending, bench: Bench, chosen: int, ruling: Ruling) -> Ruling:
    """A drawing that scores as the canvas does is kept only if it is not worse side by side."""
    canvas, candidate = state.trajectory.canvas, pending.candidates[chosen]
    if canvas is None or not ruling.accepted:
        return ruling
    checks = state.trajectory.goal.checks
    if candidate.active is None or candidate.active.score(checks) != state.trajectory.score(canvas):
        return ruling
    image, before = pending.images[chosen], state.album[canvas.label]
    better = bench.prefer(image, before, state.trajectory.goal, _given(state))
    if better is None or better >= 0.5:
        return ruling
    return Ruling(False, (*ruling.notes, "rolled back: the canvas is better side by side, at the same score"))


def _even(one: Candidate, other: Candidate) -> bool:
    return _outcomes(one.active) == _outcomes(other.active) and _outcomes(one.passive) == _outcomes(other.passive)


def _outcomes(verdict: Verdict | None) -> Iterable[tuple[str, str]]:
    return [(result.check, result.outcome) for result in verdict.results] if verdict else []


def _kept(state: State, pending: Pending, candidate: Candidate) -> bool:
    expects = pending.decision.expects
    if expects and not _satisfied(candidate.passive, expects):
        return False
    policy = find_policy(state.settings.policy)
    if state.trajectory.canvas is None and not expects:
        return False
    return policy.settle(state.trajectory, candidate, pending.decision).accepted


def _satisfied(verdict: Verdict | None, checks: Sequence[Check]) -> bool:
    return verdict is not None and verdict.satisfied(checks)


def _given(state: State) -> list[Image]:
    return [state.album[label] for label in state.trajectory.goal.labels()]
