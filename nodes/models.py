"""Who draws, plans and judges: the built-in world, a diffusers folder, a VLM behind an address."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..clvr.builtin import DEFAULT, VARIANTS
from .sockets import Cast, Generator
from .vlm_sockets import max_tokens_input, roles

if TYPE_CHECKING:
    from ..clvr import ports
    from ..clvr.models import Choice

CATEGORY = "CLVR/models"
AT_ONCE = 4
"""Pictures that a server is asked about at the same time."""


def sampling_inputs(steps: str, guidance: str) -> list[io.Input]:
    """`steps` and `guidance`: tooltips."""
    return [
        io.Int.Input("drawing_steps", default=0, min=0, max=100, tooltip=steps),
        io.Float.Input("guidance", default=0.0, min=0.0, max=20.0, step=0.1, tooltip=guidance),
    ]


class CLVRGeneratorBuiltin(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLVRGeneratorBuiltin",
            display_name="CLVR Generator (built-in)",
            category=CATEGORY,
            description="The small FLUX.2 [klein] that comes with the pack. It draws coloured shapes.",
            inputs=[
                *sampling_inputs(
                    "Denoising steps. 0: the model's own.",
                    "Classifier-free guidance; 1 is none, above costs twice. 0: the model's own.",
                ),
                io.Combo.Input(
                    "weights",
                    list(VARIANTS),
                    default=DEFAULT,
                    optional=True,
                    tooltip="base and sft draw in 28 steps with guidance, distilled and merged in 4 without.",
                ),
            ],
            outputs=[Generator.Output(display_name="generator")],
        )

    @classmethod
    def execute(cls, drawing_steps: int, guidance: float, weights: str = DEFAULT) -> io.NodeOutput:
        from ..clvr.models import BUILTIN, Choice, load_generator

        model = BUILTIN if weights == DEFAULT else f"{BUILTIN}:{weights}"
        choice = Choice(model=model, steps=drawing_steps or None, guidance=guidance or None)
        named = {key: value for key, value in choice.options().items() if key in ("model", "steps", "guidance")}
        return io.NodeOutput(Cast(load_generator(choice), named))


class CLVRGeneratorDiffusers(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLVRGeneratorDiffusers",
            display_name="CLVR Generator (diffusers)",
            category=CATEGORY,
            description="FLUX.2 [klein] from a diffusers folder (transformer, vae, text_encoder, … in it).",
            inputs=[
                io.String.Input(
                    "model",
                    default="black-forest-labs/FLUX.2-klein-4B",
                    tooltip="A folder, the name of one in models/diffusers, or a hub id.",
                ),
                *sampling_inputs(
                    "Denoising steps. 0: 4 for a distilled model, 28 for a base model.",
                    "Classifier-free guidance, for base models. 0: the model's own.",
                ),
                io.Combo.Input("device", ["auto", "cuda", "mps", "cpu"], tooltip="Where to compute."),
                io.Combo.Input(
                    "dtype",
                    ["auto", "bfloat16", "float16", "float32"],
                    tooltip="Number format of the weights.",
                ),
                io.Combo.Input(
                    "offload",
                    ["none", "model", "sequential"],
                    tooltip="Keep in CPU memory what is not computing: models, or single layers (slow).",
                ),
            ],
            outputs=[Generator.Output(display_name="generator")],
        )

    @classmethod
    def execute(
        cls, model: str, drawing_steps: int, guidance: float, device: str, dtype: str, offload: str
    ) -> io.NodeOutput:
        from ..clvr.models import Choice

        choice = Choice(
            model=_diffusers_folder(model),
            steps=drawing_steps or None,
            guidance=guidance or None,
            device=device,
            dtype=dtype,
            offload=offload,
        )
        return io.NodeOutput(Cast(_hosted(choice), choice.options()))


def _hosted(choice: Choice) -> ports.Generator:
    """Its weights wait in CPU memory. Raises MissingFileError, WeightsError, SettingError."""
    from comfy.model_management import get_torch_device

    from ..clvr.devices import choose_device, choose_dtype
    from ..clvr.models import load_generator
    from .memory import HostedGenerator

    device = get_torch_device() if choice.device == "auto" else choose_device(choice.device)
    dtype = str(choose_dtype(choice.dtype, device)).removeprefix("torch.")
    resting = "cpu" if choice.offload == "none" else str(device)
    generator = load_generator(dataclasses.replace(choice, device=resting, dtype=dtype))
    return HostedGenerator(generator, device, choice.offload)


def _diffusers_folder(model: str) -> str:
    """The folder in ComfyUI's models/diffusers that is called so; else the text as it is."""
    import os

    import folder_paths

    for folder in folder_paths.get_folder_paths("diffusers"):
        found = os.path.join(folder, model.rsplit("/", 1)[-1])
        if os.path.isfile(os.path.join(found, "model_index.json")):
            return found
    return model


