"""DiffusionNFT (arXiv 2509.16117) as pure functions of tensors: advantages, loss, and the old policy's decay.

Flow matching as everywhere here: x_t = (1 - t) x0 + t eps, the velocity's target is eps - x0. `v` is the trained
policy's velocity, `v_old` the sampling policy's, `v_ref` that of the weights before RL.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_STD_FLOOR = 1e-4
_WEIGHT_FLOOR = 1e-5


@dataclass(frozen=True)
class NFTLoss:
    """total = policy + kl_coef · kl, each [B]; a batch's loss is their mean. `policy` does not depend on the
    advantages where v = v_old: it measures no progress, the rewards do."""

    total: Tensor
    policy: Tensor
    kl: Tensor


def advantages(rewards: Tensor) -> Tensor:
    """(R - mean) / (std + 1e-4) of one group's rewards [G], the standard deviation over all G."""
    return (rewards - rewards.mean()) / (rewards.std(correction=0) + _STD_FLOOR)


def optimality(advantage: Tensor, clip: float = 5.0) -> Tensor:
    """r in [0, 1], the probability that a sample is a good one: clip(adv / A, -1, 1) / 2 + 1/2."""
    return (advantage / clip).clamp(-1, 1) / 2 + 0.5


def implicit_policies(v: Tensor, v_old: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """v+ = beta v + (1 - beta) v_old, which good samples fit, and v- = (1 + beta) v_old - beta v, for bad ones."""
    return beta * v + (1 - beta) * v_old, (1 + beta) * v_old - beta * v


def loss(
    v: Tensor,
    v_old: Tensor,
    v_ref: Tensor,
    *,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    r: Tensor,
    nft_beta: float,
    advantage_clip: float,
    kl_coef: float,
    adaptive: bool = True,
) -> NFTLoss:
    """A · (r L+ + (1 - r) L-) / beta + kl_coef · mean((v - v_ref)²) of each sample, A the advantage clip.

    Velocities, x0 and x_t are [B, ...], t and r [B]; gradients flow into `v` alone. L± is the error of the clean
    picture that v± predicts, divided by its own mean size unless `adaptive` is off."""
    v_old, v_ref = v_old.detach(), v_ref.detach()
    good, bad = implicit_policies(v, v_old, nft_beta)
    fits = _clean_error(good, x0, x_t, t, adaptive), _clean_error(bad, x0, x_t, t, adaptive)
    policy = advantage_clip * (r * fits[0] + (1 - r) * fits[1]) / nft_beta
    kl = ((v - v_ref) ** 2).flatten(1).mean(1)
    return NFTLoss(policy + kl_coef * kl, policy, kl)


def _clean_error(v: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, adaptive: bool) -> Tensor:
    """[B]: mean of (x̂0 - x0)² / w, where x̂0 = x_t - t v and w = mean |x̂0 - x0|, held constant."""
    error = x_t - t.view(-1, *[1] * (v.ndim - 1)) * v - x0
    squared = (error**2).flatten(1).mean(1)
    if not adaptive:
        return squared
    # In fp64: at late times the error is small, and its mean in bf16 would be coarse.
    weight = error.detach().double().abs().flatten(1).mean(1).clamp_min(_WEIGHT_FLOOR)
    return squared / weight.to(squared.dtype)


def old_decay(step: int, rate: float = 0.001, most: float = 0.5) -> float:
    """How much of itself the old policy keeps: min(rate · step, most), as the authors' code does at its start."""
    return min(rate * step, most)


@torch.no_grad()
def follow(old: Tensor, new: Tensor, decay: float) -> None:
    """old <- decay · old + (1 - decay) · new, in place."""
    old.lerp_(new.to(old.dtype), 1 - decay)
