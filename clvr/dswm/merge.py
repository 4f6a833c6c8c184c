"""The merge itself: pieces stream from the inputs through fixed buffers into the output, on a few threads.

Peak memory is the buffers', whatever the model's size; time is that of reading the inputs and writing the
output where the disk is not faster than about a GB a second and thread."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from .. import __version__
from ..errors import OutputError, WeightsError
from ..files import sync_folder
from ..flux2 import headers
from ..flux2.folder import CLASSES, PICKLES, WEIGHTS
from ..flux2.keymap import Layout, key_of, pieces
from . import extract
from .adapters import Adapter
from .arithmetic import NUMBERS, measure, measure_conflicts, measure_rounding, superpose
from .checkpoints import Checkpoint, Run
from .plan import Plan, open_plan, order
from .reading import DTYPES, WeightFile
from .recipe import Recipe, block_of
from .sums import Sums
from .writing import TensorFile, check_free, layout, staged

RUN, TASK = 1 << 18, 1 << 21
"""Weights that go through the buffers at once, so that they stay in a core's cache; weights of one task."""
SAMPLED_WHOLE = 1 << 16
"""Runs up to this long are measured whole for the rounding."""
RECORD = "clvr_merge"
"""Key of the record in the written header's metadata."""
_DTYPES = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}
_TELL = 0.2
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Progress:
    """bytes: of the output. seconds: since the merge began."""

    tensors_done: int
    tensors: int
    bytes_done: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Input:
    """`strength`: λ as text, '' for the base. `files`: name -> sha256."""

    name: str
    path: Path
    format: str
    strength: str
    bytes: int
    files: Mapping[str, str]

    @property
    def sha256(self) -> str:
        """Of the file as sha256sum prints it; of several files, that of their lines."""
        if len(self.files) == 1:
            return next(iter(self.files.values()))
        lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(self.files.items()))
        return hashlib.sha256(lines.encode()).hexdigest()


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


@dataclass(frozen=True)
class Task:
    """Weights [start, stop) of a piece, counted flat, and the byte of the output file where they go."""

    piece: str
    start: int
    stop: int
    offset: int


def merge(recipe: Recipe, listen: Callable[[Progress], None] = lambda _: None) -> Outcome:
    """Carry out a recipe. `listen` is called a few times a second; what it raises ends the merge, and nothing
    is left behind. Raises SettingError, MissingFileError, WeightsError and OutputError."""
    began = time.monotonic()
    plan = open_plan(recipe)
    _refuse_foreign_folder(recipe)
    file = _tensors(plan)
    places = _places(plan)
    size = layout(file, _record(plan, {}))[2] + sum(path.stat().st_size for path in places.copies)
    check_free(recipe.out, size, recipe.overwrite)
    energy = None
    with staged(recipe.out, size, recipe.overwrite) as stage, _one_thread_each():
        weights = places.begin(stage, plan)
        writer = TensorFile(weights, file, _record(plan, {}))
        with contextlib.closing(writer), _Hashes(plan) as hashes:
            work = _Work(plan, writer)
            tell = _teller(listen, file, writer.size, began)
            if recipe.form == "lora":
                energy = extract.fill(plan, writer, tell)
            else:
                work.run(tell)
            digests = hashes.wait(lambda: tell(len(file), writer.size))
            for source in plan.sources.values():
                for read in source.files:
                    read.check_unchanged()
            writer.finish(_record(plan, digests))
        places.finish(stage)
    blocks = {name: _whole(plan, name, work.blocks[name]) for name in sorted(work.blocks, key=order)}
    names = tuple(k.name for k in plan.increments)
    inputs = tuple(_inputs(plan, digests))
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
    for piece in _by_place(plan.anchor):
        name = key_of(piece, form)
        rows, *rest = plan.shapes[piece]
        found[name] = _DTYPES[plan.recipe.dtype], (rows * len(pieces(name, form) or ()), *rest)
    return found


def _by_place(checkpoint: Checkpoint) -> list[str]:
    runs = checkpoint.runs
    return sorted(runs, key=lambda piece: (str(runs[piece].file.path), runs[piece].offset))