class CLVRControllerBuiltin(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLVRControllerBuiltin",
            display_name="CLVR Controller (built-in)",
            category=CATEGORY,
            description="Plans by rule and judges by measuring pixels, for coloured shapes and their places.",
            inputs=[],
            outputs=roles(),
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        from ..clvr.models import BUILTIN, Choice, load_judges

        controller, verifier = load_judges(Choice(vlm=BUILTIN))
        return io.NodeOutput(Cast(controller, {"vlm": BUILTIN}), Cast(verifier))


class CLVRVLMServer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLVRVLMServer",
            display_name="CLVR VLM (server)",
            category=CATEGORY,
            description="Plans and judges with a vision-language model behind an OpenAI-compatible address "
            "(vLLM, llama.cpp, Ollama, LM Studio, …).",
            inputs=[
                io.String.Input(
                    "address",
                    default="http://127.0.0.1:8000/v1",
                    tooltip="The server's address. A key comes from the environment (CLVR_VLM_API_KEY) or from "
                    "ComfyUI's settings under CLVR, never from the workflow, and goes only to the address that is "
                    "named beside it.",
                ),
                io.String.Input(
                    "model",
                    default="",
                    placeholder="the server's only one",
                    tooltip="The model's name on the server. Empty: the only one that it has.",
                ),
                io.Float.Input(
                    "seconds",
                    default=300.0,
                    min=1.0,
                    max=3600.0,
                    step=1.0,
                    tooltip="How long one answer may take.",
                ),
                io.Int.Input(
                    "retries",
                    default=3,
                    min=0,
                    max=10,
                    tooltip="Further attempts when the server is busy or the connection breaks.",
                ),
                max_tokens_input(),
                io.Int.Input(
                    "at_once",
                    default=AT_ONCE,
                    min=1,
                    max=32,
                    optional=True,
                    tooltip="Pictures that it judges at the same time, such as a round's candidates. 1: one after the "
                    "other, for a server that answers one request at a time.",
                ),
            ],
            outputs=roles(),
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: object) -> str:
        from . import settings

        return settings.fingerprint()

    @classmethod
    def execute(
        cls, address: str, model: str, seconds: float, retries: int, max_tokens: int, at_once: int = AT_ONCE
    ) -> io.NodeOutput:
        from ..clvr.models import Choice, api_key, vouched
        from ..clvr.packages import require

        require("httpx", "pydantic")
        from ..clvr.vlm import ClientSettings, OpenAIClient, VLMController, VLMVerifier
        from . import settings
        from .live import interrupted

        # A workflow made by someone else must not be able to send the key to an address of its own.
        choice = Choice(vlm=address, vlm_model=model, trusted=vouched(address))
        client = OpenAIClient(
            address,
            model or None,
            api_key(choice) or settings.key_for(address),
            ClientSettings(read=seconds, retries=retries, max_tokens=max_tokens),
            waiting=interrupted,
        )
        options = {"vlm": address, **({"vlm_model": model} if model else {})}
        verifier = VLMVerifier(client, logprobs=True, at_once=at_once, compare=True)
        return io.NodeOutput(Cast(VLMController(client), options), Cast(verifier))


NODES = [CLVRGeneratorBuiltin, CLVRGeneratorDiffusers, CLVRControllerBuiltin, CLVRVLMServer]
