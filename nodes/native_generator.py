"""ports.Generator over ComfyUI's own sampling. Loading, offloading, LoRAs, quantised weights and interrupts are
ComfyUI's: the model goes through its guider as it came."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import comfy.model_base
import comfy.model_management as management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ..clvr.errors import SettingError
from ..clvr.flux2.limits import TOKEN, check_size
from ..clvr.ports import Drawing, DrawProgress, Size
from .klein import CHANNELS, Conditions, conditions
from .pixels import to_pictures

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP, VAE
    from PIL.Image import Image

    from ..clvr.context import Context

FLUX2 = "flux2"
"""The schedule of Flux2Scheduler; every other name is one of ComfyUI's."""
WITHOUT_NOISE = {"euler", "heun", "heunpp2", "dpm_2", "lms", "dpmpp_2m", "ipndm", "ipndm_v", "deis", "res_multistep",
                 "gradient_estimation", "uni_pc", "uni_pc_bh2"}  # fmt: skip
"""Samplers with which an image of a batch is the image that it is alone: no noise on the way, no step size that
depends on the other images."""


@dataclass(frozen=True)
class Sampling:
    steps: int
    guidance: float
    sampler: str = "euler"
    scheduler: str = FLUX2

    @property
    def guided(self) -> bool:
        """ComfyUI does not evaluate the negative at a guidance of 1."""
        return not math.isclose(self.guidance, 1.0)


@dataclass
class _Round:
    """One call of `draw` under way."""

    conditions: Conditions
    size: Size
    seeds: Sequence[int]
    on_step: Callable[[DrawProgress], None] | None
    at_once: int
    latents: list[Tensor] = field(default_factory=list)
    evaluations: int = 0
    notes: list[str] = field(default_factory=list)


