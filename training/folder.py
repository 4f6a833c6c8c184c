"""A klein folder opened for batched sampling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from transformers import Qwen2Tokenizer, Qwen3ForCausalLM

from .sampling import Sampler

_PARTS: tuple[tuple[str, Any], ...] = (
    ("text_encoder", Qwen3ForCausalLM),
    ("transformer", Flux2Transformer2DModel),
    ("vae", AutoencoderKLFlux2),
)


def open_sampler(folder: Path, device: torch.device | None = None) -> Sampler:
    """The folder's model in fp32, on the CPU unless told otherwise."""
    defaults = json.loads((folder / "clvr.json").read_text())
    parts: list[Any] = [
        kind.from_pretrained(folder / name).float().eval().to(device or torch.device("cpu")) for name, kind in _PARTS
    ]
    text_encoder, transformer, vae = parts
    return Sampler(
        text_encoder,
        Qwen2Tokenizer.from_pretrained(folder / "tokenizer"),
        transformer,
        vae,
        tuple(defaults["text_encoder_out_layers"]),
        defaults["max_sequence_length"],
    )
