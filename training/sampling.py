"""Drawing many different prompts and references in one batch, as Flux2KleinPipeline draws each of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from PIL import Image
from transformers import Qwen2Tokenizer, Qwen3ForCausalLM

from clvr.flux2.generator import padded_length

from .model import denormalise, embed, make_scheduler, normalise, tokenize_all
from .vae import decode, mean_latents, to_tensor


def sigmas(steps: int, tokens: int) -> torch.Tensor:
    """The pipeline's schedule: [steps + 1] noise levels from 1 to 0, mu-shifted for so many image tokens."""
    scheduler = make_scheduler()
    mu = compute_empirical_mu(image_seq_len=tokens, num_steps=steps)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps).tolist(), mu=mu)
    return torch.as_tensor(scheduler.sigmas)


def ids_of(tokens: int, side: int, references: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Position ids (T, H, W, L): text [tokens, 4], images [side^2 * (1 + references), 4]; reference i has
    T = 10 + 10 i, as Flux2KleinPipeline gives them."""
    text = torch.zeros(tokens, 4)
    text[:, 3] = torch.arange(tokens)
    grid = torch.cartesian_prod(torch.arange(1), torch.arange(side), torch.arange(side), torch.arange(1)).float()
    images = [grid] + [grid + torch.tensor([10.0 + 10 * i, 0, 0, 0]) for i in range(references)]
    return text, torch.cat(images)


class Sampler:
    """Euler sampling with classifier-free guidance over a batch whose references may differ."""

    def __init__(
        self,
        text_encoder: Qwen3ForCausalLM,
        tokenizer: Qwen2Tokenizer,
        transformer: Flux2Transformer2DModel,
        vae: AutoencoderKLFlux2,
        layers: tuple[int, ...],
        base_length: int,
    ) -> None:
        self.text_encoder, self.tokenizer = text_encoder, tokenizer
        self.transformer, self.vae = transformer, vae
        self.layers, self.base_length = layers, base_length

    @property
    def device(self) -> torch.device:
        return self.transformer.device

    def padded(self, texts: Sequence[str]) -> int:
        """The length at which the generator would encode the longest of these texts."""
        return padded_length(max(map(len, tokenize_all(self.tokenizer, texts))), self.base_length)

    def context(self, texts: Sequence[str], length: int) -> torch.Tensor:
        """[B, length, width] of text-encoder states."""
        pad = self.tokenizer.pad_token_id
        rows = tokenize_all(self.tokenizer, texts)
        ids = torch.tensor([r + [pad] * (length - len(r)) for r in rows], device=self.device)
        mask = torch.tensor([[1] * len(r) + [0] * (length - len(r)) for r in rows], device=self.device)
        return embed(self.text_encoder, ids, mask, self.layers)

    @torch.no_grad()
    def encode(self, references: Sequence[Sequence[Image.Image]]) -> torch.Tensor:
        """Reference pictures, as many for every row, as normalised tokens [B, R * N, 128]."""
        rows = []
        for pictures in references:
            pixels = [torch.from_numpy(np.asarray(p.convert("RGB")).copy()) for p in pictures]
            if pixels:
                given = to_tensor(torch.stack(pixels)).to(self.device)
                rows.append(normalise(self.vae, mean_latents(self.vae, given)).flatten(0, 1))
            else:
                rows.append(torch.zeros(0, 128, device=self.device))
        return torch.stack(rows)

    @torch.no_grad()
    def latents(
        self,
        texts: Sequence[str],
        references: torch.Tensor,
        noise: torch.Tensor,
        steps: int,
        guidance: float,
    ) -> torch.Tensor:
        """Normalised tokens [B, N, 128] from noise [B, N, 128]; references [B, R * N, 128], all of one R.

        All texts of a batch must pad to the same length."""
        length = self.padded(texts)
        guided = guidance > 1
        context = self.context([*texts, *([""] * len(texts) if guided else [])], length)
        tokens = noise.shape[1]
        side = int(tokens**0.5)
        text_ids, image_ids = (i.to(self.device) for i in ids_of(length, side, references.shape[1] // tokens))
        levels = sigmas(steps, tokens).to(self.device)
        x = noise.to(self.device)
        for now, after in itertools.pairwise(levels):
            inputs = torch.cat([x, references], 1)
            velocity = self.transformer(
                hidden_states=inputs.repeat(2, 1, 1) if guided else inputs,
                encoder_hidden_states=context,
                timestep=now.expand(len(context)),
                img_ids=image_ids[None],
                txt_ids=text_ids[None],
                guidance=None,
                return_dict=False,
            )[0][:, :tokens]
            if guided:
                positive, negative = velocity.chunk(2)
                velocity = negative + guidance * (positive - negative)
            x = x + (after - now) * velocity
        return x

    @torch.no_grad()
    def images(self, latents: torch.Tensor) -> list[Image.Image]:
        """Normalised tokens as RGB pictures."""
        pixels = (decode(self.vae, denormalise(self.vae, latents)) / 2 + 0.5).clamp(0, 1)
        array = (pixels.permute(0, 2, 3, 1).cpu().numpy() * 255).round().astype(np.uint8)
        return [Image.fromarray(a) for a in array]


def noise(seeds: Sequence[int], tokens: int, channels: int = 128) -> torch.Tensor:
    """[B, tokens, channels], each row from its own seed as the pipeline's randn_tensor gives it."""
    side = int(tokens**0.5)
    rows = [torch.randn((1, channels, side, side), generator=torch.Generator().manual_seed(s)) for s in seeds]
    return torch.cat(rows).flatten(2).mT.contiguous()
