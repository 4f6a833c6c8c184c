"""A Qwen3-VL that ComfyUI loaded as CLIP, as planner and judge."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from .sockets import Cast
from .vlm_sockets import image_side_input, max_tokens_input, roles

if TYPE_CHECKING:
    from ..clvr.vlm.encoder import EncoderClient

CATEGORY = "CLVR/models"
NEEDED = "ComfyUI 0.29"
_MODULE = "comfy.text_encoders.qwen3vl"


def is_supported() -> bool:
    """Whether this ComfyUI knows Qwen3-VL."""
    return find_spec(_MODULE) is not None


class CLVRVLMFromCLIP(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        missing = "" if is_supported() else f" NOT USABLE HERE: it needs {NEEDED} or newer."
        return io.Schema(
            node_id="CLVRVLMFromCLIP",
            display_name="CLVR VLM (from CLIP)",
            category=CATEGORY,
            description="Plans and judges with a Qwen3-VL that ComfyUI loaded as CLIP; its memory management "
            f"moves it away while the picture model draws.{missing}",
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip="Qwen3-VL 4B or 8B from a Load CLIP node. Its type may be anything but flux2, which "
                    "drops the part that sees.",
                ),
                max_tokens_input(2048, 32768, "Tokens that an answer may have. Memory is set aside for all of them."),
                image_side_input(),
            ],
            outputs=roles(),
        )

    @classmethod
    def execute(cls, clip: Any, max_tokens: int, image_side: int) -> io.NodeOutput:  # noqa: ANN401
        from ..clvr.vlm import VLMController, VLMVerifier

        client = of(clip, max_tokens, image_side)
        return io.NodeOutput(Cast(VLMController(client)), Cast(VLMVerifier(client, compare=True)))


def of(clip: Any, max_tokens: int, image_side: int) -> EncoderClient:  # noqa: ANN401
    """A client for a ComfyUI CLIP. Raises VLMSetupError where it is no Qwen3-VL, or ComfyUI knows none."""
    from ..clvr.errors import VLMSetupError
    from ..clvr.vlm.encoder import EncoderClient, EncoderSettings
    from .live import interrupted

    if not is_supported():
        raise VLMSetupError(
            f"This ComfyUI has no Qwen3-VL: that came with {NEEDED}.",
            "Update ComfyUI, or use CLVR VLM (transformers) or CLVR VLM (server).",
        )
    import comfy.text_encoders.qwen3vl as qwen3vl

    models = [m for m in clip.cond_stage_model.modules() if isinstance(m, qwen3vl.Qwen3VL)]
    if not models or not isinstance(clip.tokenizer, qwen3vl.Qwen3VLTokenizer):
        raise VLMSetupError(
            f"This CLIP is no Qwen3-VL that sees, but {type(clip.cond_stage_model).__name__} with "
            f"{type(clip.tokenizer).__name__}.",
            "Load a Qwen3-VL 4B or 8B file with Load CLIP, with a type other than flux2. The text encoder of "
            "FLUX.2 [klein] cannot plan.",
        )
    layers = [*models[0].model.layers, *models[0].visual.blocks]
    name = f"{clip.tokenizer.clip_name}@ComfyUI"
    return EncoderClient(clip, name, EncoderSettings(max_tokens, image_side), interrupted, layers)


NODES = [CLVRVLMFromCLIP]
