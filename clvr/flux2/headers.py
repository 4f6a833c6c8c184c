"""Reading a safetensors header without trusting it, and without loading a tensor.

Format: 8 bytes little-endian header length n, n bytes of JSON, then the tensors' bytes without gaps
(https://github.com/huggingface/safetensors#format)."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import MissingFileError, WeightsError

LONGEST = 100_000_000
"""Bytes of header that safetensors itself accepts."""
MOST_DIMENSIONS = 16

BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8}
BITS |= {"F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16}
BITS |= {"I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64}

DAMAGED = "The file is damaged, or no safetensors file: download or export it again."


@dataclass(frozen=True)
class Entry:
    """One tensor: its dtype as safetensors names it, and its bytes [start, end) in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self.tensors.items()}


def read(path: Path) -> Header:
    """The header, every offset checked against the file's size.

    Raises MissingFileError, and WeightsError for a file that is truncated, hostile or of another format."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 10 or length > min(LONGEST, size - 8):
                raise WeightsError(
                    f"{path} has {size} bytes, too few for the {length}-byte header that it announces.",
                    DAMAGED,
                )
            text = file.read(length)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise MissingFileError(f"There is no file {path}.", "Check the path.") from error
    try:
        return _parse(text, 8 + length, size)
    except (_Fault, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: {error}.", DAMAGED) from error


class _Fault(Exception):
    """What is wrong with a header, without the file's name."""


def _parse(text: bytes, base: int, size: int) -> Header:
    if not text.startswith(b"{"):
        raise _Fault("the header is not JSON")
    data = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates)
    metadata = data.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _Fault("__metadata__ is not a map of texts")
    tensors = {name: _entry(name, value, base) for name, value in data.items()}
    _check_layout(tensors, base, size)
    return Header(tensors, metadata)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise _Fault(f"the header names {twice!r:.80} twice")
    return found


def _entry(name: str, value: Any, base: int) -> Entry:  # noqa: ANN401
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _Fault(f"{name!r:.80} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _Fault(f"{name!r:.80} has the unknown dtype {dtype!r:.40}")
    if not _are_naturals(shape) or len(shape) > MOST_DIMENSIONS:
        raise _Fault(f"{name!r:.80} has the impossible shape {shape!r:.80}")
    if not _are_naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _Fault(f"{name!r:.80} has the impossible offsets {offsets!r:.80}")
    bits = math.prod(shape) * BITS[dtype]
    if bits != 8 * (offsets[1] - offsets[0]):
        raise _Fault(f"{name!r:.80} is {dtype} {shape!r:.80}, which does not take {offsets[1] - offsets[0]} bytes")
    return Entry(dtype, tuple(shape), base + offsets[0], base + offsets[1])


def _are_naturals(values: Any) -> bool:  # noqa: ANN401
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def _check_layout(tensors: Mapping[str, Entry], base: int, size: int) -> None:
    """Tensors lie side by side from the header to the end of the file."""
    end = base
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != end:
            raise _Fault(f"{name!r:.80} {'overlaps the tensor' if entry.start < end else 'leaves a gap'} before it")
        end = entry.end
    if end > size:
        raise _Fault(f"the file is truncated: {size} of {end} bytes are there")
    if end < size:
        raise _Fault(f"{size - end} bytes follow the last tensor")
