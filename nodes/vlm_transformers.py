"""A Qwen3-VL folder, run by transformers in this process under ComfyUI's memory management."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import comfy.model_management
import folder_paths
from comfy_api.latest import io

from .memory import Managed
from .sockets import Cast
from .vlm_sockets import image_side_input, max_tokens_input, roles

if TYPE_CHECKING:
    import torch

    from ..clvr.vlm.qwen import QwenVL

CATEGORY = "CLVR/models"
FOLDERS = ("LLM", "text_encoders", "VLM")
_LOADED: weakref.WeakValueDictionary[tuple[str, str, str], Weights] = weakref.WeakValueDictionary()


class CLVRVLMTransformers(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLVRVLMTransformers",
            display_name="CLVR VLM (transformers)",
            category=CATEGORY,
            description="Plans and judges with a Qwen3-VL folder, in this process. Judgements come with "
            "probabilities, replies keep to their form, and a round does not read the rounds before it again.",
            inputs=[
                io.String.Input(
                    "model",
                    default="Qwen/Qwen3-VL-4B-Instruct",
                    tooltip="A folder, the name of one in models/LLM, models/text_encoders or models/VLM, or a hub "
                    "id, which is downloaded when it is not there yet (4B: 9 GB, 8B: 18 GB).",
                ),
                io.Combo.Input(
                    "dtype", ["auto", "bfloat16", "float16", "float32"], tooltip="Number format of the weights."
                ),
                io.Combo.Input(
                    "device",
                    ["auto", "cpu"],
                    tooltip="auto: where ComfyUI computes. cpu leaves the graphics memory to the picture model.",
                ),
                io.Combo.Input(
                    "offload",
                    ["auto", "always"],
                    tooltip="auto: ComfyUI moves it away when another model needs the memory. always: after every "
                    "answer, for models that ComfyUI does not manage.",
                ),
                io.Boolean.Input(
                    "keep_prefix",
                    default=True,
                    tooltip="Keep what was computed for the conversation so far. Costs memory, saves time in every "
                    "round but the first.",
                ),
                max_tokens_input(),
                image_side_input(),
            ],
            outputs=roles(),
        )

    @classmethod
    def execute(
        cls,
        model: str,
        dtype: str,
        device: str,
        offload: str,
        keep_prefix: bool,
        max_tokens: int,
        image_side: int,
    ) -> io.NodeOutput:
        from ..clvr.packages import require

        require("torch", "transformers")
        from ..clvr.vlm import VLMController, VLMVerifier
        from ..clvr.vlm.local import LocalClient, LocalSettings
        from .live import interrupted

        weights = _weights(folder(model), dtype, device)
        settings = LocalSettings(max_tokens=max_tokens, image_side=image_side, keep_prefix=keep_prefix)
        residence = Residence(weights.managed, offload == "always")
        client = LocalClient(weights.qwen, residence, settings, interrupted)
        options = {"vlm": f"transformers:{model}"}
        verifier = VLMVerifier(client, logprobs=True, compare=True)
        return io.NodeOutput(Cast(VLMController(client), options), Cast(verifier))


def folder(model: str) -> str:
    """The folder in ComfyUI's model folders that is called so; else the text as it is."""
    name = model.strip()
    for kind in FOLDERS:
        roots = (
            folder_paths.get_folder_paths(kind)
            if kind in folder_paths.folder_names_and_paths
            else [str(Path(folder_paths.models_dir, kind))]
        )
        for found in (Path(root, name.rsplit("/", 1)[-1]) for root in roots):
            if name and (found / "config.json").is_file():
                return str(found)
    return name


def _weights(model: str, dtype: str, device: str) -> Weights:
    """Weights that are in memory already are used again, also by another node."""
    key = (model, dtype, device)
    weights = _LOADED.get(key)
    if weights is None:
        weights = _LOADED[key] = Weights(*_loaded(model, dtype, device))
    return weights


def _loaded(model: str, dtype: str, device: str) -> tuple[QwenVL, torch.device]:
    import torch

    from ..clvr.devices import choose_dtype
    from ..clvr.vlm.local import load

    place = torch.device("cpu") if device == "cpu" else comfy.model_management.get_torch_device()
    return load(model, choose_dtype(dtype, place)), place


class Weights:
    """A Qwen3-VL in ComfyUI's care."""

    def __init__(self, qwen: QwenVL, device: torch.device) -> None:
        self.qwen = qwen
        self.managed = Managed(device, [qwen.model])


class Residence:
    """ComfyUI decides where the weights are outside of a call; with `leaves` they are in CPU memory. What is
    kept of a conversation waits in CPU memory, where it is in nobody's way."""

    def __init__(self, managed: Managed, leaves: bool) -> None:
        self.device = managed.device
        self.rest = managed.rest
        self._managed = managed
        self._leaves = leaves

    def __enter__(self) -> None:
        self._managed.load()

    def __exit__(self, *error: object) -> None:
        if self._leaves:
            self._managed.unload()

    def make_room(self, size: int) -> None:
        self._managed.make_room(size)


NODES = [CLVRVLMTransformers]
