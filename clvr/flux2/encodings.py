"""Flux2KleinPipeline that remembers what it encoded: between two rounds most of a trajectory is the same."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from PIL import Image
from transformers import (
    Qwen2TokenizerFast,  # pyright: ignore[reportAttributeAccessIssue]
    Qwen3ForCausalLM,
)

from .recent import Recent

TEXTS = 4
"""Prompts kept; one of 8192 tokens takes 200 MB of a 9B model's bf16 context."""
REFERENCES = 16
"""References kept; one of 1 MP takes 1 MB in bf16."""


class KleinPipeline(Flux2KleinPipeline):
    """Outputs are those of Flux2KleinPipeline. `encode_seconds` sums the time of encoding references, `noise`
    is the packed start of the last call, [B, L, 128]."""

    def __init__(
        self,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vae: AutoencoderKLFlux2,
        text_encoder: Qwen3ForCausalLM,
        tokenizer: Qwen2TokenizerFast,
        transformer: Flux2Transformer2DModel,
        is_distilled: bool = False,
    ) -> None:
        super().__init__(scheduler, vae, text_encoder, tokenizer, transformer, is_distilled)
        self.encode_seconds = 0.0
        self.noise: torch.Tensor | None = None
        self._texts: Recent[torch.Tensor] = Recent(TEXTS)
        self._references: Recent[torch.Tensor] = Recent(REFERENCES)

    def count_tokens(self, text: str) -> int:
        """Tokens of a prompt in the chat template, as `encode_prompt` builds it, without padding."""
        templated = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
        return len(self.tokenizer(templated, verbose=False)["input_ids"])

    @torch.no_grad()
    def encode_text(self, text: str, length: int, layers: tuple[int, ...]) -> torch.Tensor:
        """[1, length, len(layers) * hidden]."""

        def encode() -> torch.Tensor:
            embeds, _ = self.encode_prompt(
                text,
                max_sequence_length=length,
                text_encoder_out_layers=layers,  # pyright: ignore[reportArgumentType]
            )
            return embeds

        return self._texts.get((text, length, layers), encode)

    def forget(self) -> None:
        """Free the encodings."""
        self._texts.clear()
        self._references.clear()
        self.noise = None

    def _encode_vae_image(self, image: torch.Tensor, generator: Any) -> torch.Tensor:  # noqa: ANN401
        started = time.perf_counter()
        pixels = image.contiguous().view(torch.uint8).cpu().numpy()
        key = (hashlib.sha256(pixels.tobytes()).digest(), tuple(image.shape), image.dtype)
        latents = self._references.get(key, lambda: super(KleinPipeline, self)._encode_vae_image(image, generator))
        synchronise(latents.device)
        self.encode_seconds += time.perf_counter() - started
        return latents

    def prepare_latents(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        latents, ids = super().prepare_latents(*args, **kwargs)
        self.noise = latents
        return latents, ids

    @torch.no_grad()
    def decode_packed(self, latents: torch.Tensor, width: int, height: int) -> Image.Image:
        """The picture of one image's packed latents [1, L, 128]; width and height in pixels."""
        side = self.vae_scale_factor * 2
        tiles = latents.transpose(1, 2).reshape(1, -1, height // side, width // side)
        bn = self.vae.bn
        std = torch.sqrt(bn.running_var.view(1, -1, 1, 1) + self.vae.config.batch_norm_eps)
        tiles = tiles * std.to(tiles) + bn.running_mean.view(1, -1, 1, 1).to(tiles)
        image = self.vae.decode(self._unpatchify_latents(tiles).to(self.vae.dtype), return_dict=False)[0]
        pictures: list[Image.Image] = self.image_processor.postprocess(image, output_type="pil")  # type: ignore
        return pictures[0]


def synchronise(device: torch.device) -> None:
    """Wait for an accelerator, so that a clock measures its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
