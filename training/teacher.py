"""A teacher's guided trajectories, drawn once and kept: what few-step distillation regresses on.

A trajectory is the deterministic way of one noise to one picture under classifier-free guidance, of which the states
at the student's noise levels are kept. The teacher's own levels subdivide the student's, evenly before the shift.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from clvr.errors import SettingError
from clvr.flux2.limits import TOKEN
from clvr.shapes.render import render

from . import world
from .config import DataConfig
from .data import records
from .klein import CHANNELS, Encoders, Latents, TextContext, sample, shifted
from .latent_cache import Cache, Encodings, digest_of
from .runs import generator


@dataclass(frozen=True)
class Teacher:
    """How the teacher draws. trajectories: to learn from; steps: of each, a multiple of the student's.

    width, height: pixels, references are brought to the same. batch: trajectories in one forward."""

    trajectories: int = 20000
    steps: int = 28
    guidance: float = 4.0
    width: int = 1024
    height: int = 1024
    batch: int = 4

    def __post_init__(self) -> None:
        if self.width % TOKEN or self.height % TOKEN:
            raise SettingError(f"teacher: sides are multiples of {TOKEN} pixels.", "For example 1024.")
        if min(self.trajectories, self.steps, self.batch) < 1:
            raise SettingError("teacher: trajectories, steps and batch are at least 1.", "Mend the recipe.")

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens down and across."""
        return self.height // TOKEN, self.width // TOKEN


@dataclass(frozen=True)
class Prompt:
    """What is drawn: c_t's text, and its references, which are made or read when they are needed; `key` tells
    them apart."""

    text: str
    references: int = 0
    key: str = ""
    pictures: Callable[[], Sequence[Image.Image]] = field(default=tuple, compare=False)


def world_prompts(config: DataConfig, count: int, seed: int, side: int) -> list[Prompt]:
    """New pictures, edits and rounds of trajectories of the built-in world; its held-back tenth stays out."""
    made = world.samples(config, random.Random(seed), count)
    return [_world_prompt(sample, side) for sample in made[:count]]


def _world_prompt(sample: world.Sample, side: int) -> Prompt:
    given = sample.references
    return Prompt(sample.text, len(given), repr(given), lambda: [render(scene, seed, side) for scene, seed in given])


def dataset_prompts(folder: Path) -> list[Prompt]:
    """Every step of a data engine's dataset. Raises MissingFileError, and FormatError naming file and line."""
    return [_step_prompt(record, step) for record in records.read(folder) for step in record.steps]


def _step_prompt(record: records.Record, step: records.Sample) -> Prompt:
    given = step.references
    key = f"{record.id}:{given}"
    return Prompt(step.context, len(given), key, lambda: [record.image(index) for index in given])


@dataclass(frozen=True)
class Item:
    """A trajectory's number, which decides its noise, its prompt, and the tokens to which the text is padded."""

    number: int
    prompt: Prompt
    length: int

    @property
    def shape(self) -> tuple[object, ...]:
        """What the rows of a batch have in common."""
        return self.length, self.prompt.references


@dataclass(frozen=True)
class Trajectories:
    """Rows of one shape. tokens [B, K + 1, height * width, 128]: x_t at the student's K + 1 noise levels, from noise
    to picture; height and width in tokens."""

    tokens: torch.Tensor
    height: int
    width: int
    context: TextContext
    references: tuple[Latents, ...]


def items(prompts: Sequence[Prompt], count: int, encoders: Encoders) -> list[Item]:
    """`count` trajectories over the prompts, again with other noise where they are fewer; texts that are longer than
    is read are left out. Raises SettingError where no prompt is left."""
    lengths = encoders.lengths([prompt.text for prompt in prompts])
    chosen = [(p, length) for p, length in zip(prompts, lengths, strict=True) if length <= encoders.limit]
    if not chosen:
        raise SettingError(f"No prompt fits into {encoders.limit} tokens.", "Give shorter ones.")
    return [Item(n, *chosen[n % len(chosen)]) for n in range(count)]


def levels(teacher: Teacher, steps: int) -> torch.Tensor:
    """The teacher's noise levels [teacher.steps + 1]; every (teacher.steps / steps)-th is the sampler's at `steps`."""
    height, width = teacher.grid
    return shifted(torch.linspace(1, 0, teacher.steps + 1), steps, height * width)


