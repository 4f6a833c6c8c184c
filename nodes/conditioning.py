"""A round drawn by any sampler graph: the context as conditioning on the way out, the pictures on the way back."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from .host import host_lacks_klein, require_klein
from .sockets import LoopState, Run
from .steps import CATEGORY, blank

if TYPE_CHECKING:
    from comfy.sd import CLIP, VAE
    from torch import Tensor

    from ..clvr.loop import Pending

DRAWN_BY = "a sampler graph"
SIZE = 1024, 1024
"""Of a run whose size was left to the generator."""


class Noise:
    """ComfyUI's NOISE: each image of a batch starts as it would alone, whatever the batch."""

    def __init__(self, seeds: tuple[int, ...]) -> None:
        self.seeds = seeds
        self.seed = seeds[0]

    def generate_noise(self, input_latent: dict[str, Any]) -> Tensor:
        from .native_generator import noise

        latent = input_latent["samples"]
        return noise(latent, self.seeds[: len(latent)])


def sampling_outputs() -> list[io.Output]:
    """What a sampler graph draws from."""
    return [
        io.Conditioning.Output(display_name="positive"),
        io.Conditioning.Output(
            display_name="negative", tooltip="The empty text with the same references. Unused at cfg 1."
        ),
        io.Latent.Output(display_name="latent", tooltip="Empty, one for each candidate of the budget."),
        io.Noise.Output(
            display_name="noise", tooltip="For SamplerCustomAdvanced: each candidate as its own seed gives it."
        ),
        io.Int.Output(display_name="seed", tooltip="Of the first candidate; the same run gives the same."),
        io.Int.Output(display_name="width"),
        io.Int.Output(display_name="height"),
        io.String.Output(display_name="instruction"),
    ]


class CLVRConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLVRConditioning",
            display_name="CLVR Conditioning",
            category=CATEGORY,
            description=f"{host_lacks_klein()} What was planned, as conditioning for a sampler graph of your own: "
            "the whole context, and the chosen images as references.".lstrip(),
            inputs=[
                LoopState.Input("run", tooltip="The run after CLVR Plan. Where it has stopped, nothing is drawn."),
                io.Clip.Input("clip", tooltip="FLUX.2 [klein]'s text encoder: Qwen3 4B or 8B, loaded as type flux2."),
                io.Vae.Input("vae", tooltip="FLUX.2's VAE."),
            ],
            outputs=[
                LoopState.Output(display_name="run", tooltip="For CLVR Take Drawing."),
                *sampling_outputs(),
            ],
        )

    @classmethod
    def execute(cls, run: Run, clip: CLIP, vae: VAE) -> io.NodeOutput:
        from comfy_execution.graph_utils import ExecutionBlocker

        from ..clvr import loop

        require_klein()
        if run.state.pending is None or not loop.awaits_drawing(run.state):
            return io.NodeOutput(run, *[ExecutionBlocker(None) for _ in sampling_outputs()])
        return io.NodeOutput(*_outputs(run, run.state.pending, clip, vae))


class CLVRTakeDrawing(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLVRTakeDrawing",
            display_name="CLVR Take Drawing",
            category=CATEGORY,
            description="Takes pictures from a sampler graph of your own as the round's candidates.",
            inputs=[
                LoopState.Input("run", tooltip="From CLVR Conditioning. Where the run has stopped, nothing is drawn."),
                io.Image.Input("images", lazy=True, tooltip="One candidate each. Drawn only when the run needs them."),
                io.Int.Input(
                    "evaluations",
                    default=4,
                    min=0,
                    max=100_000,
                    tooltip="Function evaluations that each picture took: steps, twice with guidance. "
                    "They count against the thinking budget.",
                ),
            ],
            outputs=[LoopState.Output(display_name="run"), io.Image.Output(display_name="candidates")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def check_lazy_status(cls, run: Run, evaluations: int, images: Tensor | None = None) -> list[str]:
        from ..clvr import loop

        if images is not None or not loop.awaits_drawing(run.state):
            return []
        _asked[cls.hidden.unique_id] = time.perf_counter()
        return ["images"]

    @classmethod
    def execute(cls, run: Run, evaluations: int, images: Tensor | None = None) -> io.NodeOutput:
        from ..clvr import loop
        from ..clvr.ports import Drawing
        from . import board
        from .live import Live
        from .loop import shown
        from .pixels import to_pictures, to_tensor

        if images is None or not loop.awaits_drawing(run.state):
            drawn = run.state.pending.images if run.state.pending else ()
            return io.NodeOutput(run, to_tensor(drawn or [run.state.best or blank(SIZE)]))
        pictures, began = to_pictures(images), _asked.pop(cls.hidden.unique_id, None)
        seconds = {"draw": time.perf_counter() - began} if began else {}
        live = Live(cls.hidden.unique_id, entry=board.taken_up(run.id, run.state))
        state = loop.receive(run.state, Drawing(tuple(pictures), evaluations * len(pictures), seconds), live)
        live.close(pictures[0])
        after = _drawn_elsewhere(run.after(state))
        return io.NodeOutput(after, to_tensor(pictures), ui=shown(pictures, cls))


NODES = [CLVRConditioning, CLVRTakeDrawing]

_asked: dict[str, float] = {}
"""When a node asked for its pictures, by the node's id, in perf_counter seconds."""


def _drawn_elsewhere(run: Run) -> Run:
    """With the generator named, which no command can load."""
    from ..clvr.models import IN_A_GRAPH

    models, options = {**run.models, "generator": DRAWN_BY}, {**run.options, "model": IN_A_GRAPH}
    return dataclasses.replace(run, models=models, options=options)


def _outputs(run: Run, pending: Pending, clip: CLIP, vae: VAE) -> tuple[Any, ...]:
    """What there is to draw, as the node's outputs."""
    import comfy.model_management
    import torch

    from ..clvr import context, loop
    from ..clvr.flux2.limits import TOKEN, check_size
    from ..clvr.trajectory import Cost
    from .klein import CHANNELS, conditions

    trajectory, settings = run.state.trajectory, run.state.settings
    width, height = settings.size or SIZE
    check_size((width, height))
    step, count = len(trajectory.steps), settings.budget.candidates
    seeds = tuple(loop.candidate_seed(trajectory.seed, step, k) for k in range(count))
    began = time.perf_counter()
    found = conditions(clip, vae, context.build(trajectory, pending.decision, run.state.album), guided=True)
    cost = Cost(seconds={"encode": time.perf_counter() - began})
    told = dataclasses.replace(pending, cost=pending.cost + cost, notes=(*pending.notes, *found.notes))
    after = dataclasses.replace(run, state=dataclasses.replace(run.state, pending=told))
    device = comfy.model_management.intermediate_device()
    latent = {"samples": torch.zeros([count, CHANNELS, height // TOKEN, width // TOKEN], device=device)}
    instruction = pending.decision.instruction
    return after, found.positive, found.negative, latent, Noise(seeds), seeds[0], width, height, instruction
