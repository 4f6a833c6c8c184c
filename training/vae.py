"""The built-in VAE: reconstruction through noisy latents, with a linear probe that keeps tokens readable.

python -m training.vae --out runs/vae
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLFlux2
from torch import nn

from clvr.errors import WeightsError
from clvr.shapes.render import render_batch
from clvr.shapes.scene import CELLS, COLORS, GRID, SHAPES, SIZES, Item, Scene

from .config import VAEConfig
from .model import make_vae, patchify, unpatchify

_HEADS = (len(SHAPES) + 1, len(COLORS), len(SIZES))
_LOG_VARIANCE = -12.0


def random_scene(rng: random.Random, most: int = 12) -> Scene:
    cells = rng.sample(CELLS, rng.randint(0, most))
    return Scene(tuple(Item(rng.choice(SHAPES), rng.choice(COLORS), rng.choice(SIZES), c) for c in cells))


def to_tensor(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 [B, H, W, 3] -> float [B, 3, H, W] in [-1, 1], channels last in memory."""
    return (pixels.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def labels(scenes: list[Scene]) -> torch.Tensor:
    """[B, 16, 3] class of shape (0 is empty), colour and size in each cell; -100 where there is none."""
    out = torch.full((len(scenes), len(CELLS), 3), -100)
    out[..., 0] = 0
    for n, scene in enumerate(scenes):
        for item in scene.items:
            p = item.cell[0] * GRID + item.cell[1]
            out[n, p] = torch.tensor((SHAPES.index(item.shape) + 1, COLORS.index(item.color), SIZES.index(item.size)))
    return out


def mean_latents(vae: AutoencoderKLFlux2, images: torch.Tensor) -> torch.Tensor:
    """Tokens [B, 16, 128] of the posterior mode, before batch-norm."""
    moments = conv(vae.quant_conv)(vae.encoder(images))
    return patchify(moments[:, :32].contiguous())


def decode(vae: AutoencoderKLFlux2, tokens: torch.Tensor) -> torch.Tensor:
    """Tokens before batch-norm [B, 16, 128] -> images [B, 3, H, W] in [-1, 1]."""
    side = int(tokens.shape[1] ** 0.5)
    return vae.decoder(conv(vae.post_quant_conv)(unpatchify(tokens, side)))


def conv(module: nn.Conv2d | None) -> nn.Conv2d:
    """A convolution that the config may leave out. Raises WeightsError where it did."""
    if module is None:
        raise WeightsError("The VAE lacks its quantisation convolutions.", "Use a FLUX.2 VAE.")
    return module


def loss(
    vae: AutoencoderKLFlux2, probe: nn.Linear, images: torch.Tensor, classes: torch.Tensor, config: VAEConfig
) -> torch.Tensor:
    tokens = mean_latents(vae, images)
    spread = tokens.std(dim=(0, 1), keepdim=True)
    sigma = torch.rand(len(images), 1, 1) * config.noise
    noisy = tokens + torch.randn_like(tokens) * sigma * spread.detach()
    out = decode(vae, noisy)
    pixels = F.l1_loss(out, images) + F.mse_loss(out, images)
    scale = (spread.log() ** 2).mean() + (tokens.mean(dim=(0, 1)) ** 2).mean()
    logits = probe(noisy / spread.detach()).split(_HEADS, dim=-1)
    read = sum(F.cross_entropy(x.flatten(0, 1), classes[..., k].flatten()) for k, x in enumerate(logits))
    return pixels + config.probe * read + 1e-3 * scale


def train(config: VAEConfig, resolution: int, log: Callable[[str], None]) -> AutoencoderKLFlux2:
    """A trained VAE with its batch-norm statistics set. Deterministic in config.seed."""
    torch.manual_seed(config.seed)
    rng = random.Random(config.seed)
    vae = make_vae(config, resolution).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    probe = nn.Linear(128, sum(_HEADS))
    parameters = [*vae.parameters(), *probe.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, betas=(0.9, 0.98), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=config.steps, pct_start=0.05)
    started = time.monotonic()
    vae.train()
    for step in range(config.steps):
        scenes = [random_scene(rng) for _ in range(config.batch)]
        seeds = [rng.getrandbits(32) for _ in scenes]
        images = to_tensor(torch.from_numpy(render_batch(scenes, seeds, resolution)))
        value = loss(vae, probe, images, labels(scenes), config)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == config.steps - 1:
            left = (time.monotonic() - started) / (step + 1) * (config.steps - step - 1)
            log(f"vae {step}/{config.steps} loss {value.item():.4f} left {left / 60:.1f} min")
    settle(vae, resolution, rng)
    return vae.eval()


@torch.no_grad()
def settle(vae: AutoencoderKLFlux2, resolution: int, rng: random.Random, images: int = 2048) -> None:
    """Fix the posterior's variance (it is never sampled) and set the batch-norm statistics of the tokens."""
    moments = conv(vae.quant_conv)
    moments.weight[32:].zero_()
    if moments.bias is not None:
        moments.bias[32:].fill_(_LOG_VARIANCE)
    tokens = []
    for _ in range(images // 128):
        scenes = [random_scene(rng, most=8) for _ in range(128)]
        pixels = render_batch(scenes, [rng.getrandbits(32) for _ in scenes], resolution)
        tokens.append(mean_latents(vae, to_tensor(torch.from_numpy(pixels))))
    every = torch.cat(tokens).flatten(0, 1)
    vae.bn.running_mean, vae.bn.running_var = every.mean(0), every.var(0)


def main(out: Path, config: VAEConfig, resolution: int) -> AutoencoderKLFlux2:
    vae = train(config, resolution, print)
    vae.save_pretrained(out)
    return vae


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=VAEConfig.steps)
    options = parser.parse_args()
    torch.set_num_threads(2)
    main(options.out, VAEConfig(steps=options.steps), 64)