class Archive:
    """Trajectories of one teacher on disk, by everything else that they depend on; `steps` are the student's."""

    def __init__(self, cache: Cache, encodings: Encodings, teacher: Teacher, steps: int, seed: int) -> None:
        if teacher.steps % steps:
            raise SettingError(
                f"{teacher.steps} steps of the teacher do not divide into {steps}.",
                f"Set teacher.steps to a multiple of {steps}.",
            )
        self.cache, self.encodings, self.teacher, self.steps, self.seed = cache, encodings, teacher, steps, seed
        self.levels = levels(teacher, steps)
        self._key = digest_of(self.levels.tolist(), teacher.guidance, teacher.grid, seed)

    @property
    def knots(self) -> torch.Tensor:
        """The student's noise levels [K + 1]."""
        return self.levels[:: self.teacher.steps // self.steps]

    def missing(self, wanted: Sequence[Item]) -> list[list[Item]]:
        """What is not there yet, in batches of one shape."""
        shapes: dict[tuple[object, ...], list[Item]] = {}
        for item in wanted:
            if not self.cache.path(self._name(item)).exists():
                shapes.setdefault(item.shape, []).append(item)
        size = self.teacher.batch
        return [rows[n : n + size] for rows in shapes.values() for n in range(0, len(rows), size)]

    @torch.no_grad()
    def draw(self, transformer: nn.Module, rows: Sequence[Item]) -> None:
        """Draw and keep a batch of one shape."""
        context = self._context(rows)
        references = self._references(rows)
        negative = self.encodings.text("", rows[0].length)
        many = TextContext(negative.states.expand_as(context.states), negative.mask.expand_as(context.mask))
        x = self._grid(torch.stack([self._noise(item) for item in rows]).to(context.states.device))
        states, window = [x.tokens], self.teacher.steps // self.steps
        for start in range(0, self.teacher.steps, window):
            levels = self.levels[start : start + window + 1]
            x = sample(transformer, x, levels, context, references, self.teacher.guidance, many)
            states.append(x.tokens)
        for n, item in enumerate(rows):
            kept = {f"reference.{i}": r.tokens[n] for i, r in enumerate(references)}
            self.cache.put(self._name(item), {"states": torch.stack([s[n] for s in states]).float(), **kept})

    def read(self, rows: Sequence[Item], device: torch.device) -> Trajectories:
        """A batch of one shape. Raises SettingError for one that was deleted since it was drawn."""
        found = [self._found(item) for item in rows]
        references = (torch.stack([f[f"reference.{i}"] for f in found]) for i in range(rows[0].prompt.references))
        return Trajectories(
            torch.stack([f["states"] for f in found]).to(device),
            *self.teacher.grid,
            self._context(rows).to(device),
            tuple(self._grid(tokens.to(device)) for tokens in references),
        )

    def _found(self, item: Item) -> Mapping[str, torch.Tensor]:
        found = self.cache.get(self._name(item))
        if found is None:
            raise SettingError(
                f"{self.cache.path(self._name(item))} is damaged or gone.", "Start again: it is drawn anew."
            )
        return found

    def _context(self, rows: Sequence[Item]) -> TextContext:
        found = [self.encodings.text(item.prompt.text, item.length) for item in rows]
        return TextContext(torch.cat([f.states for f in found]), torch.cat([f.mask for f in found]))

    def _references(self, rows: Sequence[Item]) -> tuple[Latents, ...]:
        size = (self.teacher.width, self.teacher.height)
        pictures = [[_sized(p, size) for p in item.prompt.pictures()] for item in rows]
        return tuple(self.encodings.encoders.encode_images(column) for column in zip(*pictures, strict=True))

    def _grid(self, tokens: torch.Tensor) -> Latents:
        return Latents(tokens, *self.teacher.grid)

    def _noise(self, item: Item) -> torch.Tensor:
        """Of the CPU, so that every device starts from the same."""
        height, width = self.teacher.grid
        return torch.randn(height * width, CHANNELS, generator=generator(self.seed, "noise", item.number))

    def _name(self, item: Item) -> str:
        return digest_of(self._key, item.number, item.length, item.prompt.text, item.prompt.key)


def _sized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)


def own(batches: Sequence[list[Item]], process: int, processes: int) -> Iterator[list[Item]]:
    """A process's batches, as many as every other's: sharded weights are gathered by all together."""
    for start in range(0, len(batches), processes):
        yield batches[min(start + process, len(batches) - 1)]
