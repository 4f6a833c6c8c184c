"""How much memory a training of a klein's DiT takes on each device, counted from its recipe and its config.

    python -m training.memory --recipe training/recipes/sft_dit_9b.yaml --transformer MODEL/transformer --processes 8

Weights, gradients and states are exact. Activations are what autograd keeps of one block of each kind, counted on a
model without memory; under gradient checkpointing all blocks keep their inputs and one block computes at a time."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import Flux2Transformer2DModel
from torch import nn

from clvr.errors import ClvrError
from clvr.hub import read_json

from .klein import CHANNELS, Latents, TextContext, lora_targets, velocity
from .recipe import load
from .runs import PRECISIONS
from .sft_dit import SFTConfig

GIB = 2**30
FP32, BF16 = 4, 2
"""Bytes of a number."""


@dataclass(frozen=True)
class Memory:
    """Bytes on each device.

    weights: fp32 to train all of them, the precision's under a LoRA, with the LoRA in fp32. gradients, adam (two
    moments) and average are fp32. computing: the copy in the precision that autocast keeps, or that FSDP2 gathers
    (two blocks and the parts outside blocks, with the gradients of one block). activations: see the module."""

    weights: int
    gradients: int
    adam: int
    average: int
    computing: int
    activations: int

    @property
    def total(self) -> int:
        return sum(dataclasses.asdict(self).values())

    def table(self) -> str:
        """Markdown, in GiB."""
        parts = {**dataclasses.asdict(self), "total": self.total}
        cells = " | ".join(f"{value / GIB:.1f}" for value in parts.values())
        return f"| {' | '.join(parts)} |\n|{' --- |' * len(parts)}\n| {cells} |"


def needed(recipe: SFTConfig, transformer: Mapping[str, Any], processes: int, images: int, text: int) -> Memory:
    """For samples of `images` image tokens (target and references: 4096 for each megapixel) and `text` tokens."""
    model = empty(transformer)
    counts = {name: p.numel() for name, p in model.named_parameters()}
    every = sum(counts.values())
    share = processes if recipe.run.shard else 1
    width = PRECISIONS[recipe.run.precision].itemsize
    activations = recipe.micro * _activations(model, images, text, width, recipe.gradient_checkpointing)
    if recipe.lora:
        sides = [sum(model.get_parameter(f"{name}.weight").shape) for name in lora_targets(model)]
        trained = recipe.lora.rank * sum(sides)
        weights, computing = every * width + trained * FP32, 0
    else:
        trained, weights = every, every * FP32 // share
        computing = _gathered(model, width) if recipe.run.shard else every * width * (width < FP32)
    states = trained * FP32 // share
    average = states if recipe.optim.ema else 0
    return Memory(weights, states, 2 * states, average, computing, activations)


def empty(transformer: Mapping[str, Any]) -> Flux2Transformer2DModel:
    """The model of a config without its memory."""
    with torch.device("meta"):
        made: Any = Flux2Transformer2DModel.from_config(dict(transformer))
    return made.bfloat16()


def _gathered(model: Flux2Transformer2DModel, width: int) -> int:
    """The two largest blocks and what lies outside blocks, whole; the gradients of one block as they are summed."""
    blocks = [_size(b) for b in (*model.transformer_blocks, *model.single_transformer_blocks)]
    outside = _size(model) - sum(blocks)
    return (2 * max(blocks) + outside) * width + max(blocks) * (width + FP32)


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _activations(model: Flux2Transformer2DModel, images: int, text: int, width: int, checkpointing: bool) -> int:
    """Bytes of one row. With checkpointing: every block's input, and twice what one block keeps (its gradients
    are as large)."""
    double, single = _kept(model, images, text)
    depth = len(model.transformer_blocks), len(model.single_transformer_blocks)
    if not checkpointing:
        return (double * depth[0] + single * depth[1]) * width // BF16
    inputs = sum(depth) * (images + text) * model.inner_dim
    return (inputs * BF16 + 2 * max(double, single)) * width // BF16


def _kept(model: Flux2Transformer2DModel, images: int, text: int) -> tuple[int, int]:
    """Bytes that autograd keeps of one double and of one single block, in bf16."""
    config: Any = {**model.config}
    found = []
    for double, single in ((1, 1), (2, 1), (1, 2)):
        some = empty({**config, "num_layers": double, "num_single_layers": single})
        found.append(saved_bytes(some, lambda m: _forward(m, images, text), images + text))
    return found[1] - found[0], found[2] - found[0]


def _forward(model: nn.Module, images: int, text: int) -> torch.Tensor:
    with torch.device("meta"):
        config: Any = model.config
        noisy = Latents(torch.zeros(1, images, CHANNELS, dtype=torch.bfloat16), 1, images)
        states = torch.zeros(1, text, config["joint_attention_dim"], dtype=torch.bfloat16)
        context = TextContext(states, torch.ones(1, text, dtype=torch.bool))
        return velocity(model, noisy, torch.zeros(1, dtype=torch.bfloat16), context)


def saved_bytes(model: nn.Module, forward: Callable[[nn.Module], torch.Tensor], tokens: int = 0) -> int:
    """What autograd keeps of a forward besides the parameters; views of one tensor count once. The weights of
    attention [..., tokens, tokens] are left out: fused kernels do not keep them."""
    mine = {p.untyped_storage()._cdata for p in model.parameters()}
    seen: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if tensor.shape[-2:] != (tokens, tokens):
            seen[storage._cdata] = storage  # not data_ptr: on the meta device that is 0 for all
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = forward(model)
    del out
    return sum(storage.nbytes() for key, storage in seen.items() if key not in mine)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", type=Path, required=True, help="a recipe of training.sft_dit")
    parser.add_argument("--transformer", type=Path, required=True, help="a klein folder's transformer/")
    parser.add_argument("--processes", type=int, default=1, help="devices (default: %(default)s)")
    parser.add_argument("--images", type=int, default=8192, help="tokens of target and references, 4096 a megapixel")
    parser.add_argument("--text", type=int, default=512, help="tokens of the text (default: %(default)s)")
    options = parser.parse_args()
    try:
        config = read_json(options.transformer / "config.json")
        memory = needed(load(options.recipe, SFTConfig), config, options.processes, options.images, options.text)
        print(f"GiB on each of {options.processes} devices:\n\n{memory.table()}")
    except ClvrError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
