"""What a person changes in a run: another plan, another candidate, a further check, an earlier canvas.

Pure functions from one `State` to the next, used by the loop where a listener answers it, and by whoever stops
between two phases. A change that is made twice is the same as made once, so that a resumed run may repeat it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from .errors import FormatError
from .events import Amended, Answer, Listener, RolledBack, Settled
from .judging import Bench
from .trajectory import Candidate, Check, Goal, Step, Verdict

if TYPE_CHECKING:
    from PIL.Image import Image

    from .state import State


def add_checks(state: State, checks: Iterable[Check], listen: Listener) -> State:
    """The goal with further checks. `catch_up` judges what is there already."""
    goal = state.trajectory.goal.with_checks(checks)
    if goal == state.trajectory.goal:
        return state
    listen(Amended(goal))
    return dataclasses.replace(state, trajectory=dataclasses.replace(state.trajectory, goal=goal))


def revert(state: State, index: int, listen: Listener) -> State:
    """Step `index` as the canvas again. Raises FormatError where there is none."""
    after = state.trajectory.back_to(index)
    changed = [new for old, new in zip(state.trajectory.steps, after.steps, strict=True) if new != old]
    for step in changed:
        listen(Settled(step, (), after))
        if not step.accepted:
            listen(RolledBack(step))
    return dataclasses.replace(state, trajectory=after)


def reconsider(state: State, answer: Answer, pictures: Mapping[int, Image], listen: Listener) -> State:
    """The answer to the newest step, which is settled already. `pictures` by candidate; what `checks` adds is
    judged with the next round. Raises FormatError for a candidate or a step that there is not."""
    state = add_checks(state, answer.checks, listen)
    newest = state.trajectory.steps[-1]
    step = overrule(newest, answer)
    if step != newest:
        trajectory = state.trajectory.with_step(step)
        album = state.album.with_image(step.label, pictures[step.chosen]) if step.chosen in pictures else state.album
        state = dataclasses.replace(state, trajectory=trajectory, album=album)
        listen(Settled(step, (), trajectory))
    if answer.back_to is not None:
        state = revert(state, answer.back_to, listen)
    return dataclasses.replace(state, stop=answer.stop) if answer.stop else state


def overrule(step: Step, answer: Answer | None) -> Step:
    """A step as the policy settled it, and the user's word on it. Raises FormatError for no such candidate."""
    if answer is None:
        return step
    if answer.accept is False or answer.back_to not in (None, step.index):
        notes = ("rolled back by hand",) if step.accepted else ()
        return dataclasses.replace(step, accepted=False, notes=(*step.notes, *notes), hand="dropped")
    chosen = step.chosen if answer.choose is None else answer.choose
    if not 0 <= chosen < len(step.candidates):
        raise FormatError(f"There is no candidate {chosen}.", f"There are {len(step.candidates)}.")
    accepted = step.accepted or answer.accept is True or answer.choose is not None
    notes = (f"candidate {chosen + 1} was chosen by hand",) if chosen != step.chosen else ()
    notes += ("approved by hand",) if accepted != step.accepted else ()
    if not notes:
        return step
    return dataclasses.replace(step, chosen=chosen, accepted=accepted, notes=(*step.notes, *notes), hand="kept")


def catch_up(state: State, bench: Bench, listen: Listener) -> State:
    """Judge the images of earlier steps on the checks that were added since, so that scores compare."""
    trajectory, goal = state.trajectory, state.trajectory.goal
    given = [state.album[label] for label in goal.labels()]
    for step in trajectory.steps:
        judged = further(step.winner, goal, bench, state.album[step.label], given)
        if judged == step.winner:
            continue
        candidates = (*step.candidates[: step.chosen], judged, *step.candidates[step.chosen + 1 :])
        step = dataclasses.replace(step, candidates=candidates)
        trajectory = trajectory.with_step(step)
        listen(Settled(step, (), trajectory))
    return dataclasses.replace(state, trajectory=trajectory)


def further(candidate: Candidate, goal: Goal, bench: Bench, image: Image, given: list[Image]) -> Candidate:
    """A candidate that was judged against the goal, judged on what its verdict lacks."""
    verdict = candidate.active
    if verdict is None:
        return candidate
    told = {result.check for result in verdict.results}
    added = bench.judge(image, [check for check in goal.checks if check.id not in told], given)
    if added is None:
        return candidate
    return dataclasses.replace(candidate, active=Verdict(verdict.results + added.results, verdict.usage + added.usage))
