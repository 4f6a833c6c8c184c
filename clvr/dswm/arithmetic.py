"""θ = W + Σ λ_k Δ_k over a run of weights, and what is measured on the way.

Everything is fp32 and rounded once at the end; products and sums are separate operations, so that the result
does not depend on how the weights were cut into runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .sums import Sums

NUMBERS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
STORED = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}
"""The same as safetensors names them."""


def superpose(total: Tensor, deltas: Mapping[int, Tensor], strengths: Sequence[float], scratch: Tensor) -> Tensor:
    """Add λ_k Δ_k to `total` in place, in order of k. All fp32 and of one shape; `scratch` is overwritten."""
    for k, delta in deltas.items():
        if strengths[k] == 1.0:
            total += delta
        elif strengths[k]:
            total += torch.mul(delta, strengths[k], out=scratch)
    return total


def measure(sums: Sums, weights: Tensor, deltas: Mapping[int, Tensor]) -> bool:
    """Add a run's energies and inner products to `sums`, unless one is NaN or Inf: then False.

    Flat fp32 tensors, by the increments' numbers; those that are zero may be left out."""
    energy = torch.dot(weights, weights).item()
    products = {(j, k): torch.dot(deltas[j], deltas[k]).item() for j in deltas for k in deltas if j <= k}
    if not math.isfinite(energy + sum(products.values())):
        return False
    sums.elements += weights.numel()
    sums.energy += energy
    for (j, k), product in products.items():
        sums.dots[j][k] += product
        if k > j:
            sums.dots[k][j] += product
    return True


def measure_rounding(
    sums: Sums, exact: Tensor, rounded: Tensor, deltas: Mapping[int, Tensor], strengths: Sequence[float]
) -> None:
    """What of each increment the rounded weights hold: they are compared with those without the increment.

    exact: θ, fp32; rounded: R(θ) in the output's dtype; flat."""
    sums.sampled += exact.numel()
    written = rounded.float()
    for k, delta in deltas.items():
        asked = delta * strengths[k]
        moved = written - (exact - asked).to(rounded.dtype)
        touched = int(asked.count_nonzero())
        sums.asked[k] += torch.dot(asked, asked).item()
        sums.kept[k] += torch.dot(moved, asked).item()
        sums.touched[k] += touched
        sums.unchanged[k] += touched - int(moved.count_nonzero())


def measure_conflicts(sums: Sums, deltas: Mapping[int, Tensor]) -> None:
    """Count signs that differ between increments, and between one and the other shifted by half a run."""
    signs = {k: torch.sign(delta) for k, delta in deltas.items()}
    for j, one in signs.items():
        for k in (k for k in signs if k > j):
            shifted = signs[k].roll(one.numel() // 2 + 1)
            sums.conflicts[j][k] += int((one * signs[k] < 0).count_nonzero())
            sums.chance[j][k] += int((one * shifted < 0).count_nonzero())
            sums.both[j][k] += int((one * signs[k]).count_nonzero())
