"""The merged increment as a LoRA of a given rank, for a base or a distilled model that stays as it is.

Halko, Martinsson, Tropp: Finding structure with randomness (2011), algorithms 4.4 and 5.1, with rows that
stream from the files: a weight is never whole in memory, its factors are. The names are ComfyUI's, which
scales a LoRA without an alpha by 1, as diffusers does."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import SettingError, WeightsError
from ..flux2.keymap import key_of, pieces
from .adapters import Adapter
from .arithmetic import NUMBERS, STORED
from .plan import Plan
from .reading import bytes_of
from .recipe import block_of
from .writing import TensorFile

OVERSAMPLING, MOST_PASSES = 16, 12
"""Dimensions beyond the rank; passes over a weight after which no better subspace is looked for."""
GAIN, ALL = 2e-3, 1 - 1e-6
"""A pass that adds less than this to the energy in the subspace is the last; so is one that finds all of it."""
RUN = 1 << 19
"""Weights that a thread has in memory at once: 2 MB of fp32, and a few times that to compute them."""
_PREFIX = "diffusion_model."
_SEED = 2011
_TELL = 0.2

Tell = Callable[[int, int], None]
T = TypeVar("T")


def tensors(plan: Plan) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The LoRA's tensors: matrices as lora_A [rank, in] and lora_B [out, rank], norms as they changed.

    Weights that no increment touches have none. Raises SettingError for a rank or a reference that cannot be."""
    _check(plan)
    dtype = STORED[plan.recipe.dtype]
    return {name: (dtype, shape) for change in _changes(plan) for name, shape in change.tensors()}


def fill(plan: Plan, writer: TensorFile, tell: Tell) -> float:
    """Compute and write all of `tensors(plan)`; the share of the increment's energy Σ‖M‖² that they hold.

    tell(tensors done, bytes written) is called a few times a second, in this thread. Raises WeightsError for
    NaN or Inf."""
    kept = total = 0.0
    out = _Out(plan, writer, tell)
    with _Threads(plan.recipe.threads or min(3, os.cpu_count() or 1), out.beat) as threads:
        for change in _changes(plan):
            *found, retained, energy = _whole(change) if len(change.shape) == 1 else _factors(change, threads)
            kept, total = kept + retained, total + energy
            for (name, _), tensor in zip(change.tensors(), found, strict=True):
                out.write(name, tensor)
    return min(1.0, kept / total) if total else 1.0


