"""A klein folder opened for batched sampling."""

from __future__ import annotations

import json
from pathlib import Path

from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from transformers import Qwen2Tokenizer, Qwen3ForCausalLM

from .sampling import Sampler


def open_sampler(folder: Path) -> Sampler:
    """The folder's model in fp32 on the CPU."""
    defaults = json.loads((folder / "clvr.json").read_text())
    return Sampler(
        Qwen3ForCausalLM.from_pretrained(folder / "text_encoder").float().eval(),
        Qwen2Tokenizer.from_pretrained(folder / "tokenizer"),
        Flux2Transformer2DModel.from_pretrained(folder / "transformer").float().eval(),
        AutoencoderKLFlux2.from_pretrained(folder / "vae").float().eval(),
        tuple(defaults["text_encoder_out_layers"]),
        defaults["max_sequence_length"],
    )
