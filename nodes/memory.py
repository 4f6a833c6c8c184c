"""The pack's own models under ComfyUI's memory management: it counts them, and moves them away for others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import comfy.model_management as management
import comfy.model_patcher

if TYPE_CHECKING:
    import torch

    from ..clvr import ports
    from ..clvr.context import Context
    from ..clvr.flux2.generator import Flux2Generator

_EVERYTHING = 1e30  # bytes, as ComfyUI itself asks for them
_ASKED = 1.1  # of a model's size, by ComfyUI itself
DRAWING = 2048
"""Bytes of working memory a pixel of an image that is drawn: an estimate, not measured."""


class Managed:
    """Weights that ComfyUI frees others for, and moves away when it needs their place."""

    def __init__(self, device: torch.device, modules: Iterable[torch.nn.Module]) -> None:
        """The modules are in CPU memory and will compute on `device`."""
        import torch

        # ComfyUI writes attributes to a model that transformers' own does not allow.
        self.shell: Any = torch.nn.ModuleList(modules)
        self.patcher = comfy.model_patcher.ModelPatcher(
            self.shell,
            load_device=device,
            offload_device=torch.device("cpu"),
            size=management.module_size(self.shell),
        )

    @property
    def device(self) -> torch.device:
        return self.patcher.load_device

    @property
    def rest(self) -> torch.device:
        return self.patcher.offload_device

    def load(self, working: int = 0) -> None:
        """Onto the device, all of it, with room for `working` bytes beside it.

        Room is made here: ComfyUI alone would take it from the part of these weights that is there already."""
        away = self.patcher.model_size() - self.patcher.loaded_size()
        self.make_room(int(_ASKED * away) + working + management.extra_reserved_memory() + 1)
        management.load_models_gpu([self.patcher], memory_required=working, force_full_load=True)
        self.shell.to(self.device)  # a part that ComfyUI had moved away to make room

    def unload(self) -> None:
        if self.device != self.rest:
            others = [m for m in management.current_loaded_models if m.model is not self.patcher]
            management.free_memory(_EVERYTHING, self.device, others)
            management.soft_empty_cache()

    def make_room(self, size: int) -> None:
        """Move others away until `size` bytes are free beside these weights."""
        ours = [m for m in management.current_loaded_models if m.model is self.patcher]
        make_room(size, self.device, ours)


def make_room(size: int, device: torch.device, kept: Sequence[Any] = ()) -> None:
    """Move models of ComfyUI's away from the device, but for those `kept`, until `size` bytes are free."""
    import torch

    if device != torch.device("cpu"):
        management.free_memory(size + management.minimum_inference_memory(), device, list(kept))


class HostedGenerator:
    """A diffusers pipeline beside ComfyUI's models. Without an offload of its own ComfyUI moves its weights; with
    one, ComfyUI's models make room for its largest part."""

    def __init__(self, generator: Flux2Generator, device: torch.device, offload: str) -> None:
        import torch

        modules = [part for part in generator.pipeline.components.values() if isinstance(part, torch.nn.Module)]
        self._generator = generator
        self._device = device
        self._managed = Managed(device, modules) if offload == "none" else None
        self._largest = max(map(management.module_size, modules)) if offload == "model" else 0  # bytes

    @property
    def name(self) -> str:
        return self._generator.name

    @property
    def default_size(self) -> ports.Size:
        return self._generator.default_size

    def nfe(self, images: int) -> int:
        return self._generator.nfe(images)

    def draw(
        self,
        context: Context,
        size: ports.Size,
        seeds: Sequence[int],
        on_step: Callable[[ports.DrawProgress], None] | None = None,
    ) -> ports.Drawing:
        working = DRAWING * size[0] * size[1] * len(seeds)
        if self._managed:
            self._managed.load(working)
        else:
            make_room(self._largest + working, self._device)
        return self._generator.draw(context, size, seeds, on_step)

    def release(self) -> None:
        self._generator.release()