@dataclass(frozen=True)
class _Change:
    """M = Σ f_k Δ_k in one BFL tensor, `shape` [out, in] or [width]."""

    plan: Plan
    name: str
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        return min(self.plan.recipe.rank, *self.shape)

    @property
    def module(self) -> str:
        return _PREFIX + self.name.removesuffix(".weight").removesuffix(".scale")

    def tensors(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """The LoRA's names and shapes for it."""
        if len(self.shape) == 1:
            return ((f"{self.module}.diff", self.shape),)
        return (
            (f"{self.module}.lora_A.weight", (self.rank, self.shape[1])),
            (f"{self.module}.lora_B.weight", (self.shape[0], self.rank)),
        )

    def runs(self) -> Iterator[tuple[int, Callable[[], Tensor]]]:
        """The place of each run's first row, and what reads the run, fp32."""
        above = 0
        step = max(1, RUN // math.prod(self.shape[1:]))
        for piece in pieces(self.name, "bfl") or ():
            rows = self.plan.shapes[piece][0]
            for start in range(0, rows, step):
                yield above + start, partial(self._rows, piece, start, min(start + step, rows))
            above += rows

    def _rows(self, piece: str, start: int, stop: int) -> Tensor:
        return self.plan.added(piece, start, stop, _strengths(self.plan, piece))


class _Out:
    """The file, and who is told of it."""

    def __init__(self, plan: Plan, writer: TensorFile, tell: Tell) -> None:
        self._dtype = plan.recipe.dtype
        self._writer = writer
        self._tell = tell
        self._told = -math.inf
        self._done = self._written = 0

    def beat(self) -> None:
        if time.monotonic() - self._told > _TELL:
            self._tell(self._done, self._written)
            self._told = time.monotonic()

    def write(self, name: str, tensor: Tensor) -> None:
        rounded = tensor.to(NUMBERS[self._dtype]).contiguous()
        if not rounded.isfinite().all():
            raise WeightsError(f"The increment of {name} does not fit into {self._dtype}.", "Write bf16 or fp32.")
        data = bytes_of(rounded)
        self._writer.write(self._writer.offsets[name], data)
        self._done, self._written = self._done + 1, self._written + len(data)
        self.beat()


class _Threads:
    """Threads that work on runs of rows. What they find comes in the order of the rows, so that sums of it do
    not depend on how many there are."""

    def __init__(self, count: int, beat: Callable[[], None]) -> None:
        self._count = count
        self._beat = beat
        self._pool = ThreadPoolExecutor(count, "extract")

    def __enter__(self) -> _Threads:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def map(self, work: Callable[[int, Tensor], T], change: _Change) -> Iterator[T]:
        """work(first row, rows) of each run."""
        running: deque[Future[T]] = deque()
        for start, read in change.runs():
            if len(running) == self._count:
                yield self._result(running.popleft())
            running.append(self._pool.submit(lambda start, read: work(start, read()), start, read))
        while running:
            yield self._result(running.popleft())

    def _result(self, future: Future[T]) -> T:
        while not future.done():
            wait([future], _TELL)
            self._beat()
        return future.result()


def _whole(change: _Change) -> tuple[Tensor, float, float]:
    """A norm's M, and its energy twice."""
    found = torch.cat([read() for _, read in change.runs()])
    energy = _energy(found)
    return found, energy, energy


def _factors(change: _Change, threads: _Threads) -> tuple[Tensor, Tensor, float, float]:
    """A [rank, in] and B [out, rank] with BA the best approximation of M that was found, ‖BA‖² and ‖M‖².

    Exact where M's own rank is not above `rank`: M is projected on the range of M Ω. Both factors have the
    singular values' roots, so that neither is lost to a coarse dtype."""
    rank = change.rank
    left, energy = _range(change, threads)
    if not math.isfinite(energy):
        raise WeightsError(f"The increment of {change.name} holds NaN or Inf.", "One of the inputs is damaged.")
    right = torch.zeros(change.shape[1], left.shape[1])
    for part in threads.map(lambda start, rows: rows.mT @ left[start : start + len(rows)], change):
        right += part
    right, core = torch.linalg.qr(right)
    u, values, v = torch.linalg.svd(core.mT)
    values = values[:rank]
    root = values.sqrt()
    return (root[:, None] * v[:rank]) @ right.mT, left @ (u[:, :rank] * root), values.dot(values).item(), energy


def _range(change: _Change, threads: _Threads) -> tuple[Tensor, float]:
    """Orthonormal columns [out, rank + some] that hold M's strongest directions, and ‖M‖².

    Each pass takes a basis V to M V and MᵀM V; the first basis is random."""
    height, width = change.shape
    span = min(change.rank + OVERSAMPLING, height, width)
    image = torch.randn(width, span, generator=torch.Generator().manual_seed(_SEED))
    left = torch.empty(height, span)
    captured = 0.0
    for _ in range(MOST_PASSES):
        basis, before = torch.linalg.qr(image).Q, captured
        image, captured, energy = torch.zeros(width, span), 0.0, 0.0

        def work(start: int, rows: Tensor, basis: Tensor = basis) -> tuple[Tensor, float, float]:
            found = torch.mm(rows, basis, out=left[start : start + len(rows)])
            return rows.mT @ found, _energy(found), _energy(rows)

        for part, inside, all_of_it in threads.map(work, change):
            image += part
            captured, energy = captured + inside, energy + all_of_it
        if not (captured < ALL * energy and captured - before > GAIN * captured):
            break
    return torch.linalg.qr(left).Q, energy


def _energy(values: Tensor) -> float:
    return torch.dot(values.flatten(), values.flatten()).item()


def _changes(plan: Plan) -> list[_Change]:
    names: dict[str, bool] = {}
    for piece in plan.shapes:
        name = key_of(piece, "bfl")
        names[name] = names.get(name, False) or _touched(plan, piece)
    found = []
    for name in (name for name, touched in names.items() if touched):
        rows, *rest = plan.shapes[f"{name}:0"]
        found.append(_Change(plan, name, (rows * len(pieces(name, "bfl") or ()), *rest)))
    return found


def _touched(plan: Plan, piece: str) -> bool:
    """Whether an increment may change the piece."""
    return any(
        factor and (not isinstance(increment.source, Adapter) or piece in increment.source.updates)
        for increment, factor in zip(plan.increments, _strengths(plan, piece), strict=True)
    )


def _strengths(plan: Plan, piece: str) -> list[float]:
    """θ - base = Σ λ_k Δ_k; in θ - distilled the distilled increment counts once less."""
    less = plan.recipe.relative_to == "distilled"
    block = block_of(piece)
    return [k.strength.of(block) - (less and k.name == "distilled") for k in plan.increments]


def _check(plan: Plan) -> None:
    recipe = plan.recipe
    if recipe.rank < 1:
        raise SettingError(f"A LoRA of rank {recipe.rank} holds nothing.", "Give a rank from 1: --rank 64")
    if recipe.relative_to == "base" and plan.base is None:
        raise SettingError(
            "The LoRA is to be relative to the base, which is not given.",
            "Give --base, or say --relative-to distilled.",
        )
    if recipe.relative_to == "distilled" and recipe.distilled is None:
        raise SettingError(
            "The LoRA is to be relative to the distilled model, which is not given.",
            "Give --distilled, or say --relative-to base.",
        )
    if not any(_touched(plan, piece) for piece in plan.shapes):
        raise SettingError(
            f"Nothing is added to the {recipe.relative_to} model: the LoRA would be empty.",
            "Give --align, or another --relative-to.",
        )
