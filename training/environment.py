"""clvr's closed loop as an environment of TRL's GRPOTrainer: the planner decides, the loop does the rest.

What the planner reads and writes is letter for letter what `clvr.vlm.agents.VLMController` sends and reads, so that
the trained model needs nothing new at inference. A decision is a call of the one tool, `decide`: the generator draws
it, the verifier judges it, a worse image is rolled back; what comes back is the controller's next turn, image and
verdict. TRL masks its tokens. A decision to stop, or a reply that decides nothing, ends the run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clvr import loop
from clvr.errors import ReplyError
from clvr.images import load_image
from clvr.ports import NO_BRIEF, Album, Checklist, Generator, Verifier
from clvr.state import Settings, State
from clvr.trajectory import Brief, Decision, Goal, Trajectory, decode, encode, referenced
from clvr.vlm import templates
from clvr.vlm.agents import history, read_decision

from .chat import shown, turn

if TYPE_CHECKING:
    from PIL.Image import Image

MARK = "decide"
RESPONSE: dict[str, Any] = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "tool_calls": {
            "open_pattern": r'(?=.*"action"\s*:\s*"\s*(?i:generate|edit)\b)',
            "close_pattern": r"<\|im_end\|>\s*",
            "repeats": True,
            "content": "text",
            "transform": {"type": "function", "function": {"name": MARK, "arguments": {"reply": "{content}"}}},
        },
        "content": {"close_pattern": r"<\|im_end\|>\s*", "content": "text"},
    },
}
"""How transformers reads a reply: one that draws is a call of `decide` with the whole reply, any other is text."""


@dataclass(frozen=True)
class Given:
    """A goal to plan for, and the paths of its reference images."""

    goal: Goal
    references: tuple[str, ...] = ()

    def pack(self) -> str:
        """As a field of TRL's dataset."""
        return json.dumps(encode(self))

    @classmethod
    def unpack(cls, text: str) -> Given:
        return decode(cls, json.loads(text))

    def images(self) -> list[Image]:
        return [load_image(Path(path)) for path in self.references]


@dataclass(frozen=True)
class Studio:
    """What all runs of a training share."""

    generator: Generator
    verifier: Verifier
    settings: Settings
    image_side: int


@dataclass(frozen=True)
class _Written:
    """A controller whose decision is already made."""

    decision: Decision
    name: str = "planner"

    def checklist(self, goal: Goal, images: Album) -> Checklist:
        return Checklist(goal.checks)

    def decide(self, trajectory: Trajectory, images: Album, brief: Brief = NO_BRIEF) -> Decision:
        return self.decision


class Rollout:
    """One run. TRL takes every method without an underscore for a tool, `reset` apart."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._state: State | None = None
        self._fault: BaseException | None = None

    def reset(self, **row: Any) -> Any:  # noqa: ANN401
        """The user's turn that opens the conversation, from a row of the dataset: `given` and `seed`."""
        task = Given.unpack(row["given"])
        nobody = _Written(Decision("stop"))
        self._fault = None
        self._state = loop.start(task.goal, task.images(), nobody, self._studio.settings, row["seed"])
        return self._newest()

    def decide(self, reply: str) -> list[dict[str, Any]]:
        """Carry out a decision: draw it, and have the image judged.

        Args:
            reply: The decision as one JSON object.

        Returns:
            The image and the verdict on it.
        """
        try:
            return self._round(reply)
        except BaseException as fault:  # TRL tells the model whatever a tool raises, and goes on
            self._fault = fault
            raise

    @property
    def state(self) -> State:
        """The run so far. Raises what went wrong in a tool, which TRL has swallowed."""
        if self._fault is not None:
            raise self._fault
        assert self._state is not None, "reset comes first"
        return self._state

    def _round(self, reply: str) -> list[dict[str, Any]]:
        state, studio = self.state, self._studio
        if ended := loop.stopped(state):
            return _said(f"The run has ended: {ended}.")
        try:
            decision = read_decision(reply, state.trajectory, state.album)
        except ReplyError as bad:
            return _said(templates.repair(str(bad)))
        state = loop.plan(state, _Written(decision))
        while state.pending and not loop.stopped(state):
            state = loop.verify(loop.draw(state, studio.generator), studio.verifier)
        self._state = state
        return self._newest()

    def _newest(self) -> list[dict[str, Any]]:
        return shown(history(self.state.trajectory, self.state.album)[-1], self._studio.image_side)


def opening(given: Given) -> list[dict[str, Any]]:
    """The prompt before `reset` fills in the user's turn: the system's turn, and an empty one."""
    system = history(Trajectory(Goal(given.goal.prompt)), Album())[0]
    return [turn(system), {"role": "user", "content": []}]


def final(state: State) -> tuple[Image | None, Sequence[Image]]:
    """What the run hands over, its best image, and the user's references."""
    return state.best, [state.album[referenced(i)] for i in range(state.trajectory.goal.references)]


def _said(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text}]
