"""What PPRL draws pictures for: truncated trajectories, as contexts with their whole history (eq. 1).

They come from a dataset of the data engine, or without end from the built-in world's grammar. A batch mixes new
pictures and edits 1 : 1, and edits of the first, second, third and later steps equally (A.6).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from clvr.context import Context, Turn, narrate
from clvr.errors import FormatError, GrammarError
from clvr.shapes.render import render
from clvr.shapes.sampler import held_back
from clvr.trajectory import generated

from .data import records
from .world import Round, rounds

KINDS = ("t2i", "i2i 1", "i2i 2", "i2i 3", "i2i 4+")
"""A new picture, and edits by the number of pictures made before."""
_WEIGHTS = (4, 1, 1, 1, 1)


@dataclass(frozen=True)
class Task:
    """`context` holds the whole history, oldest first, for the teacher; `references` are the labels of the images
    that the policy is given. `text` is what its text encoder reads."""

    id: str
    context: Context
    references: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return self.context.text

    @property
    def history(self) -> dict[str, Image.Image]:
        return dict(self.context.images)

    @property
    def pictures(self) -> tuple[Image.Image, ...]:
        """The references, in order."""
        history = self.history
        return tuple(history[label] for label in self.references)

    @property
    def kind(self) -> str:
        """One of KINDS. A new picture in the middle of a trajectory is a new picture."""
        if not self.references:
            return KINDS[0]
        made = sum(1 for turn in self.context.turns if turn.label)
        return KINDS[min(max(made, 1), len(KINDS) - 1)]


class Source(Protocol):
    def draw(self, kind: str, rng: random.Random) -> Task:
        """A task of that kind."""
        ...

    @property
    def kinds(self) -> tuple[str, ...]:
        """Those that it has tasks of."""
        ...


def mixed(source: Source, rng: random.Random) -> Iterator[Task]:
    """Tasks without end in the paper's proportions; kinds that the source lacks leave their share to the others."""
    kinds = source.kinds
    weights = [_WEIGHTS[KINDS.index(kind)] for kind in kinds]
    while True:
        yield source.draw(rng.choices(kinds, weights)[0], rng)


class World:
    """Rounds of simulated trajectories of the built-in world, at `side` pixels; the held-back tenth stays out."""

    kinds = KINDS

    def __init__(self, side: int = 64, held: bool = False) -> None:
        self._side, self._held = side, held

    def held(self) -> World:
        """The held-back tenth instead."""
        return World(self._side, held=True)

    def draw(self, kind: str, rng: random.Random) -> Task:
        wanted = KINDS.index(kind)
        while True:
            try:
                goal, made, seed = rounds(rng, self._held)
            except GrammarError:
                continue
            if len(made) <= wanted:
                continue
            at = wanted if kind != KINDS[-1] else rng.randrange(wanted, len(made))
            if self._held or not held_back(made[at].decision.instruction):
                return self._task(goal, made[: at + 1], seed)

    def _task(self, goal: str, made: Sequence[Round], seed: int) -> Task:
        *earlier, now = made
        turns = [Turn(n, narrate(one.decision), generated(n)) for n, one in enumerate(earlier)]
        images = tuple((generated(n), render(one.scene, seed, self._side)) for n, one in enumerate(earlier))
        context = Context(goal, (*turns, Turn(len(earlier), narrate(now.decision))), images)
        return Task(f"world-{seed}-{len(earlier)}", context, tuple(generated(n) for n in now.references))


class Dataset:
    """Every step of every trajectory of a data engine's folder; `keep` may refuse some."""

    def __init__(self, folder: Path, keep: Callable[[Task], bool] = lambda _: True) -> None:
        """Raises MissingFileError, and FormatError naming file and line; FormatError where nothing is left."""
        self._by_kind: dict[str, list[tuple[records.Record, int]]] = {}
        for record in records.read(folder):
            for number in range(len(record.steps)):
                task = step_task(record, number)
                if keep(task):
                    self._by_kind.setdefault(task.kind, []).append((record, number))
        if not self._by_kind:
            raise FormatError(f"{folder} has no step to train on.", "Make a dataset with python -m training.data.")

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(kind for kind in KINDS if kind in self._by_kind)

    def draw(self, kind: str, rng: random.Random) -> Task:
        return step_task(*rng.choice(self._by_kind[kind]))


def tasks(folder: Path) -> Iterator[Task]:
    """Every step of a dataset once, in order."""
    for record in records.read(folder):
        for number in range(len(record.steps)):
            yield step_task(record, number)


def step_task(record: records.Record, number: int) -> Task:
    """Raises FormatError where the step's context does not begin with the goal or names an unknown image."""
    step = record.steps[number]
    trajectory = record.trajectory
    labels = (*trajectory.goal.labels(), *(s.label for s in trajectory.steps))
    turns = _turns(record, step.context)
    told = {*trajectory.goal.labels(), *(turn.label for turn in turns), *(labels[i] for i in step.references)}
    images = tuple((label, record.image(n)) for n, label in enumerate(labels[: step.target]) if label in told)
    context = Context(record.goal.strip(), turns, images)
    return Task(f"{record.id}/{number}", context, tuple(labels[i] for i in step.references))


_MARK = re.compile(r"(.*?)\s*<(IMG_GEN_\d+)>")


def _turns(record: records.Record, text: str) -> tuple[Turn, ...]:
    """The lines of c_t after the goal; the last one is r_t, '' where the step said nothing beyond the goal."""
    goal = record.goal.strip()
    if not text.startswith(goal):
        raise FormatError(f"{record.place}: a step's context does not begin with the goal.", "Export it again.")
    lines = [line for line in text[len(goal) :].split("\n") if line]
    turns = []
    for number, line in enumerate(lines):
        match = _MARK.fullmatch(line)
        turns.append(Turn(number, match[1], match[2]) if match else Turn(number, line))
    if not turns or turns[-1].label:
        turns.append(Turn(len(turns), ""))
    return tuple(turns)
