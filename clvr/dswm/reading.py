"""Reading pieces of safetensors files: bounded memory, several threads, no map of the file into memory."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import torch
from torch import Tensor

from ..errors import MissingFileError, WeightsError
from ..flux2 import headers

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I32": torch.int32,
    "I64": torch.int64,
}


class WeightFile:
    """A safetensors file whose header was checked. Each thread reads through a handle of its own.

    Raises MissingFileError and WeightsError, on opening and on reading."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header = headers.read(path)
        self._seen = _identity(path)
        self._local = threading.local()

    @property
    def size(self) -> int:
        """Bytes."""
        return self._seen[0]

    @property
    def inode(self) -> tuple[int, int]:
        return self._seen[2:]

    def read(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer with the file's bytes from `offset` on."""
        file = self._handle()
        try:
            file.seek(offset)
            filled = 0
            while filled < len(buffer):
                got = file.readinto(buffer[filled:])
                if not got:
                    raise WeightsError(
                        f"{self.path} became shorter while it was read.", "Try again when it is complete."
                    )
                filled += got
        except OSError as error:
            raise WeightsError(
                f"{self.path} cannot be read at byte {offset}: {error.strerror}.", headers.DAMAGED
            ) from error

    def tensor(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows [start, stop) of a tensor, all of them by default, in the file's own dtype and in new memory."""
        entry = self.header.tensors[name]
        if entry.dtype not in DTYPES:
            raise WeightsError(f"{self.path}: {name} is {entry.dtype}, which holds no weights.", headers.DAMAGED)
        shape = list(entry.shape)
        row = (entry.end - entry.start) // shape[0] if shape and shape[0] else entry.end - entry.start
        first = 0
        if shape:
            first, last, _ = slice(start, stop).indices(shape[0])
            shape[0] = max(0, last - first)
        rows = torch.empty(shape, dtype=DTYPES[entry.dtype])
        if rows.numel():
            self.read(entry.start + first * row, bytes_of(rows))
        return rows

    def check_unchanged(self) -> None:
        """Raises WeightsError where the file was replaced or written to since its header was read."""
        if _identity(self.path) != self._seen:
            raise WeightsError(f"{self.path} was changed while it was merged.", "Merge again when it is complete.")

    def _handle(self):  # noqa: ANN202
        if not hasattr(self._local, "file"):
            self._local.file = open(self.path, "rb", buffering=0)  # noqa: SIM115
        return self._local.file


def bytes_of(tensor: Tensor) -> memoryview:
    """A contiguous CPU tensor's own memory."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def _identity(path: Path) -> tuple[int, int, int, int]:
    try:
        found = os.stat(path)
    except OSError as error:
        raise MissingFileError(f"There is no file {path}.", "Check the path.") from error
    return found.st_size, found.st_mtime_ns, found.st_dev, found.st_ino