class _Work:
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
        count = self._plan.recipe.threads or min(4, os.cpu_count() or 1)
        with ThreadPoolExecutor(count, "merge") as pool:
            try:
                self._watch({pool.submit(self._do, task) for task in tasks}, tell)
            except BaseException:
                self._stopped.set()
                pool.shutdown(cancel_futures=True)
                raise

    def _watch(self, running: set[Future[None]], tell: Callable[[int, int], None]) -> None:
        while running:
            done, running = wait(running, timeout=_TELL, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
            tell(sum(not left for left in self._left.values()), self._written)

    def _tasks(self) -> Iterator[Task]:
        """Pieces cut into tasks of whole rows, where rows are not longer than a task."""
        form: Layout = "diffusers" if self._plan.recipe.form == "diffusers" else "bfl"
        for piece in _by_place(self._plan.anchor):
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
        self._start, self._total, self._base, self._scratch = torch.empty(4, RUN)
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
        total = self._total[:count].copy_(start)
        added = {k: d for k, d in deltas.items() if self._plan.increments[k].name not in self._plan.implied}
        superpose(total, added, self._plan.strengths(part.piece), self._scratch[:count])
        rounded = self._rounded[:count].copy_(total)
        self._check(part, base, deltas, total, rounded, sums)
        self._out.write(part.offset, memoryview(rounded.view(torch.uint8).numpy()))

    def _read(self, run: Run, part: Task, into: Tensor) -> Tensor:
        count = part.stop - part.start
        raw = self._raw[: count * run.itemsize]
        run.file.read(run.offset + part.start * run.itemsize, memoryview(raw.numpy()))
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

    def _check(
        self, part: Task, base: Tensor, deltas: Mapping[int, Tensor], total: Tensor, rounded: Tensor, sums: Sums
    ) -> None:
        recipe = self._plan.recipe
        finite = measure(sums, base, deltas) if recipe.diagnose else torch.dot(total, total).isfinite().item()
        if not finite or (recipe.dtype == "fp16" and not rounded.isfinite().all()):
            self._count_nonfinite(part, base, deltas, rounded, sums)
        if not recipe.diagnose or not finite:
            return
        strengths = self._plan.strengths(part.piece, implied=True)
        if recipe.conflicts:
            measure_conflicts(sums, deltas)
        count = total.numel()
        taken = slice(0, count if count <= SAMPLED_WHOLE else count // recipe.sample)
        some = {k: delta[taken] for k, delta in deltas.items() if strengths[k]}
        measure_rounding(sums, total[taken], rounded[taken], some, strengths)

    def _count_nonfinite(
        self, part: Task, base: Tensor, deltas: Mapping[int, Tensor], rounded: Tensor, sums: Sums
    ) -> None:
        counted = {0: base, **{k + 1: delta for k, delta in deltas.items()}, len(sums.nonfinite) - 1: rounded}
        names = [self._plan.reference, *(k.name for k in self._plan.increments), "output"]
        for i, values in counted.items():
            bad = int((~values.isfinite()).count_nonzero())
            sums.nonfinite[i] += bad
            if bad and not self._plan.recipe.allow_nonfinite:
                raise _nonfinite(names[i], key_of(part.piece, "bfl"), bad, self._plan)


def _nonfinite(name: str, key: str, bad: int, plan: Plan) -> WeightsError:
    if name == "output":
        return WeightsError(
            f"{bad} weights of {key} do not fit into {plan.recipe.dtype}.", "Write bf16 or fp32: --dtype bf16"
        )
    return WeightsError(
        f"{key} of the {name} model {plan.sources[name].path} holds {bad} NaN or Inf.",
        "The file is damaged. --allow-nonfinite merges it all the same and counts them.",
    )


class _Hashes:
    """SHA-256 of every input file, computed beside the merge while the file's bytes are in memory anyway."""

    def __init__(self, plan: Plan) -> None:
        self._files = list(dict.fromkeys(file for source in plan.sources.values() for file in source.files))
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(max(1, len(self._files)), "sha256")

    def __enter__(self) -> _Hashes:
        self._futures = {file: self._pool.submit(self._hash, file) for file in self._files}
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._pool.shutdown()

    def wait(self, tell: Callable[[], None]) -> dict[WeightFile, str]:
        running = set(self._futures.values())
        while running:
            _, running = wait(running, timeout=_TELL)
            tell()
        return {file: future.result() for file, future in self._futures.items()}

    def _hash(self, file: WeightFile) -> str:
        digest, buffer = hashlib.sha256(), bytearray(_BLOCK)
        for start in range(0, file.size, _BLOCK):
            if self._stopped.is_set():
                break
            view = memoryview(buffer)[: min(_BLOCK, file.size - start)]
            file.read(start, view)
            digest.update(view)
        return digest.hexdigest()


def _inputs(plan: Plan, digests: Mapping[WeightFile, str]) -> Iterator[Input]:
    strengths = {k.name: k.strength.describe() for k in plan.increments}
    for name, source in plan.sources.items():
        files = {file.path.name: digests.get(file, "0" * 64) for file in source.files}
        size = sum(file.size for file in source.files)
        yield Input(name, source.path, source.format, strengths.get(name, ""), size, files)


def _record(plan: Plan, digests: Mapping[WeightFile, str]) -> dict[str, str]:
    """The written header's metadata, of the same length whatever the digests."""
    inputs = [
        {"name": i.name, "file": i.path.name, "format": i.format, "lambda": i.strength, "sha256": i.sha256}
        for i in _inputs(plan, digests)
    ]
    recipe = plan.recipe
    record = {"version": __version__, "form": recipe.form, "dtype": recipe.dtype, "inputs": inputs}
    if recipe.form == "lora":
        record |= {"rank": recipe.rank, "relative_to": recipe.relative_to}
    return {"format": "pt", RECORD: json.dumps(record, ensure_ascii=True)}


@dataclass(frozen=True)
class _Places:
    """What the output is made of: one file, a transformer's folder, or a whole pipeline's."""

    folder: bool
    pipeline: Path | None
    copies: tuple[Path, ...]

    def begin(self, stage: Path, plan: Plan) -> Path:
        """Make the folders and small files under `stage`; where the weights go."""
        if not self.folder:
            return stage
        part = stage / "transformer" if self.pipeline else stage
        part.mkdir(parents=True)
        (part / "config.json").write_text(json.dumps(plan.config(), indent=2) + "\n", "utf-8")
        for path in self.copies:
            assert self.pipeline
            target = stage / path.relative_to(self.pipeline)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        return part / WEIGHTS["transformer"]

    def finish(self, stage: Path) -> None:
        """Flush what was copied to disk."""
        if not self.folder:
            return
        for path in sorted(stage.rglob("*")):
            if path.is_dir():
                sync_folder(path)
            elif path.suffix != ".safetensors" or self.copies:
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        sync_folder(stage)


def _places(plan: Plan) -> _Places:
    folder = plan.recipe.form == "diffusers"
    pipeline = plan.pipeline if folder else None
    if pipeline is None:
        return _Places(folder, None, ())
    kept = [path for path in pipeline.iterdir() if path.suffix in (".json", ".md") or path.name.startswith("LICENSE")]
    for part in CLASSES.keys() - {"transformer"}:
        kept += [path for path in sorted((pipeline / part).rglob("*")) if path.suffix.lower() not in PICKLES]
    return _Places(True, pipeline, tuple(path for path in kept if path.is_file()))


def _refuse_foreign_folder(recipe: Recipe) -> None:
    """A folder is replaced only by a folder, and only where it is a merge's output itself."""
    out = recipe.out
    if recipe.form != "diffusers" and out.is_dir():
        raise OutputError(f"{out} is a folder.", "Name a file: the one that ComfyUI is to load.")
    if recipe.form == "diffusers" and out.is_file():
        raise OutputError(f"{out} is a file.", "Name a folder for the diffusers form.")
    if recipe.form == "diffusers" and out.is_dir() and recipe.overwrite:
        weights = [out / WEIGHTS["transformer"], out / "transformer" / WEIGHTS["transformer"]]
        if not any(path.exists() and RECORD in headers.read(path).metadata for path in weights):
            raise OutputError(f"{out} is a folder that no merge wrote.", "Name another output.")


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let torch compute each operation in the thread that calls it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
