"""The closed loop in one node."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io, ui

from .pause import pause_input, seconds_input
from .sockets import Cast, Controller, Generator, Run, ThinkingBudget, Trajectory, Verifier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image
    from torch import Tensor

    from ..clvr import ports
    from ..clvr.budget import Budget
    from ..clvr.loop import Settings
    from ..clvr.trajectory import Goal

CATEGORY = "CLVR/loops"
LARGEST_SEED = 2**53 - 1
"""What JavaScript keeps exact."""


def prompt_input() -> io.Input:
    return io.String.Input(
        "prompt",
        default="two red circles above a blue square",
        multiline=True,
        dynamic_prompts=False,
        tooltip="What the picture shall show. The built-in models know coloured shapes and their places.",
    )


def checklist_input() -> io.Input:
    return io.String.Input(
        "checklist",
        default="",
        multiline=True,
        dynamic_prompts=False,
        optional=True,
        tooltip="The checks to go by, one a line, as CLVR Checklist makes them: [kind x2] question (if id). "
        "Empty: the controller makes them from the prompt.",
    )


def policy_input() -> io.Input:
    from ..clvr.policies import SUMMARIES

    means = ". ".join(f"{name}: {summary}" for name, summary in SUMMARIES.items())
    return io.Combo.Input(
        "policy", list(SUMMARIES), default="clvr", optional=True, tooltip=f"How the loop is run. {means}."
    )


def goal_of(prompt: str, checklist: str) -> Goal:
    """Raises FormatError for a line of the checklist that cannot be read."""
    from ..clvr.checklist import parse_text
    from ..clvr.trajectory import Goal

    return Goal(prompt, checks=parse_text(checklist))


def goal_inputs() -> list[io.Input]:
    """What every run starts from, as inputs of a node."""
    return [
        prompt_input(),
        io.Int.Input(
            "seed",
            default=1,
            min=0,
            max=LARGEST_SEED,
            control_after_generate=True,
            tooltip="Fixes everything that is random: the same seed gives the same run.",
        ),
        io.Int.Input("width", default=0, min=0, max=4096, step=16, tooltip="Pixels. 0: the generator's own."),
        io.Int.Input("height", default=0, min=0, max=4096, step=16, tooltip="Pixels. 0: the generator's own."),
    ]


def optional_inputs() -> list[io.Input]:
    return [
        ThinkingBudget.Input("budget", optional=True, tooltip="How much the run may spend. Without it: 8 rounds."),
        io.Image.Input("references", optional=True, tooltip="Pictures that the prompt speaks of, as a batch."),
    ]


def continue_input() -> io.Input:
    return Trajectory.Input(
        "continue_from",
        optional=True,
        tooltip="A run that shall go on, from CLVR Load Trajectory: after a crash, an interrupt, or with a larger "
        "budget. Prompt, seed, size, references and policy are then that run's own; without a budget, the budget too.",
    )


class CLVRClosedLoop(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLVRClosedLoop",
            display_name="CLVR Closed Loop",
            category=CATEGORY,
            description="Plans, draws, verifies and corrects until every check passes or the budget is used.",
            inputs=[
                Generator.Input("generator", tooltip="Who draws."),
                Controller.Input("controller", tooltip="Who plans."),
                Verifier.Input("verifier", tooltip="Who judges."),
                *goal_inputs(),
                io.String.Input(
                    "folder",
                    default="clvr/run",
                    tooltip="Where in ComfyUI's output folder the run is kept, every round as soon as it is "
                    "complete; a number is added.",
                ),
                pause_input(),
                seconds_input(),
                *optional_inputs(),
                continue_input(),
                checklist_input(),
                policy_input(),
            ],
            outputs=[
                io.Image.Output(display_name="final"),
                io.Image.Output(display_name="contact sheet"),
                Trajectory.Output(display_name="trajectory"),
                io.String.Output(display_name="report", tooltip="Path of the HTML report."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, pause: str = "never", **inputs: object) -> float:
        """Where a person is asked, the run is made anew each time."""
        return 0.0 if pause == "never" else float("nan")

    @classmethod
    def execute(
        cls,
        generator: Cast[ports.Generator],
        controller: Cast[ports.Controller],
        verifier: Cast[ports.Verifier],
        prompt: str,
        seed: int,
        width: int,
        height: int,
        folder: str,
        pause: str = "never",
        pause_seconds: float = 300.0,
        budget: Budget | None = None,
        references: Tensor | None = None,
        continue_from: Run | None = None,
        checklist: str = "",
        policy: str = "clvr",
    ) -> io.NodeOutput:
        from ..clvr import loop, past
        from ..clvr.estimate import Setup, estimate
        from . import board, books, records
        from .live import Live
        from .pause import Pauses
        from .pixels import to_pictures

        roles = {"controller": controller, "generator": generator, "verifier": verifier}
        cast = loop.Ports(controller.port, generator.port, verifier.port)
        run = books.resumed(continue_from, budget, **roles) if continue_from else None
        settings = settings_for(budget, policy, width, height, generator.port.default_size)
        goal = goal_of(prompt, checklist)
        with books.Book(run, folder) as book:
            kept = book.open()
            entry = board.opened(board.folder_name(kept), kept)
            recorder = past.Recorder(generator.port.name, lambda: past.vlm_name(controller.port, verifier.port))
            live = Live(cls.hidden.unique_id, settings.budget.steps, entry, recorder)
            if run is None:
                setup = Setup.of(generator.port, controller.port, verifier.port, settings.size)
                live.foretell(estimate(settings.budget, setup, past.History().read()[0]))
                state = loop.start(goal, to_pictures(references), cast.controller, settings, seed, live)
                run = book.sign(Run(state).after(state, **roles))
            else:
                live.resume(run.state)
            state = loop.proceed(run.state, cast, book.then(live, Pauses(live, pause, pause_seconds)))
            run = book.left(run.after(state, live.candidates)).over()
        report = records.present(run, kept, records.metadata(cls.hidden.prompt, cls.hidden.extra_pnginfo))
        final, sheet = records.pictures_of(run)
        live.tell({"kind": "reported"})
        live.close(run.state.best)
        return io.NodeOutput(final, sheet, run, str(report), ui=shown([run.state.best], cls))


def shown(images: Sequence[Image | None], node: type[io.ComfyNode]) -> ui.PreviewImage:
    """Pictures to look at on a node, enlarged where they are small."""
    from .pixels import enlarged, to_tensor

    return ui.PreviewImage(to_tensor([enlarged(image) for image in images if image]), cls=node)


def settings_for(
    budget: Budget | None, policy: str, width: int, height: int, size: ports.Size | None = None
) -> Settings:
    """The widgets as the engine's settings. `size` is for 0 x 0. Raises FormatError for half a size."""
    from ..clvr.budget import Budget
    from ..clvr.errors import FormatError
    from ..clvr.loop import Settings

    if bool(width) != bool(height):
        raise FormatError(f"A size of {width} x {height} is half a size.", "Give both sides, or 0 for both.")
    return Settings(budget or Budget(), policy, (width, height) if width else size)


NODES = [CLVRClosedLoop]
