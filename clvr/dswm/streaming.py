"""Pieces stream from the inputs through fixed buffers into the output, on a few threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import WeightsError
from ..flux2.keymap import Layout, key_of, pieces
from .adapters import Adapter
from .arithmetic import NUMBERS, measure, measure_conflicts, measure_rounding, superpose
from .checkpoints import Checkpoint, Run
from .plan import Plan
from .reading import DTYPES, bytes_of
from .recipe import block_of
from .sums import Sums
from .writing import TensorFile

RUN, TASK = 1 << 19, 1 << 21
"""Weights that go through the buffers at once: fewer, and the threads wait for the interpreter; more, and the
buffers leave the cache. Weights of one task."""
SAMPLED_WHOLE, WINDOW = 1 << 16, 1 << 14
"""Runs up to this long are measured whole for the rounding; of longer ones, so many weights of every few runs:
the calls cost more than the weights."""
TELL = 0.2
"""Seconds between two calls of the listener."""


@dataclass(frozen=True)
class Task:
    """Weights [start, stop) of a piece, counted flat, and the byte of the output file where they go."""

    piece: str
    start: int
    stop: int
    offset: int


class Stream:
    """The tasks of one merge, and what their threads measured."""

    def __init__(self, plan: Plan, out: TensorFile) -> None:
        self.blocks: dict[str, Sums] = {}
        self._plan = plan
        self._out = out
        self._width = torch.empty(0, dtype=NUMBERS[plan.recipe.dtype]).element_size()
        self._lock = threading.Lock()
        self._local = threading.local()
        self._stopped = threading.Event()
        self._written = 0
        self._left: dict[str, int] = {}

    def run(self, tell: Callable[[int, int], None]) -> None:
        tasks = list(self._tasks())
        for task in tasks:
            name = key_of(task.piece, "bfl")
            self._left[name] = self._left.get(name, 0) + 1
        with ThreadPoolExecutor(self._plan.recipe.threads or min(4, os.cpu_count() or 1), "merge") as pool:
            try:
                self._watch({pool.submit(self._do, task) for task in tasks}, tell)
            except BaseException:
                self._stopped.set()
                pool.shutdown(cancel_futures=True)
                raise

    def _watch(self, running: set[Future[None]], tell: Callable[[int, int], None]) -> None:
        while running:
            done, running = wait(running, timeout=TELL, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
            tell(sum(not left for left in self._left.values()), self._written)

    def _tasks(self) -> Iterator[Task]:
        """Pieces cut into tasks of whole rows, where rows are not longer than a task."""
        form: Layout = "diffusers" if self._plan.recipe.form == "diffusers" else "bfl"
        for piece in by_place(self._plan.anchor):
            run = self._plan.anchor.runs[piece]
            name = key_of(piece, form)
            place = (pieces(name, form) or ()).index(piece)
            begin = self._out.offsets[name] + place * run.elements * self._width
            row = run.elements // run.shape[0] if run.shape and run.shape[0] else 1
            step = TASK // row * row or TASK
            for start in range(0, run.elements, step):
                yield Task(piece, start, min(start + step, run.elements), begin + start * self._width)

    def _do(self, task: Task) -> None:
        buffers = self._buffers()
        updates = self._updates(task)
        sums = Sums(len(self._plan.increments))
        for start in range(task.start, task.stop, RUN):
            if self._stopped.is_set():
                return
            part = Task(
                task.piece, start, min(start + RUN, task.stop), task.offset + (start - task.start) * self._width
            )
            near = {i: rows[start - task.start : part.stop - task.start] for i, rows in updates.items()}
            buffers.merge(part, near, sums)
        with self._lock:
            block = block_of(task.piece)
            if self._plan.recipe.diagnose:
                self.blocks[block] = self.blocks[block].__iadd__(sums) if block in self.blocks else sums
            self._written += (task.stop - task.start) * self._width
            self._left[key_of(task.piece, "bfl")] -= 1

    def _updates(self, task: Task) -> dict[int, Tensor]:
        """What the adapters add to the task's rows, flat and fp32."""
        found: dict[int, Tensor] = {}
        shape = self._plan.shapes[task.piece]
        row = max(1, self._plan.anchor.runs[task.piece].elements // (shape[0] if shape else 1))
        for i, increment in enumerate(self._plan.increments):
            updates = increment.source.updates.get(task.piece, ()) if isinstance(increment.source, Adapter) else ()
            for update in updates:
                first, last = task.start // row, -(-task.stop // row)
                rows = update.rows(first, last).flatten()[task.start - first * row :][: task.stop - task.start]
                found[i] = found[i] + rows if i in found else rows
        return found

    def _buffers(self) -> _Buffers:
        if not hasattr(self._local, "buffers"):
            self._local.buffers = _Buffers(self._plan, self._out)
        return self._local.buffers


class _Buffers:
    """One thread's memory: a run of every input and of the output."""

    def __init__(self, plan: Plan, out: TensorFile) -> None:
        recipe = plan.recipe
        self._plan = plan
        self._out = out
        self._raw = torch.empty(RUN * 8, dtype=torch.uint8)
        self._start, self._base, self._scratch = torch.empty(3, RUN)
        self._deltas = torch.empty(len(plan.increments), RUN)
        self._rounded = torch.empty(RUN, dtype=NUMBERS[recipe.dtype])
        self._diagnosed = plan.base is not None and plan.base is not plan.anchor and recipe.diagnose

    def merge(self, part: Task, updates: Mapping[int, Tensor], sums: Sums) -> None:
        """Merge and write the part, whose adapters add `updates`; add to `sums` what is asked for."""
        count = part.stop - part.start
        start = self._read(self._plan.anchor.runs[part.piece], part, self._start[:count])
        base = start
        if self._diagnosed and self._plan.base:
            base = self._read(self._plan.base.runs[part.piece], part, self._base[:count])
        deltas = self._increments(part, start, base, updates)
        finite = not self._plan.recipe.diagnose or measure(sums, base, deltas)
        added = {k: d for k, d in deltas.items() if self._plan.increments[k].name not in self._plan.implied}
        total = superpose(start, added, self._plan.strengths(part.piece), self._scratch[:count])
        rounded = self._rounded[:count].copy_(total)
        if finite and self._is_finite(total, rounded):
            self._measure(part, deltas, total, rounded, sums)
        else:
            self._count_nonfinite(part, deltas, rounded, sums)
        self._out.write(part.offset, bytes_of(rounded))

    def _read(self, run: Run, part: Task, into: Tensor) -> Tensor:
        count = part.stop - part.start
        raw = self._raw[: count * run.itemsize]
        run.file.read(run.offset + part.start * run.itemsize, bytes_of(raw))
        into.copy_(raw.view(DTYPES[run.dtype]))
        return into.mul_(run.scale) if run.scale != 1.0 else into

    def _increments(self, part: Task, start: Tensor, base: Tensor, updates: Mapping[int, Tensor]) -> dict[int, Tensor]:
        found = {}
        for k, increment in enumerate(self._plan.increments):
            into = self._deltas[k, : part.stop - part.start]
            if increment.name in self._plan.implied:
                if self._diagnosed:
                    found[k] = torch.sub(start, base, out=into)
            elif isinstance(increment.source, Checkpoint):
                found[k] = self._read(increment.source.runs[part.piece], part, into).sub_(base)
            elif k in updates:
                found[k] = updates[k]
        return found

    def _is_finite(self, total: Tensor, rounded: Tensor) -> bool:
        """Where the inputs were measured, only fp16 can still overflow."""
        recipe = self._plan.recipe
        if not recipe.diagnose and not torch.dot(total, total).isfinite():
            return False
        return recipe.dtype != "fp16" or bool(rounded.isfinite().all())

    def _measure(self, part: Task, deltas: Mapping[int, Tensor], total: Tensor, rounded: Tensor, sums: Sums) -> None:
        recipe = self._plan.recipe
        if recipe.conflicts:
            measure_conflicts(sums, deltas)
        taken = _sampled(part, recipe.sample) if recipe.diagnose else 0
        if taken:
            strengths = self._plan.strengths(part.piece, implied=True)
            some = {k: delta[:taken] for k, delta in deltas.items() if strengths[k]}
            measure_rounding(sums, total[:taken], rounded[:taken], some, strengths)

    def _count_nonfinite(self, part: Task, deltas: Mapping[int, Tensor], rounded: Tensor, sums: Sums) -> None:
        plan = self._plan
        start = self._read(plan.anchor.runs[part.piece], part, self._start[: part.stop - part.start])
        base = self._base[: part.stop - part.start] if self._diagnosed else start
        counted = {0: base, **{k + 1: delta for k, delta in deltas.items()}, len(sums.nonfinite) - 1: rounded}
        names = [plan.reference, *(k.name for k in plan.increments), "output"]
        for i, values in counted.items():
            bad = int((~values.isfinite()).count_nonzero())
            sums.nonfinite[i] += bad
            if bad and not plan.recipe.allow_nonfinite:
                raise _nonfinite(names[i], key_of(part.piece, "bfl"), bad, plan)


def _nonfinite(name: str, key: str, bad: int, plan: Plan) -> WeightsError:
    if name == "output":
        return WeightsError(
            f"{bad} weights of {key} do not fit into {plan.recipe.dtype}.", "Write bf16 or fp32: --dtype bf16"
        )
    return WeightsError(
        f"{key} of the {name} model {plan.sources[name].path} holds {bad} NaN or Inf.",
        "The file is damaged. --allow-nonfinite merges it all the same and counts them.",
    )


def by_place(checkpoint: Checkpoint) -> list[str]:
    runs = checkpoint.runs
    return sorted(runs, key=lambda piece: (str(runs[piece].file.path), runs[piece].offset))


def _sampled(part: Task, sample: int) -> int:
    """How many of a run's first weights are looked at for the rounding: one in `sample` of all runs together."""
    count = part.stop - part.start
    if count <= SAMPLED_WHOLE:
        return count
    window = max(WINDOW, RUN // sample)
    return 0 if part.start // RUN % max(1, window * sample // RUN) else min(count, window)