class NativeGenerator:
    """`sampling` decides everything that the graph does not."""

    def __init__(self, model: ModelPatcher, clip: CLIP, vae: VAE, sampling: Sampling) -> None:
        """Raises SettingError for a model that is no FLUX.2."""
        if not isinstance(model.model, comfy.model_base.Flux2):
            raise SettingError(
                f"The model is a {type(model.model).__name__}, not a FLUX.2.",
                "Connect a FLUX.2 [klein] from Load Diffusion Model.",
            )
        self.model, self.clip, self.vae, self.sampling = model, clip, vae, sampling
        self._measured: float | None = None
        """Evaluations that an image of the last drawing took."""

    @property
    def name(self) -> str:
        return f"FLUX.2 in ComfyUI ({self.sampling.steps} steps, guidance {self.sampling.guidance:g})"

    @property
    def default_size(self) -> Size:
        return 1024, 1024

    def nfe(self, images: int) -> int:
        """As the last drawing was counted; before it, one evaluation a step, two with guidance."""
        each = self._measured or self.sampling.steps * (2 if self.sampling.guided else 1)
        return math.ceil(images * each)

    def draw(
        self,
        context: Context,
        size: Size,
        seeds: Sequence[int],
        on_step: Callable[[DrawProgress], None] | None = None,
    ) -> Drawing:
        """Raises SettingError for a size or for a CLIP or VAE of another model, ImageError for a reference that
        the model cannot take, ContextLimitError; whatever `on_step` raises passes through."""
        check_size(size)
        clock = [time.perf_counter()]
        found = conditions(self.clip, self.vae, context, self.sampling.guided)
        self._check_text(found)
        clock.append(time.perf_counter())
        current = _Round(found, size, seeds, on_step, self._at_once(found, size, len(seeds)))
        while len(current.latents) < len(seeds):
            self._draw_some(current)
        clock.append(time.perf_counter())
        images = to_pictures(self.vae.decode(torch.cat(current.latents)))
        clock.append(time.perf_counter())
        self._measured = current.evaluations / len(seeds)
        phases = zip(("encode", "draw", "decode"), clock, clock[1:], strict=False)
        seconds = {phase: end - begin for phase, begin, end in phases}
        return Drawing(tuple(images), current.evaluations, seconds, (*found.notes, *current.notes))

    def _check_text(self, found: Conditions) -> None:
        given = found.positive[0][0].shape[-1]
        wanted = self.model.model.model_config.unet_config["context_in_dim"]
        if given != wanted:
            raise SettingError(
                f"The CLIP gives {given} numbers a token, the model reads {wanted}.",
                "Load the text encoder of this model (Qwen3 4B for klein 4B, 8B for 9B) with CLIPLoader, type flux2.",
            )

    def _at_once(self, found: Conditions, size: Size, wanted: int) -> int:
        """Images that fit beside the whole model by ComfyUI's own estimate, at least one."""
        if self.sampling.sampler not in WITHOUT_NOISE:
            return 1
        room = _room(self.model)
        return max((n for n in range(2, wanted + 1) if self._memory(found, size, n) <= room), default=1)

    def _memory(self, found: Conditions, size: Size, images: int) -> float:
        """Bytes that ComfyUI reckons with for a batch."""
        shapes: dict[str, list[Any]] = defaultdict(list)
        sides = [found.positive, found.negative] if self.sampling.guided else [found.positive]
        for _, options in (pair for side in sides for pair in side):
            for key, shape in self.model.model.extra_conds_shapes(**options).items():
                shapes[key] += [shape] * images
        noise = [images * len(sides), CHANNELS, size[1] // TOKEN, size[0] // TOKEN]
        return self.model.model.memory_required(noise, cond_shapes=shapes)

    def _draw_some(self, current: _Round) -> None:
        """The next seeds in one batch; half as many from now on when the memory does not hold them."""
        left = current.seeds[len(current.latents) :]
        batch = left[: current.at_once]
        try:
            current.latents.extend(self._sample(current, batch).split(1))
            return
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        management.soft_empty_cache()
        current.at_once = len(batch) // 2
        current.notes.append(f"out of memory with {len(batch)} images at once; drew {current.at_once} at once")

    def _sample(self, current: _Round, seeds: Sequence[int]) -> Tensor:
        """[len(seeds), 128, H/16, W/16]."""
        width, height = current.size
        device = management.intermediate_device()
        empty = torch.zeros([1, CHANNELS, height // TOKEN, width // TOKEN], device=device)
        samples = self._guider(current).sample(
            noise(empty, seeds),
            empty.repeat(len(seeds), 1, 1, 1),
            comfy.samplers.sampler_object(self.sampling.sampler),
            self.sigmas(current.size),
            callback=self._callback(current),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seeds[0],
        )
        return samples.to(device)

    def sigmas(self, size: Size) -> Tensor:
        from comfy_extras.nodes_flux import get_schedule

        if self.sampling.scheduler == FLUX2:
            return get_schedule(self.sampling.steps, size[0] * size[1] // TOKEN**2)
        model_sampling = self.model.get_model_object("model_sampling")
        return comfy.samplers.calculate_sigmas(model_sampling, self.sampling.scheduler, self.sampling.steps)

    def _guider(self, current: _Round) -> comfy.samplers.CFGGuider:
        """ComfyUI's own, which counts what it evaluates."""

        def count(executor: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
            current.evaluations += len(x)
            return executor(x, *args, **kwargs)

        guider = comfy.samplers.CFGGuider(self.model)
        guider.model_options = comfy.model_patcher.create_model_options_clone(guider.model_options)
        kind = comfy.patcher_extension.WrappersMP.APPLY_MODEL
        comfy.patcher_extension.add_wrapper(kind, count, guider.model_options, is_model_options=True)
        guider.inner_set_conds({"positive": current.conditions.positive})
        if self.sampling.guided:
            guider.set_conds(current.conditions.positive, current.conditions.negative)
        guider.set_cfg(self.sampling.guidance)
        return guider

    def _callback(self, current: _Round) -> Callable[[int, Tensor, Tensor, int], None]:
        previewer = _previewer(self.model)
        before = math.ceil(len(current.latents) / current.at_once)
        batches = before + math.ceil((len(current.seeds) - len(current.latents)) / current.at_once)

        def callback(step: int, denoised: Tensor, _: Tensor, steps: int) -> None:
            if current.on_step:
                done = before * steps + step + 1
                current.on_step(DrawProgress(done, batches * steps, partial(_preview, previewer, denoised)))

        return callback


def noise(latent: Tensor, seeds: Sequence[int]) -> Tensor:
    """For each seed the noise that a single image of it starts from."""
    return torch.cat([comfy.sample.prepare_noise(latent[:1], seed) for seed in seeds])


def _room(model: ModelPatcher) -> float:
    """Bytes left on the model's device once it alone is there: ComfyUI unloads other models for it."""
    device = model.load_device
    free = management.get_free_memory(device)
    if management.is_device_cpu(device):
        return free
    held = sum(held.model_loaded_memory() for held in management.current_loaded_models if held.device == device)
    return free + held - model.model_size()


def _previewer(model: ModelPatcher) -> latent_preview.LatentPreviewer:
    """As ComfyUI is set; a rough one where it is set to none, for a run is there to be watched."""
    latents = model.model.latent_format
    return latent_preview.get_previewer(model.load_device, latents) or latent_preview.Latent2RGBPreviewer(
        latents.latent_rgb_factors, latents.latent_rgb_factors_bias, latents.latent_rgb_factors_reshape
    )


def _preview(previewer: latent_preview.LatentPreviewer, denoised: Tensor) -> Image:
    return previewer.decode_latent_to_preview_image("JPEG", denoised)[1]
