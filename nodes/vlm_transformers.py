"""A Qwen3-VL folder, run by transformers in this process under ComfyUI's memory management."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.model_patcher
import folder_paths
from comfy_api.latest import io

from .sockets import Cast
from .vlm_sockets import image_side_input, max_tokens_input, roles

if TYPE_CHECKING:
    import torch

    from ..clvr.vlm.qwen import QwenVL

CATEGORY = "CLVR/models"
_EVERYTHING = 1e30  # bytes, as ComfyUI itself asks for them
FOLDERS = ("LLM", "text_encoders", "VLM")
_LOADED: weakref.WeakValueDictionary[tuple[str, str, str], Managed] = weakref.WeakValueDictionary()


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
                    "answer, for a picture model that ComfyUI does not manage (CLVR Generator (diffusers)).",
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
        from ..clvr.vlm import VLMController, VLMVerifier
        from ..clvr.vlm.local import LocalClient, LocalSettings
        from .live import interrupted

        managed = _managed(folder(model), dtype, device)
        settings = LocalSettings(max_tokens=max_tokens, image_side=image_side, keep_prefix=keep_prefix)
        client = LocalClient(managed.qwen, managed.residence(offload == "always"), settings, interrupted)
        options = {"vlm": f"transformers:{model}"}
        return io.NodeOutput(Cast(VLMController(client), options), Cast(VLMVerifier(client, logprobs=True)))


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


def _managed(model: str, dtype: str, device: str) -> Managed:
    """Weights that are in memory already are used again, also by another node."""
    key = (model, dtype, device)
    managed = _LOADED.get(key)
    if managed is None:
        managed = _LOADED[key] = Managed(*_loaded(model, dtype, device))
    return managed


def _loaded(model: str, dtype: str, device: str) -> tuple[QwenVL, torch.device]:
    import torch

    from ..clvr.devices import choose_dtype
    from ..clvr.vlm.local import load

    place = torch.device("cpu") if device == "cpu" else comfy.model_management.get_torch_device()
    return load(model, choose_dtype(dtype, place)), place


class Managed:
    """Weights that ComfyUI counts, frees others for, and moves away when it needs their place."""

    def __init__(self, qwen: QwenVL, device: torch.device) -> None:
        import torch

        shell = torch.nn.Module()  # ComfyUI writes attributes to a model that transformers' own does not allow
        shell.add_module("qwen", qwen.model)
        self.qwen = qwen
        self.shell: Any = shell
        self.patcher = comfy.model_patcher.ModelPatcher(
            shell,
            load_device=device,
            offload_device=torch.device("cpu"),
            size=comfy.model_management.module_size(shell),
        )

    def residence(self, leaves: bool) -> Residence:
        return Residence(self, leaves)


class Residence:
    """ComfyUI decides where the weights are outside of a call; with `leaves` they are in CPU memory. What is
    kept of a conversation waits in CPU memory, where it is in nobody's way."""

    def __init__(self, managed: Managed, leaves: bool) -> None:
        self.device: torch.device = managed.patcher.load_device
        self.rest: torch.device = managed.patcher.offload_device
        self._managed = managed
        self._leaves = leaves

    def __enter__(self) -> None:
        comfy.model_management.load_models_gpu([self._managed.patcher], force_full_load=True)
        self._managed.shell.to(self.device)  # a part that ComfyUI had moved away to make room

    def __exit__(self, *error: object) -> None:
        if self._leaves and self.device != self.rest:
            management = comfy.model_management
            others = [m for m in management.current_loaded_models if m.model is not self._managed.patcher]
            management.free_memory(_EVERYTHING, self.device, others)
            management.soft_empty_cache()


NODES = [CLVRVLMTransformers]
