"""Who draws, plans and judges: the built-in world, a diffusers folder, a VLM behind an address."""

from __future__ import annotations

from comfy_api.latest import io

from .sockets import Controller, Generator, Verifier

CATEGORY = "CLVR/models"


class CLVRGeneratorBuiltin(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLVRGeneratorBuiltin",
            display_name="CLVR Generator (built-in)",
            category=CATEGORY,
            description="The small FLUX.2 [klein] that comes with the pack. It draws coloured shapes.",
            inputs=[
                io.Int.Input(
                    "drawing_steps", default=0, min=0, max=100, tooltip="Denoising steps. 0: the model's own."
                ),
                io.Float.Input(
                    "guidance",
                    default=0.0,
                    min=0.0,
                    max=20.0,
                    step=0.1,
                    tooltip="Classifier-free guidance; 1 is none, above costs twice. 0: the model's own.",
                ),
            ],
            outputs=[Generator.Output(display_name="generator")],
        )

    @classmethod
    def execute(cls, drawing_steps: int, guidance: float) -> io.NodeOutput:
        from ..clvr import builtin
        from ..clvr.flux2.generator import Flux2Generator

        return io.NodeOutput(
            Flux2Generator.load(builtin.PATH, steps=drawing_steps or None, guidance=guidance or None)
        )


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
                io.Int.Input(
                    "drawing_steps",
                    default=0,
                    min=0,
                    max=100,
                    tooltip="Denoising steps. 0: 4 for a distilled model, 28 for a base model.",
                ),
                io.Float.Input(
                    "guidance",
                    default=0.0,
                    min=0.0,
                    max=20.0,
                    step=0.1,
                    tooltip="Classifier-free guidance, for base models. 0: the model's own.",
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
        from ..clvr.flux2.generator import Flux2Generator

        return io.NodeOutput(
            Flux2Generator.load(
                _diffusers_folder(model),
                device=device,
                dtype=dtype,
                offload=offload,
                steps=drawing_steps or None,
                guidance=guidance or None,
            )
        )


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
            outputs=[
                Controller.Output(display_name="controller"),
                Verifier.Output(display_name="verifier"),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        from ..clvr.shapes.controller import ShapesController
        from ..clvr.shapes.verifier import MeasuringVerifier

        return io.NodeOutput(ShapesController(), MeasuringVerifier())


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
                    tooltip="The server's address. A key comes from the environment (CLVR_VLM_API_KEY), "
                    "never from the workflow, and goes to the address in CLVR_VLM_URL alone.",
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
                io.Int.Input(
                    "max_tokens",
                    default=4096,
                    min=64,
                    max=65536,
                    tooltip="Tokens that an answer may have. Models that think aloud need more.",
                ),
            ],
            outputs=[
                Controller.Output(display_name="controller"),
                Verifier.Output(display_name="verifier"),
            ],
        )

    @classmethod
    def execute(
        cls, address: str, model: str, seconds: float, retries: int, max_tokens: int
    ) -> io.NodeOutput:
        from ..clvr.vlm import ClientSettings, OpenAIClient, VLMController, VLMVerifier
        from .live import interrupted

        settings = ClientSettings(read=seconds, retries=retries, max_tokens=max_tokens)
        client = OpenAIClient(
            address, model or None, api_key=_key_for(address), settings=settings, waiting=interrupted
        )
        return io.NodeOutput(VLMController(client), VLMVerifier(client))


def _key_for(address: str) -> str | None:
    """The key in the environment, for the server that the environment names: a workflow made by someone else
    must not be able to send it elsewhere."""
    import os
    from urllib.parse import urlsplit

    trusted = urlsplit(os.environ.get("CLVR_VLM_URL", ""))
    asked = urlsplit(address)
    same = (asked.scheme, asked.netloc) == (trusted.scheme, trusted.netloc)
    return os.environ.get("CLVR_VLM_API_KEY") if same else None


NODES = [CLVRGeneratorBuiltin, CLVRGeneratorDiffusers, CLVRControllerBuiltin, CLVRVLMServer]
