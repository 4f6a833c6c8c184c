"""The merge itself: pieces stream from the inputs through fixed buffers into the output, on a few threads.

Peak memory is the buffers', whatever the model's size; time is that of reading the inputs and writing the
output where the disk is not faster than about a GB a second and thread."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from ..flux2.keymap import Layout, key_of, pieces
from . import extract
from .arithmetic import STORED
from .outputs import places_of, refuse_foreign_folder
from .plan import Plan, open_plan, order, refuse_own_input
from .provenance import Hashes, Input, inputs_of, record
from .recipe import Recipe
from .streaming import Stream, by_place
from .sums import Sums
from .writing import TensorFile, check_free, layout, staged


@dataclass(frozen=True)
class Progress:
    """bytes: of the output. seconds: since the merge began."""

    tensors_done: int
    tensors: int
    bytes_done: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What was written and measured. `blocks` is in the network's order, and empty where nothing was measured.

    energy: share of the increment's energy in the LoRA that was extracted, None for other outputs."""

    path: Path
    recipe: Recipe
    reference: Literal["base", "distilled"]
    increments: tuple[str, ...]
    blocks: Mapping[str, Sums]
    inputs: tuple[Input, ...]
    seconds: float
    energy: float | None = None


def merge(recipe: Recipe, listen: Callable[[Progress], None] = lambda _: None) -> Outcome:
    """Carry out a recipe. `listen` is called a few times a second; what it raises ends the merge, and nothing
    is left behind. Raises SettingError, MissingFileError, WeightsError and OutputError."""
    began = time.monotonic()
    plan = open_plan(recipe)
    refuse_own_input(plan)
    refuse_foreign_folder(recipe)
    file = _tensors(plan)
    places = places_of(plan)
    size = layout(file, record(plan, {}))[2] + sum(path.stat().st_size for path in places.copies)
    check_free(recipe.out, size, recipe.overwrite)
    energy = None
    with staged(recipe.out, size, recipe.overwrite) as stage, _one_thread_each():
        weights = places.begin(stage, plan)
        writer = TensorFile(weights, file, record(plan, {}))
        with contextlib.closing(writer), Hashes(plan) as hashes:
            work = Stream(plan, writer)
            tell = _teller(listen, file, writer.size, began)
            with writer.flushing():
                if recipe.form == "lora":
                    energy = extract.fill(plan, writer, tell)
                else:
                    work.run(tell)
            digests = hashes.wait(lambda: tell(len(file), writer.size))
            for source in plan.sources.values():
                for read in source.files:
                    read.check_unchanged()
            writer.finish(record(plan, digests))
        places.finish(stage)
    blocks = {name: _whole(plan, name, work.blocks[name]) for name in sorted(work.blocks, key=order)}
    names = tuple(k.name for k in plan.increments)
    inputs = tuple(inputs_of(plan, digests))
    return Outcome(recipe.out, recipe, plan.reference, names, blocks, inputs, time.monotonic() - began, energy)


def _whole(plan: Plan, block: str, sums: Sums) -> Sums:
    """With Σ(θ-W)² = λᵀ (ΣΔΔᵀ) λ."""
    strengths = [k.strength.of(block) for k in plan.increments]
    sums.merged = sum(x * y * sums.dots[j][k] for j, x in enumerate(strengths) for k, y in enumerate(strengths))
    return sums


def _teller(
    listen: Callable[[Progress], None], tensors: Mapping[str, object], size: int, began: float
) -> Callable[[int, int], None]:
    def tell(done: int, written: int) -> None:
        listen(Progress(done, len(tensors), min(written, size), size, time.monotonic() - began))

    return tell


def _tensors(plan: Plan) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The output's tensors, in the order in which the anchor's pieces lie on disk."""
    if plan.recipe.form == "lora":
        return extract.tensors(plan)
    form: Layout = plan.recipe.form
    found = {}
    for piece in by_place(plan.anchor):
        name = key_of(piece, form)
        rows, *rest = plan.shapes[piece]
        found[name] = STORED[plan.recipe.dtype], (rows * len(pieces(name, form) or ()), *rest)
    return found


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let torch compute each operation in the thread that calls it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
