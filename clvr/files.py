"""Writing files so that a crash leaves the old content or the new one, never a half."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import BinaryIO

from .errors import RunFolderError, RunLockedError


def write_atomic(path: Path, data: bytes) -> None:
    """Write beside `path`, flush to disk, then rename over it. The folder is made when it is missing.

    Raises RunFolderError for a full disk, a read-only folder, or a file where a folder should be."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable. Windows cannot open a folder, and does this on its own."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cannot_write(path: Path, error: OSError) -> RunFolderError:
    return RunFolderError(
        f"Cannot write {path}: {error.strerror or error}.",
        "Free some space or make the folder writable; what was written before is intact.",
    )


def lock(file: BinaryIO) -> bool:
    """Lock an open file for this process until it is closed; False where another process holds it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def hold(folder: Path, name: str) -> BinaryIO:
    """The folder's lock file, locked for this process until it is closed; both are made where they are missing.

    Raises RunFolderError; RunLockedError where another process holds it."""
    path = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab")  # noqa: SIM115 - it stays open as long as the folder is held
    except OSError as error:
        raise cannot_write(path, error) from error
    if not lock(file):
        file.close()
        raise RunLockedError(
            f"Another process is writing into {folder}.", "Wait until it is done, or give another --out."
        )
    return file
