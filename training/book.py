"""Results of runs that share a painter, one a line in a file: what a killed measurement goes on from."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TextIO, TypeVar

from .lockstep import Lockstep, Painter


class Result(Protocol):
    """A dataclass of plain values, without slots."""

    @property
    def task(self) -> int: ...


R = TypeVar("R", bound=Result)


def fill(
    book: Path, kind: type[R], jobs: Mapping[int, Callable[[], R]], painter: Painter, name: str, width: int = 96
) -> None:
    """Run what the book does not hold yet, by task number, `width` at a time; a result is written as it comes."""
    done = {row.task for row in read(book, kind)}
    left = [job for task, job in jobs.items() if task not in done]
    if not left:
        return
    began, count = time.monotonic(), 0
    with book.open("a") as out:
        out.write("\n" if out.tell() else "")

        def keep(result: R) -> None:
            nonlocal count
            count += 1
            write(out, result)
            spent = time.monotonic() - began
            if sys.stderr.isatty():
                print(f"\r{name}: {count}/{len(left)}, {spent * (len(left) / count - 1):.0f} s left ", end="")

        Lockstep(painter, width).run(left, keep)
    start = "\r" if sys.stderr.isatty() else ""
    print(f"{start}{name}: {len(left)} runs in {time.monotonic() - began:.0f} s{' ' * 20 if start else ''}", flush=True)


def write(book: TextIO, result: Result) -> None:
    book.write(json.dumps(vars(result)) + "\n")
    book.flush()


def read(book: Path, kind: type[R]) -> list[R]:
    """The results of a book; a line that was cut off by a kill is left out."""
    rows = []
    for line in book.read_text().splitlines() if book.exists() else ():
        try:
            rows.append(kind(**json.loads(line)))
        except ValueError:
            continue
    return rows
