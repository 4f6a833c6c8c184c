"""Groups of pictures that the old policy draws for one task, scored while the next group is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from PIL import Image

from clvr.ports import Proxy

from . import nft
from .klein import CHANNELS, Encoders, Latents, sample
from .policy import Condition, Policy
from .rewards import Scorer
from .tasks import Task


@dataclass(frozen=True)
class Drawing:
    """How rollouts are drawn. width, height in pixels; batch: pictures in one forward."""

    width: int = 512
    height: int = 512
    steps: int = 8
    guidance: float = 4.0
    batch: int = 16


@dataclass(frozen=True)
class Verdict:
    """A settled group. advantages, weights [G]: a picture without a reward weighs 0, as does a whole group with
    fewer than two rewards, which tell nothing of each other."""

    rewards: tuple[float | None, ...]
    advantages: torch.Tensor
    weights: torch.Tensor

    @property
    def known(self) -> list[float]:
        return [r for r in self.rewards if r is not None]


@dataclass
class Group:
    """`latents` are the drawn x0 [G, N, 128]; `condition` is one row's."""

    index: int
    task: Task
    proxy: Proxy
    condition: Condition
    latents: Latents
    images: list[Image.Image]
    scores: list[Future[float | None]] = field(default_factory=list)

    def settle(self) -> Verdict:
        """Waits for the scores. Raises VLMSetupError where no reward can ever be had."""
        return judged([score.result() for score in self.scores])


def judged(rewards: Sequence[float | None]) -> Verdict:
    """Advantages within the group, over the rewards that are there."""
    known = [n for n, reward in enumerate(rewards) if reward is not None]
    advantages, weights = torch.zeros(len(rewards)), torch.zeros(len(rewards))
    if len(known) > 1:
        advantages[known] = nft.advantages(torch.tensor([r for r in rewards if r is not None], dtype=torch.float32))
        weights[known] = 1.0
    return Verdict(tuple(rewards), advantages, weights)


def condition(encoders: Encoders, task: Task, drawing: Drawing) -> Condition:
    """One row. References of another size are scaled to the drawing's."""
    context = encoders.encode_text([task.text])
    negative = encoders.encode_text([""], context.states.shape[1]) if drawing.guidance > 1 else None
    size = (drawing.width, drawing.height)
    pictures = [p if p.size == size else p.resize(size, Image.Resampling.LANCZOS) for p in task.pictures]
    return Condition(context, negative, tuple(encoders.encode_images([p]) for p in pictures))


def draw(policy: Policy, given: Condition, noise: Latents, levels: torch.Tensor, drawing: Drawing) -> Latents:
    """x0 [G, N, 128] from noise by whichever policy acts, with guidance."""
    parts = []
    for rows in noise.tokens.split(drawing.batch):
        own = given.rows(len(rows))
        made = sample(
            policy.klein.transformer,
            noise.like(rows),
            levels,
            own.context,
            own.references,
            drawing.guidance,
            own.negative,
        )
        parts.append(made.tokens)
    return noise.like(torch.cat(parts))


def noise(count: int, drawing: Drawing, generator: torch.Generator, token: int = 16) -> Latents:
    """Standard normal tokens; drawn on the CPU, so that every device starts from the same."""
    height, width = drawing.height // token, drawing.width // token
    return Latents(torch.randn(count, height * width, CHANNELS, generator=generator), height, width)


def score(group: Group, scorer: Scorer) -> Group:
    """The group with its pictures handed to the scorer."""
    history = group.task.history
    group.scores = [scorer.submit(image, group.proxy, history) for image in group.images]
    return group
