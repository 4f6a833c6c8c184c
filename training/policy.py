"""The policy that RL trains: a klein with two LoRAs on its weights, one that learns and an old one that draws.

With both switched off the transformer is the reference again, the weights from before RL (here the SFT's), so that
nothing is held twice.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.distributed.tensor import DTensor

from clvr.errors import SettingError

from .klein import Klein, Latents, TextContext, lora_targets, velocity
from .nft import follow
from .publishing import save_lora

NEW, OLD = "default", "old"
Which = Literal["new", "old", "reference"]


@dataclass(frozen=True)
class Lora:
    """r and alpha of a LoRA on every matrix of the blocks; ΔW = B·A · alpha / rank (A.6)."""

    rank: int = 128
    alpha: int = 256

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise SettingError(f"lora: rank {self.rank} and alpha {self.alpha} cannot work.", "Both are above 0.")


@dataclass(frozen=True)
class Condition:
    """What a velocity is conditioned on: the context, "" at its length (None without guidance), references."""

    context: TextContext
    negative: TextContext | None
    references: tuple[Latents, ...] = ()

    def rows(self, count: int) -> Condition:
        """One row's condition for `count` rows."""
        return Condition(
            _repeated(self.context, count),
            None if self.negative is None else _repeated(self.negative, count),
            tuple(r.like(r.tokens.expand(count, -1, -1)) for r in self.references),
        )


def _repeated(context: TextContext, count: int) -> TextContext:
    return TextContext(context.states.expand(count, -1, -1), context.mask.expand(count, -1))


class Policy:
    """`klein`'s transformer gains the two LoRAs, equal and without effect at first."""

    def __init__(self, klein: Klein, lora: Lora, seed: int = 0) -> None:
        self.klein = klein
        transformer = klein.transformer.requires_grad_(False)
        self.targets = lora_targets(transformer)
        with torch.random.fork_rng(), warnings.catch_warnings():
            torch.manual_seed(seed)
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # a second adapter is what we want
            for name in (OLD, NEW):
                config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=self.targets)
                transformer.add_adapter(config, name)
        self._layers = [m for m in transformer.modules() if isinstance(m, BaseTunerLayer)]
        self.trained = _parameters(transformer, NEW)
        self.old = _parameters(transformer, OLD)
        for parameter in (*self.trained.values(), *self.old.values()):
            parameter.data = parameter.data.float()  # diffusers gives them the weights' bf16, too coarse to learn in
        self.follow(0.0)
        self._switch("new")

    def follow(self, decay: float) -> None:
        """old <- decay · old + (1 - decay) · new."""
        for old, new in zip(self.old.values(), self.trained.values(), strict=True):
            follow(old, new, decay)

    @contextlib.contextmanager
    def acting(self, which: Which) -> Iterator[None]:
        """The transformer as one of the three; outside it is the new policy. Only the new one gets gradients."""
        self._switch(which)
        try:
            yield
        finally:
            self._switch("new")

    def _switch(self, which: Which) -> None:
        # Not by peft's set_adapter alone: that makes whatever acts trainable.
        for layer in self._layers:
            layer.enable_adapters(which != "reference")
            layer.set_adapter(NEW if which == "new" else OLD, inference_mode=which != "new")
            if which == "reference":
                layer.enable_adapters(False)
        for parameter in self.trained.values():
            parameter.requires_grad_(True)

    def velocity(self, noisy: Latents, t: torch.Tensor, condition: Condition, guidance: float) -> torch.Tensor:
        """[B, N, 128] of whichever policy acts; above guidance 1 with classifier-free guidance, in one forward."""
        if guidance <= 1 or condition.negative is None:
            return velocity(self.klein.transformer, noisy, t, condition.context, condition.references)
        both = TextContext(
            torch.cat([condition.context.states, condition.negative.states]),
            torch.cat([condition.context.mask, condition.negative.mask]),
        )
        twice = tuple(r.like(r.tokens.repeat(2, 1, 1)) for r in condition.references)
        doubled = noisy.like(noisy.tokens.repeat(2, 1, 1))
        positive, negative = velocity(self.klein.transformer, doubled, t.repeat(2), both, twice).chunk(2)
        return negative + guidance * (positive - negative)

    def shift(self) -> float:
        """Relative Frobenius shift of the new policy against the reference (eq. 7), over the adapted matrices."""
        change = total = 0.0
        for layer in self._layers:
            change += _squared(layer.get_delta_weight(NEW))  # pyright: ignore[reportCallIssue]
            total += _squared(layer.get_base_layer().weight)  # pyright: ignore[reportArgumentType]
        return (change / total) ** 0.5

    def save(self, folder: Path) -> None:
        """The new policy's LoRA as diffusers names and describes it; `clvr merge` adds it to the SFT weights."""
        save_lora(self.klein.transformer, NEW, folder)


def _parameters(transformer: nn.Module, adapter: str) -> dict[str, nn.Parameter]:
    return {k: p for k, p in transformer.named_parameters() if ".lora_" in k and f".{adapter}." in k}


def _squared(tensor: torch.Tensor) -> float:
    total = tensor.detach().float().square().sum()
    return float(total.full_tensor() if isinstance(total, DTensor) else total)
