"""Samples of the DiT's SFT in batches whose rows have one shape, in an order that the seed alone decides."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from clvr.errors import SettingError


class Shaped(Protocol):
    @property
    def shape(self) -> tuple[object, ...]:
        """What the rows of a batch have in common."""
        ...


T = TypeVar("T", bound=Shaped)


@dataclass(frozen=True)
class Picture:
    """A picture file, the SHA-256 of its bytes, and its tokens' grid as it is encoded."""

    path: Path
    digest: str
    height: int
    width: int


@dataclass(frozen=True)
class Item:
    """c_t and its references -> x_t. length: tokens to which the text is padded."""

    text: str
    length: int
    target: Picture
    references: tuple[Picture, ...] = ()

    @property
    def shape(self) -> tuple[object, ...]:
        """Sizes, number of references, length of the text."""
        return self.length, *((p.height, p.width) for p in (self.target, *self.references))

    @property
    def tokens(self) -> int:
        return self.length + sum(p.height * p.width for p in (self.target, *self.references))


@dataclass(frozen=True)
class Place:
    """A sample of an epoch: what is drawn at random for it depends on nothing else."""

    epoch: int
    item: int


@dataclass(frozen=True)
class Plan(Generic[T]):
    """Which samples each step and each process trains on.

    batch: samples of a step on all processes together. micro: of one forward. Every epoch sees every sample once;
    a micro-batch is smaller where a bucket does not divide, and the last step of an epoch takes from the next."""

    items: Sequence[T]
    batch: int
    micro: int
    seed: int
    _epochs: dict[int, list[tuple[Place, ...]]] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.items:
            raise SettingError("The dataset holds no sample to train on.", "See what was left out, and why.")
        if self.micro < 1 or self.batch < 1 or self.batch % self.micro:
            raise SettingError(
                f"batch {self.batch} is not made of micro-batches of {self.micro}.", "Give a multiple of micro."
            )

    @property
    def forwards(self) -> int:
        """Of a step, on all processes together."""
        return self.batch // self.micro

    def steps(self, epochs: int) -> int:
        return -(-epochs * len(self._epoch(0)) // self.forwards)

    def step(self, number: int) -> list[tuple[Place, ...]]:
        """The micro-batches of a step, over all processes."""
        return [self._micro(number * self.forwards + n) for n in range(self.forwards)]

    def share(self, number: int, process: int, processes: int) -> tuple[list[tuple[Place, ...]], int]:
        """A process's micro-batches of a step, and the samples of the whole step. Raises SettingError."""
        if self.forwards % processes:
            raise SettingError(
                f"{processes} processes cannot share {self.forwards} micro-batches a step evenly.",
                f"Make batch a multiple of {self.micro * processes} (micro times processes).",
            )
        step = self.step(number)
        return step[process::processes], sum(map(len, step))

    def once(self) -> list[tuple[Place, ...]]:
        """Every sample once, in micro-batches."""
        return self._epoch(0)

    def _micro(self, number: int) -> tuple[Place, ...]:
        epoch, within = divmod(number, len(self._epoch(0)))
        return self._epoch(epoch)[within]

    def _epoch(self, epoch: int) -> list[tuple[Place, ...]]:
        if epoch not in self._epochs:
            for old in {*self._epochs} - {0, epoch - 1}:  # the first tells the length, a step may touch two
                del self._epochs[old]
            self._epochs[epoch] = self._shuffled(epoch)
        return self._epochs[epoch]

    def _shuffled(self, epoch: int) -> list[tuple[Place, ...]]:
        rng = random.Random(f"{self.seed}:{epoch}")
        buckets: dict[tuple[object, ...], list[Place]] = {}
        for number, item in enumerate(self.items):
            buckets.setdefault(item.shape, []).append(Place(epoch, number))
        made = []
        for places in buckets.values():
            rng.shuffle(places)
            made += [tuple(places[i : i + self.micro]) for i in range(0, len(places), self.micro)]
        rng.shuffle(made)
        return made
