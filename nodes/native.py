"""FLUX.2 [klein] in ComfyUI's own sampling as the generator of a loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from .host import host_lacks_klein, require_klein
from .sockets import Cast, Generator

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP, VAE

MODES = {"distilled": (4, 1.0), "base": (28, 4.0)}
"""Steps and guidance. A merged model is sampled like a distilled one."""
CUSTOM = "custom"
FLUX2 = "flux2"


class CLVRGeneratorNative(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        import comfy.samplers

        return io.Schema(
            node_id="CLVRGeneratorNative",
            display_name="CLVR Generator (native)",
            category="CLVR/models",
            description=f"{host_lacks_klein()} FLUX.2 [klein] in ComfyUI's own sampling: with its LoRAs, quantised "
            "weights, memory management and previews.".lstrip(),
            inputs=[
                io.Model.Input("model", tooltip="A FLUX.2 [klein], with LoRAs or merged as you like."),
                io.Clip.Input("clip", tooltip="Its text encoder: Qwen3 4B or 8B, loaded as type flux2."),
                io.Vae.Input("vae", tooltip="FLUX.2's VAE."),
                io.Combo.Input(
                    "mode",
                    [*MODES, CUSTOM],
                    tooltip="distilled (and merged): 4 steps without guidance. base: 28 steps with guidance 4. "
                    "custom: the steps and the guidance below.",
                ),
                io.Int.Input(
                    "drawing_steps", default=4, min=1, max=100, tooltip="Denoising steps. For mode custom only."
                ),
                io.Float.Input(
                    "guidance",
                    default=1.0,
                    min=0.0,
                    max=20.0,
                    step=0.1,
                    tooltip="Classifier-free guidance; 1 is none, above costs twice. For mode custom only.",
                ),
                io.Combo.Input(
                    "sampler",
                    comfy.samplers.SAMPLER_NAMES,
                    default="euler",
                    optional=True,
                    tooltip="How the steps are taken. With one that adds noise, candidates are drawn one by one.",
                ),
                io.Combo.Input(
                    "scheduler",
                    [FLUX2, *comfy.samplers.SCHEDULER_NAMES],
                    default=FLUX2,
                    optional=True,
                    tooltip="Where the steps lie. flux2 depends on the picture's size, as FLUX.2 was trained.",
                ),
            ],
            outputs=[Generator.Output(display_name="generator")],
        )

    @classmethod
    def validate_inputs(cls, mode: str) -> bool | str:
        """ComfyUI does not look at an input itself that is looked at here."""
        from ..clvr.errors import HostError

        try:
            require_klein()
        except HostError as error:
            return str(error)
        return mode in (*MODES, CUSTOM) or f"There is no mode '{mode}'. Choose {', '.join(MODES)} or {CUSTOM}."

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: CLIP,
        vae: VAE,
        mode: str,
        drawing_steps: int,
        guidance: float,
        sampler: str = "euler",
        scheduler: str = FLUX2,
    ) -> io.NodeOutput:
        from ..clvr.models import IN_A_GRAPH

        require_klein()
        from .native_generator import NativeGenerator, Sampling

        steps, strength = MODES.get(mode, (drawing_steps, guidance))
        generator = NativeGenerator(model, clip, vae, Sampling(steps, strength, sampler, scheduler))
        return io.NodeOutput(Cast(generator, {"model": IN_A_GRAPH}))


NODES = [CLVRGeneratorNative]
