"""What was merged, for the written header: names, formats, strengths, and a digest of every input file."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import torch

from .. import __version__
from .plan import Plan
from .reading import WeightFile, bytes_of

RECORD = "clvr_merge"
"""Key of the record in the written header's metadata."""
PAGES, PAGE = 1024, 4096
"""A fingerprint's pages, evenly spread over the file, and their bytes."""
_BLOCK = 1 << 18
"""Bytes that are still in the core's own cache when they are hashed."""
_TELL = 0.2


@dataclass(frozen=True)
class Input:
    """`strength`: λ as text, '' for the base. `files`: name -> digest, as `Recipe.sha256` asks for."""

    name: str
    path: Path
    format: str
    strength: str
    bytes: int
    files: Mapping[str, str]

    @property
    def digest(self) -> str:
        """The only file's; of several files, SHA-256 of what sha256sum would print for them."""
        if len(self.files) == 1:
            return next(iter(self.files.values()))
        lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(self.files.items()))
        return hashlib.sha256(lines.encode()).hexdigest()


class Hashes:
    """A digest of every input file, computed beside the merge.

    A fingerprint, SHA-256 of the file's size, its header and PAGES pages, costs nothing and tells models apart.
    SHA-256 of all bytes, as hubs print it, takes a processor longer than the merge itself."""

    def __init__(self, plan: Plan) -> None:
        self._files = list(dict.fromkeys(file for source in plan.sources.values() for file in source.files))
        self._whole = plan.recipe.sha256
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(max(1, len(self._files)), "sha256")

    def __enter__(self) -> Hashes:
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
        digest, buffer = hashlib.sha256(), bytes_of(torch.empty(_BLOCK, dtype=torch.uint8))
        if not self._whole:
            digest.update(file.size.to_bytes(8, "little"))
        for start, stop in _blocks(file.size) if self._whole else _pages(file):
            if self._stopped.is_set():
                break
            view = buffer[: stop - start]
            file.read(start, view)
            digest.update(view)
        return digest.hexdigest()


def _blocks(size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + _BLOCK, size)) for start in range(0, size, _BLOCK))


def _pages(file: WeightFile) -> Iterator[tuple[int, int]]:
    begin = min((entry.start for entry in file.header.tensors.values()), default=file.size)
    yield from _blocks(begin)
    step = max(PAGE, (file.size - begin) // PAGES)
    yield from ((start, min(start + PAGE, file.size)) for start in range(begin, file.size, step))


def inputs_of(plan: Plan, digests: Mapping[WeightFile, str]) -> Iterator[Input]:
    strengths = {k.name: k.strength.describe() for k in plan.increments}
    for name, source in plan.sources.items():
        files = {file.path.name: digests.get(file, "0" * 64) for file in source.files}
        size = sum(file.size for file in source.files)
        yield Input(name, source.path, source.format, strengths.get(name, ""), size, files)


def record(plan: Plan, digests: Mapping[WeightFile, str]) -> dict[str, str]:
    """The written header's metadata, of the same length whatever the digests."""
    recipe = plan.recipe
    kind = "sha256" if recipe.sha256 else "fingerprint"
    inputs = [
        {"name": i.name, "file": i.path.name, "format": i.format, "lambda": i.strength, kind: i.digest}
        for i in inputs_of(plan, digests)
    ]
    told = {"version": __version__, "form": recipe.form, "dtype": recipe.dtype, "inputs": inputs}
    if recipe.form == "lora":
        told |= {"rank": recipe.rank, "relative_to": recipe.relative_to}
    return {"format": "pt", RECORD: json.dumps(told, ensure_ascii=True)}
