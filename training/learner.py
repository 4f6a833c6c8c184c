"""The gradient of DiffusionNFT for a group of drawn pictures, at several noise levels each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from . import nft
from .klein import Latents
from .policy import Condition, Policy, Which
from .rollouts import Group, Verdict
from .runs import generator


@dataclass(frozen=True)
class NFT:
    """DiffusionNFT. beta: how far the implicit policies stand from the old one. clip: of the advantages.

    kl_coef: weight of the squared distance to the SFT's velocity. guided: train the guided velocity that the
    rollouts are drawn with; else the conditional one alone, at half the cost. times: noise levels a picture is
    trained at; levels: those of the sampler, or uniform. The old policy keeps min(old_rate · epoch, old_most)."""

    beta: float = 0.1
    clip: float = 5.0
    kl_coef: float = 1e-5
    guided: bool = True
    adaptive: bool = True
    times: int = 4
    levels: Literal["sampler", "uniform"] = "sampler"
    old_rate: float = 0.001
    old_most: float = 0.5


@dataclass(frozen=True)
class Learned:
    """Sums over a group's pictures and times, each times its share of the update."""

    policy: torch.Tensor
    kl: torch.Tensor

    def __add__(self, other: Learned) -> Learned:
        return Learned(self.policy + other.policy, self.kl + other.kl)


class Learner:
    """`levels`: the sampler's [steps + 1]. `batch`: pictures in one forward. What is random depends on `seed`, the
    epoch and the group's number alone."""

    def __init__(
        self,
        policy: Policy,
        config: NFT,
        levels: torch.Tensor,
        guidance: float,
        batch: int,
        seed: int,
        autocast: Callable[[], contextlib.AbstractContextManager[None]],
    ) -> None:
        self._policy, self._config, self._levels = policy, config, levels
        self._guidance = guidance if config.guided else 1.0
        self._batch, self._seed, self._autocast = batch, seed, autocast

    def learn(self, epoch: int, group: Group, verdict: Verdict, share: float) -> Learned:
        """Add a group's gradient; `share` is what one picture counts in the update's loss."""
        device = group.latents.tokens.device
        learned = Learned(torch.zeros((), device=device), torch.zeros((), device=device))
        random = generator(self._seed, "learn", epoch, group.index)
        for rows, t in self._schedule(len(group.latents.tokens), random):
            noise = torch.randn(group.latents.tokens[rows].shape, generator=random)
            learned += self._step(group, verdict, rows, t.to(device), noise.to(device), share / self._config.times)
        return learned

    def _schedule(self, size: int, random: torch.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Rows of a group and their noise levels, each picture at `times` different ones."""
        for column in self._times(size, random).T:
            for rows in torch.arange(size).split(self._batch):
                yield rows, column[rows]

    def _times(self, size: int, random: torch.Generator) -> torch.Tensor:
        """[size, times] in (0, 1]."""
        times = self._config.times
        if self._config.levels == "uniform":
            spread = (torch.arange(times) + torch.rand(size, times, generator=random)) / times
            return spread.clamp(1e-3, 1 - 1e-3)
        count = len(self._levels) - 1
        order = torch.stack([torch.randperm(count, generator=random) for _ in range(size)])
        return self._levels[order[:, torch.arange(times) % count]]

    def _step(
        self, group: Group, verdict: Verdict, rows: torch.Tensor, t: torch.Tensor, noise: torch.Tensor, share: float
    ) -> Learned:
        config = self._config
        x0 = group.latents.tokens[rows].float()
        noisy = group.latents.like(torch.lerp(x0, noise, t.view(-1, 1, 1)))
        given = group.condition.rows(len(rows))
        with torch.no_grad():
            v_old, v_ref = (self._velocity(which, noisy, t, given) for which in ("old", "reference"))
        found = nft.loss(
            self._velocity("new", noisy, t, given),
            v_old,
            v_ref,
            x0=x0,
            x_t=noisy.tokens,
            t=t,
            r=nft.optimality(verdict.advantages[rows], config.clip).to(t),
            nft_beta=config.beta,
            advantage_clip=config.clip,
            kl_coef=config.kl_coef,
            adaptive=config.adaptive,
        )
        weights = verdict.weights[rows].to(t) * share
        (weights * found.total).sum().backward()
        return Learned((weights * found.policy).sum().detach(), (weights * found.kl).sum().detach())

    def _velocity(self, which: Which, noisy: Latents, t: torch.Tensor, given: Condition) -> torch.Tensor:
        with self._policy.acting(which), self._autocast():
            return self._policy.velocity(noisy, t, given, self._guidance).float()
