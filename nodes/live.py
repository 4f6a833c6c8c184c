"""What a running loop shows in ComfyUI: the node's progress bar, previews, and `clvr.event` messages."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import comfy.model_management
from comfy_api.latest import ComfyAPISync
from comfy_execution.progress import get_progress_state
from server import PromptServer

from ..clvr import events
from ..clvr.answers import STOPPED
from ..clvr.report import candidate_label
from ..clvr.trajectory import Trajectory, Verdict
from . import board
from .pixels import enlarged

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..clvr.estimate import Estimate
    from ..clvr.loop import State
    from ..clvr.past import Recorder

PREVIEW_SECONDS = 0.2
"""Decoding a preview costs time, and nobody sees more than a few a second."""
interrupted = comfy.model_management.throw_exception_if_processing_interrupted


class Live:
    """A listener for one node. Raises ComfyUI's own exception as soon as the user interrupts, and answers where
    the user asked the run to stop. `entry` is what the panel shows of the run.

    It also keeps the candidates' pictures by their label in the report, which the engine's state drops; and has
    `past` remember what the steps cost."""

    def __init__(
        self, node: str, rounds: int = 1, entry: board.Entry | None = None, past: Recorder | None = None
    ) -> None:
        self.candidates: dict[str, Image] = {}
        self.entry = entry
        self._node = node
        self._rounds = rounds
        self._past = past
        self._first: int | None = None
        self._shown = 0.0
        if entry:
            entry.node, entry.prompt = board.display(node), get_progress_state().prompt_id

    def __call__(self, event: events.Event) -> events.Answer | None:
        interrupted()
        if isinstance(event, events.Drawing):
            self._progress(event)
        if isinstance(event, events.Settled):
            for k, image in enumerate(event.images):
                self.candidates[candidate_label(event.step.index, k)] = image
        if self._past:
            self._past.listen(event)
        told = describe(event)
        if self.entry:
            self._watch(self.entry, event)
        self.tell(told)
        if line := in_short(told):
            self._write(line)
        return self.stop()

    def foretell(self, expected: Estimate) -> None:
        """Show what the run will take. To be told before it starts."""
        line = expected.line()
        if self.entry:
            self.entry.watch.expected = line
        self.tell({"kind": "estimated", "expected": line})
        self._write(f"Estimate: {line}")

    def _write(self, line: str) -> None:
        """On the node itself."""
        server = PromptServer.instance
        server.send_progress_text(line, self._node, server.client_id)

    def resume(self, state: State) -> None:
        """Show a run that goes on from here."""
        trajectory, budget = state.trajectory, state.settings.budget
        self._rounds = max(1, budget.steps - len(trajectory.steps))
        self(events.Started(trajectory.goal, budget, trajectory.seed))
        if self.entry:
            self.entry.watch.trajectory = trajectory

    def tell(self, told: Mapping[str, Any]) -> None:
        """Send a message about this run to the client that queued it."""
        server, entry = PromptServer.instance, self.entry
        whose = {"node": board.display(self._node), "prompt_id": get_progress_state().prompt_id}
        server.send_sync("clvr.event", {**whose, "run": entry.id if entry else None, **told}, server.client_id)

    def close(self, image: Image | None) -> None:
        """Fill the bar and leave the run's picture on the node in the place of the last preview."""
        picture = enlarged(image) if image else None
        ComfyAPISync().execution.set_progress(1, 1, node_id=self._node, preview_image=picture)

    def _watch(self, entry: board.Entry, event: events.Event) -> None:
        entry.watch.listen(event)
        if isinstance(event, events.Settled) and entry.folder:
            entry.watch.forget(event.step.index)

    def stop(self) -> events.Answer | None:
        """What the panel asked for while the run did not wait for an answer."""
        if self.entry is None or not self.entry.stopping:
            return None
        self.entry.stopping = False
        return events.Answer(stop=STOPPED)

    def _progress(self, event: events.Drawing) -> None:
        """The bar counts this node's drawing steps over all the rounds that it may take."""
        if self._first is None:
            self._first = event.step
        progress, picture = event.progress, None
        if progress.preview and time.monotonic() - self._shown >= PREVIEW_SECONDS:
            picture = enlarged(progress.preview())
            self._shown = time.monotonic()
        done = (event.step - self._first) * progress.steps + progress.step
        ComfyAPISync().execution.set_progress(
            done, self._rounds * progress.steps, node_id=self._node, preview_image=picture
        )


def describe(event: events.Event) -> Mapping[str, Any]:
    """An event as a small JSON message: its kind, and what a person wants to know."""
    match event:
        case events.Started(goal, budget, seed):
            return {"kind": "started", "prompt": goal.prompt, "budget": budget.describe(), "seed": seed}
        case events.Checklisted(goal):
            return {"kind": "checklisted", "checks": [check.question for check in goal.checks]}
        case events.Planned(step, decision):
            told = {"action": decision.action, "reasoning": decision.reasoning}
            return {"kind": "planned", "step": step, "instruction": decision.instruction, **told}
        case events.Drawing(step, progress):
            return {"kind": "drawing", "step": step, "done": progress.step, "of": progress.steps}
        case events.Drawn(step, seeds, _, first):
            return {"kind": "drawn", "step": step, "images": first + len(seeds)}
        case events.Judged(step, _, chosen, accepted):
            return {"kind": "judged", "step": step, "chosen": chosen, "accepted": accepted}
        case events.Settled(step, _, trajectory):
            verdict = tally(trajectory, step.winner.active)
            return {"kind": "settled", "step": step.index, "accepted": step.accepted, **verdict}
        case events.RolledBack(step):
            return {"kind": "rolled back", "step": step.index}
        case events.Warned(message):
            return {"kind": "warned", "message": message}
        case events.Amended(goal):
            return {"kind": "amended", "checks": [check.question for check in goal.checks]}
        case events.Answered(step, moment):
            return {"kind": "answered", "step": step, "moment": moment}
        case events.Stopped(reason, trajectory):
            best = tally(trajectory, trajectory.best.winner.active if trajectory.best else None)
            return {"kind": "stopped", "reason": reason, "rounds": len(trajectory.steps), **best}


def in_short(told: Mapping[str, Any]) -> str:
    """A line for the node itself. It holds no word of a VLM: the frontend shows it as HTML."""
    if told["kind"] == "planned":
        return f"Round {told['step'] + 1}: {told['action']}"
    if told["kind"] not in ("settled", "stopped"):
        return ""
    checked = "" if told["passing"] is None else f", {told['passing']} of {told['checks']} checks pass"
    if told["kind"] == "stopped":
        return f"Best of {told['rounds']} rounds{checked}"
    return f"Round {told['step'] + 1}: {'kept' if told['accepted'] else 'rolled back'}{checked}"


def tally(trajectory: Trajectory, verdict: Verdict | None) -> dict[str, Any]:
    """How many of the goal's checks pass, and which ones do not; None where nothing was judged."""
    checks = trajectory.goal.checks
    if verdict is None:
        return {"passing": None, "checks": len(checks), "score": None, "open": []}
    outcomes = verdict.effective(checks)
    wanting = [check.question for check, outcome in outcomes if outcome != "pass"]
    passing = len(outcomes) - len(wanting)
    return {"passing": passing, "checks": len(checks), "score": verdict.score(checks), "open": wanting}
