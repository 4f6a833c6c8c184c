"""The phases of a round as separate nodes: start, plan, draw, verify, finish. One engine function each."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from comfy_api.latest import io

from .loop import (
    checklist_input,
    continue_input,
    goal_inputs,
    goal_of,
    optional_inputs,
    policy_input,
    settings_for,
    shown,
)
from .sockets import Cast, Controller, Generator, LoopState, Run, Trajectory, Verifier

if TYPE_CHECKING:
    from collections.abc import Mapping

    from PIL.Image import Image
    from torch import Tensor

    from ..clvr import ports
    from ..clvr.budget import Budget
    from ..clvr.loop import State
    from ..clvr.past import Recorder

CATEGORY = "CLVR/steps"
MARKS = {"pass": "✓", "fail": "✗", "unjudged": "?", "skipped": "–"}


def state_input() -> io.Input:
    return LoopState.Input("run", tooltip="The run so far. A run that has stopped passes through unchanged.")


class CLVRStart(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLVRStart",
            display_name="CLVR Start",
            category=CATEGORY,
            description="Turns a prompt into a goal with a checklist, and starts a run.",
            inputs=[
                Controller.Input("controller", tooltip="Who makes the checklist."),
                *goal_inputs(),
                *optional_inputs(),
                io.String.Input(
                    "folder",
                    default="clvr/run",
                    optional=True,
                    tooltip="Where in ComfyUI's output folder the run is kept, every round as soon as it is complete; "
                    "a number is added. Empty: nowhere, until CLVR Save Trajectory.",
                ),
                continue_input(),
                checklist_input(),
                policy_input(),
            ],
            outputs=[
                LoopState.Output(display_name="run"),
                io.String.Output(display_name="checklist", tooltip="What the run goes by, one check a line."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        controller: Cast[ports.Controller],
        prompt: str,
        seed: int,
        width: int,
        height: int,
        budget: Budget | None = None,
        references: Tensor | None = None,
        folder: str = "clvr/run",
        continue_from: Run | None = None,
        checklist: str = "",
        policy: str = "clvr",
    ) -> io.NodeOutput:
        from ..clvr import loop
        from ..clvr.checklist import to_text
        from . import board, books
        from .live import Live
        from .pixels import to_pictures

        name, settings = board.new_name(cls.hidden.unique_id), settings_for(budget, policy, width, height)
        live = Live(cls.hidden.unique_id, entry=board.opened(name))
        if continue_from:
            run = dataclasses.replace(books.resumed(continue_from, budget), id=name, prefix=folder)
            live.resume(run.state)
        else:
            state = loop.start(
                goal_of(prompt, checklist), to_pictures(references), controller.port, settings, seed, live
            )
            run = Run(state, id=name, prefix=folder).after(state, controller=controller)
            with books.Book(run) as book:
                run = book.begin(run)
        return io.NodeOutput(run, to_text(run.state.trajectory.goal.checks))


class CLVRPlan(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLVRPlan",
            display_name="CLVR Plan",
            category=CATEGORY,
            description="Decides what to draw or to correct next, or to stop.",
            inputs=[state_input(), Controller.Input("controller", tooltip="Who plans.")],
            outputs=[LoopState.Output(display_name="run"), io.String.Output(display_name="decision")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, run: Run, controller: Cast[ports.Controller]) -> io.NodeOutput:
        from ..clvr import loop
        from . import board
        from .live import Live

        live = Live(cls.hidden.unique_id, entry=board.taken_up(run.id, run.state))
        state = loop.plan(run.state, controller.port, live)
        return io.NodeOutput(run.after(state, controller=controller), _decision(state))


class CLVRGenerate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLVRGenerate",
            display_name="CLVR Generate",
            category=CATEGORY,
            description="Draws the planned round, conditioned on everything before it.",
            inputs=[state_input(), Generator.Input("generator", tooltip="Who draws.")],
            outputs=[LoopState.Output(display_name="run"), io.Image.Output(display_name="candidates")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, run: Run, generator: Cast[ports.Generator]) -> io.NodeOutput:
        from ..clvr import loop
        from . import board
        from .live import Live
        from .pixels import to_tensor

        live = Live(cls.hidden.unique_id, entry=board.taken_up(run.id, run.state))
        state = loop.draw(run.state, generator.port, live)
        drawn = state.pending.images if state.pending else ()
        images = drawn or [state.best or blank(generator.port.default_size)]
        live.close(images[0])
        return io.NodeOutput(run.after(state, generator=generator), to_tensor(images), ui=shown(images, cls))


class CLVRVerify(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLVRVerify",
            display_name="CLVR Verify",
            category=CATEGORY,
            description="Checks the drawing, and keeps it as the canvas or rolls it back.",
            inputs=[state_input(), Verifier.Input("verifier", tooltip="Who judges.")],
            outputs=[
                LoopState.Output(display_name="run"),
                io.Image.Output(display_name="canvas", tooltip="What the next round starts from."),
                io.Float.Output(display_name="score", tooltip="Share of passing checks; 0 where none was judged."),
                io.String.Output(display_name="verdict"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, run: Run, verifier: Cast[ports.Verifier]) -> io.NodeOutput:
        from ..clvr import loop
        from . import board, books
        from .live import Live
        from .pixels import to_tensor

        entry, names = board.taken_up(run.id, run.state), run.after(run.state, verifier=verifier).models
        live = Live(cls.hidden.unique_id, entry=entry, past=remembered_as(names))
        with books.Book(run.after(run.state, verifier=verifier)) as book:
            state = loop.verify(run.state, verifier.port, book.then(live), settle=True)
            after = book.left(run.after(state, live.candidates, verifier=verifier))
        canvas, step = state.trajectory.canvas, (state.trajectory.steps or (None,))[-1]
        image = state.album[canvas.label] if canvas else blank((64, 64))
        score = state.trajectory.score(step) if step else None
        return io.NodeOutput(after, to_tensor([image]), score or 0.0, _verdict(state))


class CLVRFinish(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLVRFinish",
            display_name="CLVR Finish",
            category=CATEGORY,
            description="Closes the run; its result is the best image, not merely the last.",
            inputs=[state_input()],
            outputs=[
                io.Image.Output(display_name="final"),
                io.Image.Output(display_name="contact sheet"),
                Trajectory.Output(display_name="trajectory"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, run: Run) -> io.NodeOutput:
        from ..clvr import loop
        from . import board, books
        from .live import Live
        from .records import pictures_of

        live = Live(cls.hidden.unique_id, entry=board.taken_up(run.id, run.state))
        with books.Book(run) as book:
            done = book.left(run.after(loop.finish(run.state, listen=book.then(live)))).over()
        return io.NodeOutput(*pictures_of(done), done, ui=shown([done.state.best], cls))


NODES = [CLVRStart, CLVRPlan, CLVRGenerate, CLVRVerify, CLVRFinish]


def remembered_as(names: Mapping[str, str]) -> Recorder | None:
    """Who keeps what a step of these models costs; nobody where another graph drew it."""
    from ..clvr.past import Recorder

    if not {"generator", "controller", "verifier"} <= names.keys():
        return None
    return Recorder(names["generator"], lambda: f"{names['controller']}, {names['verifier']}")


def _decision(state: State) -> str:
    """What was decided, to read; why nothing was, where the run has stopped."""
    if state.pending is None:
        return f"stopped: {state.stop or state.trajectory.stop_reason}"
    decision = state.pending.decision
    parts = (decision.reasoning, f"{decision.action}: {decision.instruction}")
    return "\n".join(part for part in parts if part)


def _verdict(state: State) -> str:
    """The newest step's checks, a line each."""
    if not state.trajectory.steps:
        return ""
    step = state.trajectory.steps[-1]
    verdict = step.winner.active
    if verdict is None:
        return "kept" if step.accepted else "rolled back"
    outcomes = verdict.effective(state.trajectory.goal.checks)
    return "\n".join(f"{MARKS[outcome]} {check.question}" for check, outcome in outcomes)


def blank(size: tuple[int, int]) -> Image:
    """What is shown of a run that stopped before it drew anything."""
    from PIL import Image

    return Image.new("RGB", size, "#808080")
