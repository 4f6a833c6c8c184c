"""A run that waits for a person: in the loop in one node, or as a node between two others."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from comfy_api.latest import io

from .sockets import LoopState, Run

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..clvr.answers import Question
    from ..clvr.events import Answer, Event
    from ..clvr.loop import State
    from .live import Live

MOMENTS = {
    "never": (),
    "after planning": ("planned",),
    "after judging": ("judged",),
    "both": ("planned", "judged"),
}
ALONE = 15.0
"""Seconds after which a run goes on that nobody is connected to: enough for a page to be loaded again."""
LOOKING = 10.0
"""Seconds for which a request to the panel's routes counts as somebody who is there."""
TICK = 0.1


def pause_input() -> io.Input:
    return io.Combo.Input(
        "pause",
        list(MOMENTS),
        optional=True,
        default="never",
        tooltip="Wait for you in the CLVR panel: approve, change the instruction, choose another candidate, add a "
        "check, go back, stop.",
    )


def seconds_input() -> io.Input:
    return io.Float.Input(
        "pause_seconds",
        optional=True,
        default=300.0,
        min=0.0,
        max=86400.0,
        step=1.0,
        tooltip="How long to wait before going on as proposed; 0: as long as it takes. Without a connected browser "
        f"it goes on after {ALONE:.0f} s.",
    )


class CLVRPause(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLVRPause",
            display_name="CLVR Pause",
            category="CLVR/steps",
            description="Waits for you in the CLVR panel: after Plan with the instruction, after Verify with the "
            "picture and its checks.",
            inputs=[
                LoopState.Input("run", tooltip="The run so far. A run that has stopped passes through unchanged."),
                seconds_input(),
            ],
            outputs=[LoopState.Output(display_name="run")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: object) -> float:
        """Never equal to itself: a person is asked each time."""
        return float("nan")

    @classmethod
    def execute(cls, run: Run, pause_seconds: float = 300.0) -> io.NodeOutput:
        from ..clvr import byhand, loop
        from . import board, books
        from .live import Live

        state = run.state
        question = open_question(run)
        if question is None:
            return io.NodeOutput(run)
        live = Live(cls.hidden.unique_id, entry=board.taken_up(run.id, state))
        with books.Book(run) as book:
            answer = book.listen(question.event) or wait(question, live, pause_seconds)
            if answer and question.moment == "planned":
                state = loop.correct(state, answer, book.then(live))
            elif answer:
                state = byhand.reconsider(state, answer, pictures(run), book.then(live))
            return io.NodeOutput(book.left(run.asked(state)))


def open_question(run: Run) -> Question | None:
    """What there is to decide between two phases; None where it was asked before, or the run is over."""
    from ..clvr.answers import Question
    from ..clvr.events import Judged, Planned

    state, trajectory = run.state, run.state.trajectory
    if trajectory.stop_reason or state.stop or run.settled == moment(state):
        return None
    index, pending = len(trajectory.steps), state.pending
    if pending and not pending.images:
        return Question(Planned(index, pending.decision, pending.notes), trajectory)
    if pending is None and trajectory.steps:
        step = trajectory.steps[-1]
        return Question(Judged(step.index, step.candidates, step.chosen, step.accepted), trajectory)
    return None


def moment(state: State) -> tuple[int, bool]:
    """Which pause a state is at: rounds that are complete, and whether one is planned."""
    return len(state.trajectory.steps), state.pending is not None


def pictures(run: Run) -> dict[int, Image]:
    """The newest step's candidates by number."""
    from ..clvr.report import candidate_label

    step = run.state.trajectory.steps[-1]
    labels = {k: candidate_label(step.index, k) for k in range(len(step.candidates))}
    return {k: run.candidates[label] for k, label in labels.items() if label in run.candidates}


class Pauses:
    """A listener of the loop that asks a person; its answer is the person's. None where nobody answers."""

    def __init__(self, live: Live, when: str, seconds: float) -> None:
        self._live = live
        self._moments = MOMENTS[when]
        self._seconds = seconds

    def __call__(self, event: Event) -> Answer | None:
        from ..clvr.answers import Question
        from ..clvr.events import Judged, Planned

        if not isinstance(event, (Planned, Judged)) or self._live.entry is None:
            return None
        question = Question(event, self._live.entry.watch.trajectory)
        return wait(question, self._live, self._seconds) if question.moment in self._moments else None


def wait(question: Question, live: Live, seconds: float) -> Answer | None:
    """The answer; None where the time is up or nobody is there. Raises ComfyUI's exception on an interrupt."""
    from . import panel
    from .board import Asked
    from .live import interrupted

    entry = live.entry
    if entry is None:
        return None
    now = time.monotonic()
    asked = Asked(question, now + seconds if seconds else None)
    entry.asked = asked
    if stop := live.stop():
        entry.asked = None
        return stop
    live.tell({"kind": "paused", "step": question.event.step, "moment": question.moment})
    last_seen = now
    try:
        while not asked.given.wait(TICK):
            interrupted()
            now = time.monotonic()
            if panel.watched(now, LOOKING):
                last_seen = now
            if now - last_seen >= ALONE or (asked.deadline is not None and now >= asked.deadline):
                break
    finally:
        entry.asked = None
        live.tell({"kind": "resumed", "step": question.event.step, "answered": asked.given.is_set()})
    return asked.answer


NODES = [CLVRPause]
