"""FLUX.2 [klein] opened for training: the velocity that Flux2KleinPipeline computes, batched and differentiable.

A picture is a grid of tokens of 16 x 16 pixels: the VAE's mode, 2x2 patches, batch-norm normalised, packed.
Position ids are (T, H, W, L): the target has T = 0, reference i T = 10 + 10 i, text counts in L. One row of ids
serves a whole batch, so that a batch holds pictures of one size and references of one number and size.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from PIL import Image
from torch import nn
from transformers import Qwen2Tokenizer, Qwen3ForCausalLM

from clvr.errors import SettingError
from clvr.flux2.folder import Folder, Sampling, find
from clvr.flux2.generator import padded_length
from clvr.flux2.limits import LONGEST_TEXT, TOKEN
from clvr.flux2.loading import check_architecture

from .model import denormalise, embed, normalise, patchify, tokenize_all
from .sharding import Mesh, load_transformer

CHANNELS = 128
"""Of a token: 32 latent channels of 2 x 2 patches."""


@dataclass(frozen=True)
class Latents:
    """Normalised tokens [B, height * width, 128] of B pictures; height and width in tokens."""

    tokens: torch.Tensor
    height: int
    width: int

    def like(self, tokens: torch.Tensor) -> Latents:
        """Other tokens on the same grid."""
        return Latents(tokens, self.height, self.width)

    def to(self, *args: Any) -> Latents:  # noqa: ANN401
        return self.like(self.tokens.to(*args))


@dataclass(frozen=True)
class TextContext:
    """Stacked hidden states [B, L, layers * width], and which positions are text [B, L] (the rest is padding)."""

    states: torch.Tensor
    mask: torch.Tensor

    def to(self, *args: Any) -> TextContext:  # noqa: ANN401
        return TextContext(self.states.to(*args), self.mask.to(self.states.to(*args).device))


class Encoders:
    """The frozen parts: tokenizer, text encoder and VAE."""

    def __init__(
        self, tokenizer: Qwen2Tokenizer, text_encoder: Qwen3ForCausalLM, vae: AutoencoderKLFlux2, sampling: Sampling
    ) -> None:
        self.tokenizer, self.sampling = tokenizer, sampling
        self.text_encoder = text_encoder.requires_grad_(False).eval()
        self.vae = vae.requires_grad_(False).eval()

    @classmethod
    def open(cls, folder: Folder, device: torch.device, dtype: torch.dtype) -> Encoders:
        path = folder.path
        text_encoder: Any = Qwen3ForCausalLM.from_pretrained(path / "text_encoder", dtype=dtype)
        vae: Any = AutoencoderKLFlux2.from_pretrained(path / "vae", torch_dtype=dtype)
        tokenizer = Qwen2Tokenizer.from_pretrained(path / "tokenizer")
        return cls(tokenizer, text_encoder.to(device), vae.to(device), folder.sampling)

    @property
    def device(self) -> torch.device:
        return self.text_encoder.device

    @property
    def limit(self) -> int:
        """Tokens of the longest text that the generator reads."""
        return min(self.text_encoder.config.max_position_embeddings, LONGEST_TEXT)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens to which the generator pads each text; more than `limit` where it could not read it."""
        base = self.sampling.max_sequence_length
        return [padded_length(len(row), base) for row in tokenize_all(self.tokenizer, texts)]

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str], length: int | None = None) -> TextContext:
        """Texts padded to `length`, by default to where the generator would pad the longest of them.

        Raises SettingError for a text that is longer than that."""
        rows = tokenize_all(self.tokenizer, texts)
        longest = max(map(len, rows))
        length = length or min(padded_length(longest, self.sampling.max_sequence_length), self.limit)
        if longest > length:
            raise SettingError(
                f"A text takes {longest} tokens; {length} are read.", "Shorten the context, or leave the sample out."
            )
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows], device=self.device)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        mask = torch.arange(length, device=self.device) < lengths[:, None]
        layers = self.sampling.text_encoder_out_layers
        return TextContext(embed(self.text_encoder, ids, mask.long(), layers), mask)

    @torch.no_grad()
    def encode_images(self, images: Sequence[Image.Image]) -> Latents:
        """Pictures of one size, both sides multiples of 16 pixels. Raises SettingError for others."""
        width, height = images[0].size
        if any(image.size != (width, height) for image in images) or width % TOKEN or height % TOKEN:
            sizes = ", ".join(sorted({f"{i.width} x {i.height}" for i in images}))
            raise SettingError(f"Pictures of {sizes} do not make a batch.", f"Give one size, in multiples of {TOKEN}.")
        array = np.stack([np.asarray(image.convert("RGB"), dtype=np.float32) for image in images]) / 255
        pixels = (2 * torch.from_numpy(array) - 1).permute(0, 3, 1, 2)
        encoded = self.vae.encode(pixels.to(self.vae.device, self.vae.dtype), return_dict=False)[0].mode()
        return Latents(normalise(self.vae, patchify(encoded)), height // TOKEN, width // TOKEN)

    @torch.no_grad()
    def decode(self, latents: Latents) -> list[Image.Image]:
        tokens = denormalise(self.vae, latents.tokens.to(self.vae.device, self.vae.dtype))
        b, h, w = len(tokens), latents.height, latents.width
        tiles = tokens.view(b, h, w, CHANNELS // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
        grid = tiles.reshape(b, CHANNELS // 4, 2 * h, 2 * w)
        pixels = self.vae.decode(grid, return_dict=False)[0]  # pyright: ignore[reportArgumentType]
        array = ((pixels.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy() * 255).round()
        return [Image.fromarray(picture) for picture in array.astype(np.uint8)]


class Klein:
    """A klein folder whose transformer is trained. `velocity` and `sample` are the module's functions on it."""

    def __init__(self, folder: Folder, encoders: Encoders, transformer: Flux2Transformer2DModel) -> None:
        self.folder, self.encoders, self.transformer = folder, encoders, transformer

    @classmethod
    def open(
        cls,
        model: str | Path,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        encoders_dtype: torch.dtype | None = None,
        mesh: Mesh | None = None,
    ) -> Klein:
        """`dtype` is the transformer's: fp32 to train all of its weights, bf16 under an adapter.

        Raises MissingFileError and WeightsError."""
        folder = find(model)
        check_architecture(folder)
        encoders = Encoders.open(folder, device, encoders_dtype or dtype)
        return cls(folder, encoders, load_transformer(folder, device, dtype, mesh))

    @property
    def sampling(self) -> Sampling:
        return self.folder.sampling

    def velocity(
        self, noisy: Latents, t: torch.Tensor, context: TextContext, references: Sequence[Latents] = ()
    ) -> torch.Tensor:
        return velocity(self.transformer, noisy, t, context, references)

    def sigmas(self, steps: int, tokens: int) -> torch.Tensor:
        return sigmas(self.folder, steps, tokens)


def velocity(
    transformer: nn.Module,
    noisy: Latents,
    t: torch.Tensor,
    context: TextContext,
    references: Sequence[Latents] = (),
    mask_padding: bool = False,
) -> torch.Tensor:
    """v(x_t, t | context, references) [B, N, 128] over the target's tokens; v aims at eps - x0.

    `transformer`: a Flux2Transformer2DModel, or a wrapper of one. `t` [B] in [0, 1], 1 is noise. The pipeline
    lets padding be attended; `mask_padding` does not."""
    tokens = torch.cat([noisy.tokens, *(r.tokens.to(noisy.tokens) for r in references)], dim=1)
    text, image = position_ids(noisy, references, context.states.shape[1], tokens.device)
    kwargs = {"attention_mask": _attention(context.mask, tokens.shape[1])} if mask_padding else None
    return transformer(
        hidden_states=tokens,
        encoder_hidden_states=context.states.to(tokens),
        timestep=t,
        img_ids=image,
        txt_ids=text,
        guidance=None,
        joint_attention_kwargs=kwargs,
        return_dict=False,
    )[0][:, : noisy.tokens.shape[1]]


def position_ids(
    target: Latents, references: Sequence[Latents], length: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """(T, H, W, L) of text [length, 4] and images [N, 4], as integers: bf16 could not count beyond 256."""
    text = torch.zeros(length, 4, dtype=torch.long, device=device)
    text[:, 3] = torch.arange(length, device=device)
    grids = []
    for n, picture in enumerate([target, *references]):
        sizes = (torch.tensor([10 * n]), torch.arange(picture.height), torch.arange(picture.width), torch.zeros(1))
        grids.append(torch.cartesian_prod(*(s.long() for s in sizes)))
    return text, torch.cat(grids).to(device)


def _attention(mask: torch.Tensor, images: int) -> torch.Tensor:
    """[B, 1, 1, L + images], true where a key may be attended."""
    pictures = torch.ones(len(mask), images, dtype=torch.bool, device=mask.device)
    return torch.cat([mask, pictures], dim=1)[:, None, None]


def sigmas(folder: Folder, steps: int, tokens: int) -> torch.Tensor:
    """The sampler's noise levels [steps + 1], from 1 to 0, shifted for a target of so many tokens."""
    scheduler: Any = FlowMatchEulerDiscreteScheduler.from_pretrained(folder.path / "scheduler")
    mu = compute_empirical_mu(image_seq_len=tokens, num_steps=steps)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps).tolist(), mu=mu)
    return torch.as_tensor(scheduler.sigmas)


def shifted(t: torch.Tensor, steps: int, tokens: int) -> torch.Tensor:
    """Uniform times bent as the sampler bends its schedule: e^mu / (e^mu + 1/t - 1)."""
    mu = compute_empirical_mu(image_seq_len=tokens, num_steps=steps)
    bend = torch.exp(torch.as_tensor(mu, dtype=t.dtype))
    return bend * t / (1 + (bend - 1) * t)


@torch.no_grad()
def sample(
    transformer: nn.Module,
    noise: Latents,
    levels: torch.Tensor,
    context: TextContext,
    references: Sequence[Latents] = (),
    guidance: float = 1.0,
    negative: TextContext | None = None,
) -> Latents:
    """x_0 by Euler steps over `levels`; above guidance 1 `negative` is the context of "" at the same length."""
    x = noise.tokens
    for now, after in itertools.pairwise(levels.tolist()):
        t = torch.full((len(x),), now, device=x.device)
        v = velocity(transformer, noise.like(x), t, context, references)
        if guidance > 1 and negative is not None:
            without = velocity(transformer, noise.like(x), t, negative, references)
            v = without + guidance * (v - without)
        x = x + (after - now) * v.to(x)
    return noise.like(x)


def lora_targets(transformer: nn.Module) -> list[str]:
    """Every matrix of both kinds of blocks, by its full name, as peft's `target_modules`."""
    return [k for k, m in transformer.named_modules() if "transformer_blocks." in k and isinstance(m, nn.Linear)]
