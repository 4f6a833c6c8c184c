"""What goes wrong in RL while the reward rises: grids in the pictures, latents and weights that swell.

A reward model overlooks such things until they are plain to see, so they are measured every epoch and compared with
the first one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

PERIOD = 16
"""Pixels of a token's side: where a transformer's grid shows."""


@dataclass(frozen=True)
class Limits:
    """How far a run may go before it is warned of. grid, latents: as a multiple of the first epoch's value (latents
    as much below it too). shift: the LoRA's relative Frobenius shift; the paper's is 0.000075, its SFT's 0.023."""

    grid: float = 2.0
    latents: float = 1.25
    shift: float = 0.01


def grid(images: Sequence[Image.Image], period: int = PERIOD) -> float:
    """Power at the harmonics of the token grid over that beside them, along both axes: about 1 without a grid.

    Pictures of one size, a multiple of the period. Each row's (column's) spectrum is taken of its gradient, and
    averaged over rows and pictures."""
    grey = np.stack([np.asarray(image.convert("L"), np.float32) for image in images])
    return float(np.mean([_harmonics(grey, period), _harmonics(grey.swapaxes(1, 2), period)]))


def _harmonics(grey: np.ndarray, period: int) -> float:
    """[B, H, W] along W."""
    steps = np.abs(np.diff(grey, axis=2, append=grey[:, :, :1])).mean(axis=(0, 1))
    power = np.abs(np.fft.rfft(steps - steps.mean())) ** 2
    base = len(steps) // period
    harmonics = np.arange(base, len(power) - 1, base)
    beside = np.setdiff1d(np.arange(1, len(power)), harmonics)
    return float(power[harmonics].mean() / max(power[beside].mean(), 1e-9))


def rms(tokens: torch.Tensor) -> float:
    """Root mean square of normalised latents: 1 for what the VAE makes of real pictures."""
    return float(tokens.float().square().mean().sqrt())


def warnings(now: Mapping[str, float], first: Mapping[str, float], limits: Limits) -> list[str]:
    """What to tell a person of an epoch's `grid`, `latents` and `shift`, compared with the first epoch's."""
    found = []
    if now["grid"] > limits.grid * max(first["grid"], 1.0):
        found.append(
            f"A grid of {PERIOD} pixels appears in the pictures ({first['grid']:.2g} -> {now['grid']:.2g}): "
            "look at the sheets; lower the learning rate or raise kl_coef."
        )
    ratio = now["latents"] / first["latents"]
    if not 1 / limits.latents <= ratio <= limits.latents:
        found.append(
            f"The latents' size has changed by a factor of {ratio:.2f}: pictures lose or gain contrast; "
            "lower the learning rate or the guidance."
        )
    if now["shift"] > limits.shift:
        found.append(
            f"The LoRA changes the weights by {now['shift']:.2%}, more than {limits.shift:.2%}: "
            "merging assumes small changes; lower the learning rate or raise kl_coef."
        )
    return found
