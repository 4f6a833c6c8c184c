"""Writing a safetensors file out of order, in a place that becomes the output only when it is complete."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import secrets
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from ..errors import ClvrError, OutputError
from ..files import lock, sync_folder
from ..flux2.headers import BITS

LOCK, OLD = "lock", "old"
_FLUSH = 0.1
"""Seconds between two flushes."""
_SPARE = 16 << 20
"""Bytes kept free for the file system's own needs."""


@contextlib.contextmanager
def staged(out: Path, size: int, overwrite: bool = False) -> Iterator[Path]:
    """A path beside `out` to write a file or a folder to; it takes `out`'s place when the block ends well.

    After a crash `out` is what it was, or a folder that was being replaced is put back by the next call, which
    also removes what the crash left. size: bytes that will be written.
    Raises OutputError for a name that is taken, another merge into it, or too little space."""
    out = out.absolute()
    made = [folder for folder in out.parents if not folder.exists()]
    place = out.with_name(f".{out.name}.partial-{secrets.token_hex(4)}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _clean(out)
        check_free(out, size, overwrite)
        place.mkdir()
        with open(place / LOCK, "wb") as held:
            lock(held)
            yield place / "weights"
            _replace(place, out)
    except OSError as error:
        raise error if isinstance(error, ClvrError) else cannot_write(out, error) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)
        if not out.exists():
            _remove_empty(made)
    sync_folder(out.parent)


def _remove_empty(folders: Iterable[Path]) -> None:
    """The innermost first."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def check_free(out: Path, size: int, overwrite: bool) -> None:
    """Raises OutputError where `out` may not be written, or its disk has less than `size` bytes free."""
    if out.exists() and not overwrite:
        raise OutputError(f"{out} is already there.", "Name another output, or allow to overwrite it (--overwrite).")
    parent = next(p for p in (out.absolute().parent, *out.absolute().parents) if p.exists())
    free = shutil.disk_usage(parent).free
    if free < size + _SPARE:
        raise OutputError(
            f"{out} will take {size / 1e9:.2f} GB, and {parent} has {free / 1e9:.2f} GB free.",
            "Free some space, or write to another disk.",
        )


def cannot_write(out: Path, error: OSError) -> OutputError:
    remedy = "Make the folder writable."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "The disk is full: free some space, or write to another disk."
    return OutputError(f"Cannot write {out}: {error.strerror or error}.", f"{remedy} Nothing was changed.")


def _clean(out: Path) -> None:
    """Remove what interrupted runs left, and put back the folder that one of them was replacing."""
    for place in out.parent.glob(f".{_escaped(out.name)}.partial-????????"):
        try:
            held = open(place / LOCK, "ab")  # noqa: SIM115
        except OSError:
            shutil.rmtree(place, ignore_errors=True)
            continue
        with held:
            if not lock(held):
                raise OutputError(f"Another merge is writing {out}.", "Wait until it is done.")
            if (place / OLD).exists() and not out.exists():
                os.rename(place / OLD, out)
        shutil.rmtree(place, ignore_errors=True)


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _replace(place: Path, out: Path) -> None:
    if not out.is_dir():
        os.replace(place / "weights", out)
        return
    os.rename(out, place / OLD)
    try:
        os.rename(place / "weights", out)
    except OSError:
        os.rename(place / OLD, out)
        raise


class TensorFile:
    """A safetensors file of known tensors, each written in any order and from any thread.

    tensors: name -> (safetensors dtype, shape). The metadata may be replaced at the end by one of equal length."""

    def __init__(
        self, path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]
    ) -> None:
        self.path = path
        self._tensors = tensors
        head, self.offsets, self.size = layout(tensors, metadata)
        self._length = len(head)
        self._local = threading.local()
        self._handles: list[BinaryIO] = []
        with open(path, "xb") as file:
            _allocate(file, self.size)
            file.write(head)

    def write(self, offset: int, data: memoryview) -> None:
        """Write at a byte of the file; `offsets` tells where each tensor begins."""
        file = self._handle()
        file.seek(offset)
        while data:
            data = data[file.write(data) :]

    @contextlib.contextmanager
    def flushing(self) -> Iterator[None]:
        """Flush to disk, all the while, what the block writes: the disk works beside it."""
        done, failed = threading.Event(), list[OSError]()

        def flush() -> None:
            try:
                with open(self.path, "rb") as file:
                    while not done.wait(_FLUSH):
                        os.fsync(file.fileno())
            except OSError as error:
                failed.append(error)

        # A daemon, because Ctrl-C may come between any two lines of this, and the end of a process waits for others.
        thread = threading.Thread(target=flush, name="flush", daemon=True)
        try:
            thread.start()
            yield
        finally:
            done.set()
            if thread.ident is not None:
                thread.join()
        if failed:
            raise failed[0]

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Write the final header, close, and flush to disk."""
        head, _, _ = layout(self._tensors, metadata)
        if len(head) != self._length:
            raise ValueError("the final metadata is of another length")
        self.write(0, memoryview(head))
        self.close()
        with open(self.path, "rb+") as file:
            os.fsync(file.fileno())

    def close(self) -> None:
        for file in self._handles:
            file.close()

    def _handle(self) -> BinaryIO:
        if not hasattr(self._local, "file"):
            self._local.file = open(self.path, "rb+", buffering=0)  # noqa: SIM115
            self._handles.append(self._local.file)
        return self._local.file


def layout(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int], int]:
    """The header, where each tensor begins, and the size of the whole file, in bytes."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    starts, at = {}, 0
    for name, (dtype, shape) in tensors.items():
        starts[name] = at
        end = at + math.prod(shape) * BITS[dtype] // 8
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return head, {name: len(head) + start for name, start in starts.items()}, len(head) + at


def _allocate(file: BinaryIO, size: int) -> None:
    """Reserve the space, so that a full disk is met now and not after minutes of work."""
    if sys.platform == "linux":
        try:
            os.posix_fallocate(file.fileno(), 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    os.truncate(file.fileno() if os.truncate in os.supports_fd else file.name, size)
