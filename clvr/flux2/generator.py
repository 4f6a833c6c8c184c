"""Drawing with FLUX.2 [klein] through diffusers, conditioned on the whole trajectory (eq. 1).

The prompt is the context's text, the images are the chosen references in order. For equal inputs the pictures
are those of a direct Flux2KleinPipeline call."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..context import Context, fit
from ..errors import DeviceMemoryError
from ..ports import Drawing, DrawProgress, Size
from .encodings import KleinPipeline, synchronise
from .folder import Sampling, find
from .limits import LONGEST_TEXT, check_size, references
from .loading import load_pipeline

_NO_MEMORY = ("out of memory", "can't allocate memory")


@dataclass
class _Round:
    """One call of `draw` under way."""

    size: Size
    seeds: Sequence[int]
    on_step: Callable[[DrawProgress], None] | None
    arguments: dict[str, Any]
    images: list[Image.Image] = field(default_factory=list)
    evaluations: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"encode": 0.0, "draw": 0.0, "decode": 0.0})
    notes: list[str] = field(default_factory=list)


def padded_length(tokens: int, base: int) -> int:
    """Tokens to which a prompt is padded: the model's base length, beyond it the next multiple of 8."""
    return max(base, -(-tokens // 8) * 8)


class Flux2Generator:
    """ports.Generator over a FLUX.2 [klein] pipeline."""

    def __init__(self, pipeline: KleinPipeline, sampling: Sampling, name: str, previews: bool = True) -> None:
        self.pipeline = pipeline
        self.sampling = sampling
        self._name = name
        self.previews = previews
        self.batch: int | None = None
        """Images that the memory holds at once, None while it held all."""

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        offload: str = "none",
        steps: int | None = None,
        guidance: float | None = None,
    ) -> Flux2Generator:
        """From a folder or a hub id; steps and guidance default to the model's own (base 28 and 4, distilled
        4 and 1). Under offload no previews are made, for each would move the models around.

        Raises MissingFileError, WeightsError, SettingError."""
        folder = find(model)
        sampling = folder.sampling.chosen(steps, guidance)
        pipeline = load_pipeline(folder, device, dtype, offload)
        return cls(pipeline, sampling, str(model), previews=offload == "none")

    @property
    def name(self) -> str:
        return self.sampling.named(self._name)

    @property
    def default_size(self) -> Size:
        return self.sampling.width, self.sampling.height

    @property
    def guided(self) -> bool:
        """Whether a step takes two evaluations; a distilled model ignores guidance."""
        return self.sampling.guidance > 1 and not self.pipeline.config["is_distilled"]

    def nfe(self, images: int) -> int:
        return images * self.sampling.evaluations(self.pipeline.config["is_distilled"])

    def draw(
        self,
        context: Context,
        size: Size,
        seeds: Sequence[int],
        on_step: Callable[[DrawProgress], None] | None = None,
    ) -> Drawing:
        """Raises SettingError for a size, ImageError for a reference that the model cannot take,
        ContextLimitError, DeviceMemoryError; whatever `on_step` raises passes through."""
        check_size(size, self.pipeline.vae_scale_factor * 2)
        started = time.perf_counter()
        context, length, notes = self._fit(context)
        images, more = references(context)
        current = _Round(size, seeds, on_step, {"image": images or None}, notes=notes + more)
        if self.sampling.guidance > 1 and not self.guided:
            current.notes.append(f"guidance {self.sampling.guidance:g} is ignored: the model is distilled")
        current.arguments |= self._encode(context.text, length)
        current.seconds["encode"] = time.perf_counter() - started
        try:
            while len(current.images) < len(seeds):
                self._draw_some(current)
        except BaseException:
            self.pipeline.maybe_free_model_hooks()
            raise
        return Drawing(tuple(current.images), current.evaluations, current.seconds, tuple(current.notes))

    def release(self) -> None:
        """Free the encodings that are kept for the next round: the run is over."""
        self.pipeline.forget()

    def _fit(self, context: Context) -> tuple[Context, int, list[str]]:
        """The context as the text encoder can read it, the padded length, and what was left out."""
        limit = min(self.pipeline.text_encoder.config.max_position_embeddings, LONGEST_TEXT)
        count = self.pipeline.count_tokens
        context, left_out = fit(context, count, limit)
        notes = [f"left out of the text encoder's {limit} tokens: {', '.join(left_out)}"] if left_out else []
        length = padded_length(count(context.text), self.sampling.max_sequence_length)
        return context, min(length, limit), notes

    def _encode(self, text: str, length: int) -> dict[str, torch.Tensor]:
        layers = self.sampling.text_encoder_out_layers
        embeds = {"prompt_embeds": self.pipeline.encode_text(text, length, layers)}
        if self.guided:
            embeds["negative_prompt_embeds"] = self.pipeline.encode_text("", length, layers)
        synchronise(embeds["prompt_embeds"].device)
        return embeds

    def _draw_some(self, current: _Round) -> None:
        """The next seeds in one batch; half as many from now on when the memory does not hold them."""
        left = current.seeds[len(current.images) :]
        batch = left[: self.batch]
        try:
            current.images += self._draw_batch(current, batch)
            return
        except RuntimeError as error:
            if not any(sign in str(error).lower() for sign in _NO_MEMORY):
                raise
            reason = str(error).split("\n")[0]
        self.pipeline.maybe_free_model_hooks()
        if self.pipeline.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(batch) == 1:
            raise DeviceMemoryError(
                f"The memory does not hold one image of {current.size[0]} x {current.size[1]}: {reason}",
                "Use a smaller size, fewer references, or offload='model' ('sequential' takes least memory).",
            )
        self.batch = len(batch) // 2
        current.notes.append(f"out of memory with {len(batch)} images at once; drew {self.batch} at once")

    def _draw_batch(self, current: _Round, seeds: Sequence[int]) -> list[Image.Image]:
        started, encoded = time.perf_counter(), self.pipeline.encode_seconds
        watch = _Watch(self, current, len(seeds))
        width, height = current.size
        images = self.pipeline(
            **current.arguments,
            height=height,
            width=width,
            num_inference_steps=self.sampling.steps,
            guidance_scale=self.sampling.guidance,
            num_images_per_prompt=len(seeds),
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            callback_on_step_end=watch,  # pyright: ignore[reportArgumentType]
            return_dict=False,
        )[0]
        encoding = self.pipeline.encode_seconds - encoded
        current.seconds["encode"] += encoding
        current.seconds["draw"] += watch.last - started - encoding
        current.seconds["decode"] += time.perf_counter() - watch.last
        return images


class _Watch:
    """The pipeline's callback: counts evaluations, tells the listener. `last` is when the last step ended."""

    def __init__(self, generator: Flux2Generator, current: _Round, batch: int) -> None:
        self.generator, self.current, self.batch = generator, current, batch
        self.latents: torch.Tensor | None = None
        self.last = time.perf_counter()

    def __call__(self, pipeline: KleinPipeline, step: int, _: Any, tensors: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
        latents = tensors["latents"]
        before = pipeline.noise if self.latents is None else self.latents
        self.latents = latents
        self.current.evaluations += self.generator.nfe(self.batch) // self.generator.sampling.steps
        if step == self.generator.sampling.steps - 1:
            synchronise(latents.device)
        if self.current.on_step:
            preview = None
            if self.generator.previews and before is not None:
                preview = partial(self._preview, before, latents, step)
            self.current.on_step(self._progress(step, preview))
        self.last = time.perf_counter()
        return {}

    def _progress(self, step: int, preview: Callable[[], Image.Image] | None) -> DrawProgress:
        """Steps over all batches of the round."""
        steps = self.generator.sampling.steps
        done, count = len(self.current.images), len(self.current.seeds)
        at_once = min(count, self.generator.batch or count)
        before, batches = math.ceil(done / at_once), math.ceil(count / at_once)
        return DrawProgress(before * steps + step + 1, batches * steps, preview)

    def _preview(self, before: torch.Tensor, after: torch.Tensor, step: int) -> Image.Image:
        """The first image as the model expects it: x0 = x - sigma v, v being the slope of the Euler step."""
        sigma, following = (float(s) for s in self.generator.pipeline.scheduler.sigmas[step : step + 2])
        velocity = (after[:1].float() - before[:1].float()) / (following - sigma)
        estimate = after[:1] - following * velocity
        return self.generator.pipeline.decode_packed(estimate, *self.current.size)
