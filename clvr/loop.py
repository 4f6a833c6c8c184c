"""The closed loop: plan -> draw -> verify -> correct -> stop. Ports in, events out, a trajectory at the end.

Each phase is a pure function from one `State` to the next; `proceed` composes them. A phase leaves a state
that has already stopped, or is past it, as it is: phases can be laid out in a row without asking in between.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import TYPE_CHECKING

from . import context
from .allowance import grant
from .byhand import add_checks, catch_up, overrule, revert
from .errors import Cancelled, ReplyError, VLMError
from .events import (
    Answer,
    Answered,
    Checklisted,
    Drawing,
    Drawn,
    Judged,
    Listener,
    Planned,
    RolledBack,
    Settled,
    Started,
    Stopped,
    Warned,
    ignore,
)
from .images import to_rgb
from .policies import Means, find_policy
from .ports import Album, Controller, DrawProgress, Generator, Verifier, release
from .ports import Drawing as Pictures
from .selecting import charged, judge, judge_further, open_bench, passes, propose
from .state import Pending, Ports, Settings, State
from .trajectory import Cost, Decision, Goal, Step, Trajectory, Usage, referenced

if TYPE_CHECKING:
    from PIL.Image import Image


def run(
    goal: Goal,
    references: Sequence[Image],
    ports: Ports,
    settings: Settings | None = None,
    seed: int = 0,
    listen: Listener = ignore,
) -> State:
    """A whole run. Raises what `start` and `plan` raise; what a listener raises passes through."""
    return proceed(start(goal, references, ports.controller, settings, seed, listen), ports, listen)


def proceed(state: State, ports: Ports, listen: Listener = ignore) -> State:
    """Go on from any state between two rounds, a resumed one too, to the end. However it ends, the ports keep
    nothing of the run."""
    try:
        while not stopped(state):
            state = plan(state, ports.controller, listen)
            state = draw(state, ports.generator, listen)
            state = verify(state, ports.verifier, listen)
        return finish(state, listen=listen)
    finally:
        release(ports.controller, ports.generator, ports.verifier)


def start(
    goal: Goal,
    references: Sequence[Image],
    controller: Controller,
    settings: Settings | None = None,
    seed: int = 0,
    listen: Listener = ignore,
) -> State:
    """A state with the goal's checklist, made once unless the goal brings one. Raises VLMError or
    GrammarError where none can be made, FormatError for an unknown policy."""
    settings = settings or Settings()
    find_policy(settings.policy)
    album = Album({referenced(i): to_rgb(image) for i, image in enumerate(references)})
    goal = dataclasses.replace(goal, references=len(references))
    answer = listen(Started(goal, settings.budget, seed))
    cost, notes = Cost(), ()
    if not goal.checks:
        began = perf_counter()
        with grant(settings.budget, cost):
            checklist = controller.checklist(goal, album)
        cost = Cost(seconds={"plan": perf_counter() - began}, usage=checklist.usage)
        goal = dataclasses.replace(goal, checks=checklist.checks)
        answer = _merge(answer, listen(Checklisted(goal, checklist)))
        notes = checklist.notes
    for note in notes:
        answer = _merge(answer, listen(Warned(note)))
    state = State(Trajectory(goal, seed=seed, preparation=cost), album, settings, notes=notes)
    return _heed(state, answer)


def plan(state: State, controller: Controller, listen: Listener = ignore) -> State:
    """The next decision. A VLM that fails ends the run with the best image so far; where the budget is used up
    before there is one, the prompt is drawn as it is.

    Raises VLMError where there is no image yet, ReplyError where a controller twice stops before drawing."""
    if state.pending or stopped(state):
        return state
    began = perf_counter()
    with grant(state.settings.budget, state.spent) as granted:
        try:
            decision, more = _ask(state, controller)
        except VLMError as error:
            cost = Cost(seconds={"plan": perf_counter() - began}, usage=granted.made)
            used = _used(state, cost)
            if state.trajectory.steps:
                failed = {} if used else {"stop": f"the controller failed: {error}", "resumable": True}
                return dataclasses.replace(_close(state, cost), **failed)
            if not used:
                raise
            decision, more = _as_asked(state, used, granted.made)
    seconds = perf_counter() - began
    mended, notes = _mend(decision, state)
    notes = (*more, *notes)
    cost = Cost(seconds={"plan": seconds}, usage=decision.usage)
    state = dataclasses.replace(state, pending=Pending(mended, cost=cost, notes=notes))
    state = correct(state, listen(Planned(len(state.trajectory.steps), mended, notes)), listen)
    answer = None
    for note in state.pending.notes if state.pending else ():
        answer = _merge(answer, listen(Warned(note)))
    return _heed(state, answer)


def correct(state: State, answer: Answer | None, listen: Listener = ignore) -> State:
    """The answer to a plan that is not drawn yet. Going back drops the plan; what it cost stays in the books.

    Raises FormatError for a step that there is not."""
    pending = state.pending
    if answer is None or pending is None or pending.images:
        return state
    listen(Answered(len(state.trajectory.steps), "planned", answer))
    state = add_checks(state, answer.checks, listen)
    if answer.back_to is not None:
        state = revert(_close(state, pending.cost), answer.back_to, listen)
        return _heed(dataclasses.replace(state, pending=None), answer)
    if answer.decision:
        mended, notes = _mend(answer.decision, state)
        notes = ("the decision was replaced by hand", *notes)
        state = dataclasses.replace(state, pending=Pending(mended, cost=pending.cost, notes=notes))
    return _heed(state, answer)


def draw(state: State, generator: Generator, listen: Listener = ignore) -> State:
    """The decision's candidates, or the next batch of them. A stop in the middle gives the drawing up; its cost
    stays in the books."""
    pending = state.pending
    if pending is None or not awaits_drawing(state):
        return state
    step, done = len(state.trajectory.steps), len(pending.images)
    count, warnings = _affordable(state, generator, done)
    seeds = tuple(candidate_seed(state.trajectory.seed, step, done + k) for k in range(count))
    conditions = context.build(state.trajectory, pending.decision, state.album)

    def on_step(progress: DrawProgress) -> None:
        answer = listen(Drawing(step, progress))
        if answer and answer.stop:
            raise Cancelled(answer.stop)

    began = perf_counter()
    size = state.settings.size or generator.default_size
    try:
        drawing = generator.draw(conditions, size, seeds, on_step)
    except Cancelled as cancelled:
        state = _charge_closing(state, perf_counter() - began, Usage(), "draw")
        return dataclasses.replace(state, stop=cancelled.thing)
    seconds = _phases(drawing.seconds, perf_counter() - began)
    drawing = dataclasses.replace(drawing, seconds=seconds, notes=(*warnings, *drawing.notes))
    return _take(state, pending, drawing, seeds, listen)


def awaits_drawing(state: State) -> bool:
    """Whether the next phase is to draw what was decided."""
    pending = state.pending
    if pending is None or pending.decision.action == "stop" or stopped(state):
        return False
    if not pending.images:
        return True
    judged, budget = len(pending.candidates) == len(pending.images), state.settings.budget
    spent, steps = state.spent, len(state.trajectory.steps)
    return (
        judged and len(pending.images) < budget.candidates and not budget.exhausted(spent, steps, spent.total_seconds)
    )


def receive(state: State, drawing: Pictures, listen: Listener = ignore) -> State:
    """Candidates that were drawn outside of the loop, in the place of `draw`."""
    pending = state.pending
    if pending is None or not awaits_drawing(state):
        return state
    step = len(state.trajectory.steps)
    seeds = tuple(candidate_seed(state.trajectory.seed, step, k) for k in range(len(drawing.images)))
    return _take(state, pending, drawing, seeds, listen)


def verify(state: State, verifier: Verifier, listen: Listener = ignore, settle: bool = False) -> State:
    """Judge the candidates and settle the step: it becomes the canvas, or is rolled back. Where the round may draw
    more and none has passed, the step stays open, unless it is to `settle` now. After a decision to stop: judge the
    canvas if that never happened, and stop."""
    pending = state.pending
    if pending is None:
        return state
    if pending.decision.action == "stop":
        return state if state.stop else _conclude(state, verifier, listen)
    if not pending.images:
        return state
    bench = open_bench(state, verifier)
    state = catch_up(state, bench, listen)
    pending = judge(state, pending, bench)
    judged = dataclasses.replace(state, pending=charged(pending, bench))
    if not settle and awaits_drawing(judged) and not passes(state, pending):
        return judged
    said: Answer | None = None
    while True:
        step, notes = propose(state, pending, bench)
        answer = listen(Judged(step.index, pending.candidates, step.chosen, step.accepted))
        if answer:
            listen(Answered(step.index, "judged", answer))
        if not answer or not answer.checks or answer == said:
            break
        said = answer
        state = catch_up(add_checks(state, answer.checks, listen), bench, listen)
        pending = judge_further(state, pending, bench)
    step = overrule(step, answer)
    if answer and answer.back_to is not None:
        state = revert(state, answer.back_to, listen)
    for note in notes:
        answer = _merge(answer, listen(Warned(note)))
    return _heed(_settle(state, step, pending.images, listen), answer)


def stopped(state: State) -> str:
    """Why no further round may start, or ''. Before the first drawing only a listener can stop a run."""
    trajectory, budget = state.trajectory, state.settings.budget
    if state.stop or trajectory.stop_reason or not trajectory.steps:
        return state.stop or trajectory.stop_reason
    best = trajectory.best
    sure = _sure_score(trajectory, best) if best and best.hand != "dropped" else 0.0
    if sure >= budget.threshold:
        enough = f"the score of {sure:.3g} reaches the {budget.threshold:g} that was asked for"
        return "every check of the goal passes" if sure >= 1 else enough
    idle = _steps_without_rise(trajectory)
    if idle >= budget.patience:
        return f"{idle} steps in a row did not raise the best score"
    spent = state.spent
    return budget.exhausted(spent, len(trajectory.steps), spent.total_seconds) or _too_late(state)


def finish(state: State, reason: str = "", listen: Listener = ignore) -> State:
    """Close the books: write why it ended, drop a round that was not completed but keep what it cost."""
    if state.trajectory.stop_reason:
        return state
    reason = reason or stopped(state) or "stopped before the budget was used"
    cost = state.pending.cost if state.pending else Cost()
    trajectory = dataclasses.replace(state.trajectory, stop_reason=reason, closing=state.trajectory.closing + cost)
    listen(Stopped(reason, trajectory, state.resumable))
    return dataclasses.replace(state, trajectory=trajectory, pending=None, stop=reason)


def candidate_seed(seed: int, step: int, candidate: int) -> int:
    """53 bits, which JavaScript keeps exact too; a resumed run derives the same."""
    digest = hashlib.sha256(f"{seed}/{step}/{candidate}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 11


def _ask(state: State, controller: Controller) -> tuple[Decision, tuple[str, ...]]:
    """A decision on what the policy asks for, and notes on it; the first one of a run must draw, and gets one more
    try."""
    if used := _used(state):
        return _as_asked(state, used, Usage())
    began = perf_counter()
    brief = find_policy(state.settings.policy).brief(state.trajectory, _means(state))
    decision = dataclasses.replace(controller.decide(state.trajectory, state.album, brief), brief=brief)
    if decision.action != "stop" or state.trajectory.steps:
        return decision, ()
    if used := _used(state, Cost(seconds={"plan": perf_counter() - began}, usage=decision.usage)):
        return _as_asked(state, used, decision.usage)
    again = dataclasses.replace(controller.decide(state.trajectory, state.album, brief), brief=brief)
    if again.action == "stop":
        raise ReplyError(
            f"{controller.name} twice decided to stop before anything was drawn.",
            "Say in the prompt what the picture shows, or use another controller.",
        )
    return dataclasses.replace(again, usage=decision.usage + again.usage), ()


def _as_asked(state: State, used: str, usage: Usage) -> tuple[Decision, tuple[str, ...]]:
    """The prompt itself as a decision, for a run whose budget ends before its first drawing."""
    goal = state.trajectory.goal
    decision = Decision("edit" if goal.references else "generate", "", goal.prompt, goal.labels(), usage=usage)
    return decision, (f"the prompt is drawn as it is, without a plan: {used}",)


def _used(state: State, more: Cost | None = None) -> str:
    """Why nobody may be asked any more once the run has cost `more`, or ''."""
    spent = state.spent + (more or Cost())
    return state.settings.budget.used(spent, spent.total_seconds)


def _means(state: State) -> Means:
    """What the limits on steps and function evaluations leave; the latter once an image has shown its price."""
    budget, steps = state.settings.budget, state.trajectory.steps
    images = (budget.steps - len(steps)) * budget.candidates
    drawn = sum(len(step.candidates) for step in steps)
    if budget.nfe is not None and drawn:
        each = max(1, sum(step.cost.nfe for step in steps) // drawn)
        images = min(images, max(0, budget.nfe - state.spent.nfe) // each)
    return Means(images, budget.candidates)


def _mend(decision: Decision, state: State) -> tuple[Decision, tuple[str, ...]]:
    """A decision that can be drawn, and what had to be changed for that."""
    if decision.action == "stop":
        return decision, ()
    notes: list[str] = []
    unknown = [label for label in decision.references if label not in state.album]
    if unknown:
        notes.append(f"dropped references to images that do not exist: {', '.join(unknown)}")
    references = tuple(dict.fromkeys(label for label in decision.references if label in state.album))
    action = decision.action
    if action == "edit" and not references:
        canvas = state.trajectory.canvas
        references = (canvas.label,) if canvas else state.trajectory.goal.labels()
        notes.append(f"an edit without references starts from {', '.join(references)}" if references else "")
        if not references:
            notes[-1], action = "there is no image to edit yet: generating instead", "generate"
    instruction = decision.instruction.strip() or decision.reasoning.strip() or state.trajectory.goal.prompt
    mended = dataclasses.replace(decision, action=action, references=references, instruction=instruction)
    return mended, tuple(notes)


def _affordable(state: State, generator: Generator, done: int) -> tuple[int, tuple[str, ...]]:
    """How many candidates to draw after `done`: a batch, as far as the function evaluations that are left can
    pay; never fewer than one."""
    budget = state.settings.budget
    wanted = min(budget.batch or budget.candidates, budget.candidates - done)
    if budget.nfe is None:
        return wanted, ()
    left = budget.nfe - state.spent.nfe
    count = max((n for n in range(1, wanted + 1) if generator.nfe(n) <= left), default=1)
    if count == wanted:
        return count, ()
    return count, (f"{done + count} of {budget.candidates} candidates: {left} function evaluations were left",)


def _take(state: State, pending: Pending, drawing: Pictures, seeds: tuple[int, ...], listen: Listener) -> State:
    """The round with these pictures too, and whatever was noted about them told."""
    left_out = () if pending.images else _left_out(state.trajectory, pending.decision)
    drawn = dataclasses.replace(
        pending,
        images=(*pending.images, *(to_rgb(image) for image in drawing.images)),
        seeds=(*pending.seeds, *seeds),
        cost=pending.cost + Cost(drawing.nfe, drawing.seconds),
        notes=(*pending.notes, *left_out, *drawing.notes),
    )
    answer = listen(Drawn(len(state.trajectory.steps), seeds, drawing, len(pending.images)))
    for warning in drawing.notes:
        answer = _merge(answer, listen(Warned(warning)))
    return _heed(dataclasses.replace(state, pending=drawn), answer)


def _left_out(trajectory: Trajectory, decision: Decision) -> tuple[str, ...]:
    """A note on the turns that `context.build` does not tell."""
    gone = [f"r_{s.index}" for s in trajectory.steps if not s.accepted and s.label not in decision.references]
    return (f"the context leaves out what was rolled back: {', '.join(gone)}",) if gone else ()


def _phases(seconds: Mapping[str, float], wall: float) -> dict[str, float]:
    """Seconds by phase that add up to the wall time; what a generator left open counts as drawing."""
    rest = max(0.0, wall - sum(seconds.values()))
    return {**seconds, "draw": seconds.get("draw", 0.0) + rest}


def _settle(state: State, step: Step, images: tuple[Image, ...], listen: Listener) -> State:
    """Append a complete step and tell of it."""
    trajectory = state.trajectory.append(step)
    album = state.album.with_image(step.label, images[step.chosen])
    state = dataclasses.replace(state, trajectory=trajectory, album=album, pending=None)
    answer = listen(Settled(step, images, trajectory))
    if not step.accepted:
        answer = _merge(answer, listen(RolledBack(step)))
    return _heed(state, answer)


def _conclude(state: State, verifier: Verifier, listen: Listener) -> State:
    """The controller says stop. A canvas that was never judged against the goal is judged now."""
    reasoning = state.pending.decision.reasoning if state.pending else ""
    state = dataclasses.replace(state, stop=f"the controller stopped: {reasoning}".rstrip(": "))
    canvas, goal = state.trajectory.canvas, state.trajectory.goal
    if canvas is None or canvas.winner.active is not None:
        return state
    bench = open_bench(state, verifier)
    given = [state.album[label] for label in goal.labels()]
    verdict = bench.judge(state.album[canvas.label], goal.checks, given)
    if verdict is None:
        return state
    judged = dataclasses.replace(canvas.winner, active=verdict)
    candidates = (*canvas.candidates[: canvas.chosen], judged, *canvas.candidates[canvas.chosen + 1 :])
    step = dataclasses.replace(
        canvas, candidates=candidates, cost=canvas.cost + bench.cost, notes=(*canvas.notes, *bench.notes)
    )
    trajectory = state.trajectory.with_step(step)
    listen(Settled(step, (), trajectory))
    return dataclasses.replace(state, trajectory=trajectory)


def _sure_score(trajectory: Trajectory, step: Step) -> float:
    """The score with every unjudged check counted as failed: only what is certain may end a run."""
    verdict, checks = step.winner.active, trajectory.goal.checks
    total = sum(check.weight for check in checks)
    if verdict is None or total <= 0:
        return 0.0
    return sum(check.weight for check, outcome in verdict.effective(checks) if outcome == "pass") / total


def _steps_without_rise(trajectory: Trajectory) -> int:
    """How many of the latest steps were judged against the goal without raising the best score."""
    best, idle = -1.0, 0
    for step in trajectory.steps:
        score = trajectory.score(step)
        if score is not None and score > best:
            best, idle = score, 0
        elif step.winner.active is not None:
            idle += 1
    return idle


def _too_late(state: State) -> str:
    """Why the time that is left is not worth a further round, or '': no image was drawn in so little."""
    seconds = state.settings.budget.seconds
    if seconds is None or state.pending:
        return ""
    left = seconds - state.spent.total_seconds
    quickest = min(_drawing_seconds(step) / len(step.candidates) for step in state.trajectory.steps)
    if left >= quickest:
        return ""
    return f"of the budget of {seconds:g} seconds {left:.1f} are left, and the quickest image took {quickest:.1f}"


def _drawing_seconds(step: Step) -> float:
    return step.cost.total_seconds - step.cost.seconds.get("plan", 0.0) - step.cost.seconds.get("verify", 0.0)


def _charge_closing(state: State, seconds: float, usage: Usage, phase: str = "plan") -> State:
    return _close(state, Cost(seconds={phase: seconds}, usage=usage))


def _close(state: State, cost: Cost) -> State:
    closing = state.trajectory.closing + cost
    return dataclasses.replace(state, trajectory=dataclasses.replace(state.trajectory, closing=closing))


def _merge(first: Answer | None, second: Answer | None) -> Answer | None:
    """The newer answer, unless only the older one asks to stop."""
    if first and first.stop and not (second and second.stop):
        return first
    return second or first


def _heed(state: State, answer: Answer | None) -> State:
    return dataclasses.replace(state, stop=answer.stop) if answer and answer.stop else state


__all__ = ["Pending", "Ports", "Settings", "State", "awaits_drawing", "candidate_seed", "correct", "draw", "finish",
           "plan", "proceed", "receive", "run", "start", "stopped", "verify"]  # fmt: skip
