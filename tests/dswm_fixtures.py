"""Small models to merge: a random base, and copies of it that differ a little."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from clvr.dswm.arithmetic import NUMBERS
from clvr.flux2.keymap import to_bfl

from . import tiny_klein


def state(seed: int = 0, double: int = 1, single: int = 2) -> dict[str, torch.Tensor]:
    """A random transformer in diffusers' layout, fp32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = tiny_klein.transformer(double, single)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.05)
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def moved(base: dict[str, torch.Tensor], seed: int, shift: float = 0.02) -> dict[str, torch.Tensor]:
    """The base with a random increment of this relative size."""
    generator = torch.Generator().manual_seed(seed)
    return {name: t + shift * t.std() * torch.randn(t.shape, generator=generator) for name, t in base.items()}


def write_bfl(path: Path, tensors: dict[str, torch.Tensor], dtype: str = "bf16", prefix: str = "") -> Path:
    twin = {prefix + name: t.to(NUMBERS[dtype]).contiguous() for name, t in to_bfl(tensors).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(twin, path)
    return path


def write_folder(path: Path, tensors: dict[str, torch.Tensor], dtype: torch.dtype = torch.bfloat16, **options) -> Path:
    """A diffusers folder, written by diffusers itself; `max_shard_size` makes shards."""
    blocks = {name.split(".")[1] for name in tensors if name.startswith("transformer_blocks")}
    singles = {name.split(".")[1] for name in tensors if name.startswith("single_transformer_blocks")}
    model = tiny_klein.transformer(len(blocks), len(singles))
    model.load_state_dict(tensors)
    model.to(dtype).save_pretrained(path, **options)
    return path


def reference(base, distilled, *aligned, strengths=(1.0, 1.0, 1.0), dtype="bf16"):
    """θ in memory: the tensors as their files hold them, all in fp32, rounded once."""
    total = {}
    for name, weights in base.items():
        weights = weights.float()
        merged = weights.clone()
        for strength, other in zip(strengths, (distilled, *aligned), strict=False):
            merged = merged + strength * (other[name].float() - weights)
        total[name] = merged.to(NUMBERS[dtype])
    return total


def rounded(tensors: dict[str, torch.Tensor], dtype: str = "bf16") -> dict[str, torch.Tensor]:
    return {name: t.to(NUMBERS[dtype]) for name, t in tensors.items()}
