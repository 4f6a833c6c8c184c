"""Muon for matrices, the learning-rate schedule, and the moving average of weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from .checkpoints import Saved
from .sharding import local


def orthogonalise(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Newton-Schulz iteration towards U V^T for matrices [N, rows, columns]; singular values end near 1.

    Muon (Jordan et al., 2024), in fp32."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised per matrix, scaled by sqrt(max(1, rows / columns))."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(list(params), {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for shape, params in by_shape.items():
                updates = orthogonalise(torch.stack([self._nesterov(p, group["momentum"]) for p in params]))
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                for p, update in zip(params, updates, strict=True):
                    p.add_(update, alpha=-group["lr"] * scale)

    def _nesterov(self, p: nn.Parameter, momentum: float) -> torch.Tensor:
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
        gradient = torch.zeros_like(p) if p.grad is None else p.grad
        state["momentum"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(state["momentum"], momentum)


def schedule(done: int, total: int, warmup: int, decay: float) -> float:
    """Learning-rate factor after `done` of `total` samples: linear up over `warmup`, flat, linear down over
    the last share `decay`."""
    up = min(1.0, (done + 1) / max(1, warmup))
    down = min(1.0, max(0.0, (total - done) / max(1.0, total * decay)))
    return min(up, down)


class Average:
    """Exponential moving average of the trained parameters of modules, warmed up by (1 + n) / (10 + n)."""

    def __init__(self, modules: Mapping[str, nn.Module], decay: float) -> None:
        self.modules = modules
        self.decay = decay
        self.reset()

    def reset(self) -> None:
        """Start anew from the live weights."""
        self.updates = 0
        self.shadow = {k: v.detach().clone() for k, v in self.live()}

    def live(self) -> Iterable[tuple[str, torch.Tensor]]:
        for name, module in self.modules.items():
            yield from ((f"{name}.{k}", p) for k, p in module.named_parameters() if p.requires_grad)

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        live = dict(self.live())
        torch._foreach_lerp_(list(self.shadow.values()), [live[k] for k in self.shadow], weight)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the live weights and their average."""
        for k, p in self.live():
            kept = p.detach().clone()
            p.copy_(self.shadow[k])
            self.shadow[k].copy_(kept)

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """The average in place of the live weights, for a while."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def tensors(self) -> Mapping[str, torch.Tensor]:
        return {**self.shadow, "updates": torch.tensor(self.updates)}

    @torch.no_grad()
    def restore(self, saved: Saved) -> None:
        self.updates = int(saved.whole("updates"))
        for name, value in self.shadow.items():
            local(value).copy_(saved.rows(name, value))


def published(average: Average | None) -> contextlib.AbstractContextManager[None]:
    """The weights as they are published, for a while: their average, where there is one."""
    return average.swapped() if average else contextlib.nullcontext()


def split(transformer: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The blocks' matrices (for Muon) and everything else (for AdamW)."""
    named = list(transformer.named_parameters())
    inside = [p for k, p in named if "blocks." in k and p.ndim == 2]
    chosen = {id(p) for p in inside}
    return inside, [p for _, p in named if id(p) not in chosen]


def flatten(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, torch.Tensor]:
    """An optimizer's state as named tensors, parameters numbered in order."""
    out: dict[str, torch.Tensor] = {}
    for n, entry in optimizer.state_dict()["state"].items():
        for key, value in entry.items():
            out[f"{prefix}.{n}.{key}"] = torch.as_tensor(value).clone()
    return out


def unflatten(optimizer: torch.optim.Optimizer, prefix: str, tensors: Mapping[str, torch.Tensor]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        if name.startswith(f"{prefix}."):
            _, n, key = name.rsplit(".", 2)
            state.setdefault(int(n), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
