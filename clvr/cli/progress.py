"""What a person sees of a merge while it runs."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from tqdm import tqdm

if TYPE_CHECKING:
    from ..dswm.merge import Progress

_EVERY = 10.0
"""Seconds between two lines where the stream is no terminal."""
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]"


class MergeBar:
    """Tensors, bytes and the time left: a bar in a terminal, now and then a line elsewhere."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._bar: tqdm | None = None
        self._said = 0.0

    def __enter__(self) -> MergeBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def listen(self, progress: Progress) -> None:
        if self._live:
            self._draw(progress)
        elif progress.seconds - self._said >= _EVERY:
            self._said = progress.seconds
            print(line(progress), file=self._stream, flush=True)

    def _draw(self, progress: Progress) -> None:
        if self._bar is None:
            self._bar = tqdm(
                desc="merging",
                total=progress.bytes,
                unit="B",
                unit_scale=True,
                leave=False,
                file=self._stream,
                bar_format=_BAR,
            )
        self._bar.set_description_str(f"merging, {progress.tensors_done}/{progress.tensors} tensors", refresh=False)
        self._bar.n = progress.bytes_done
        self._bar.refresh()


def line(progress: Progress) -> str:
    """The same without a bar."""
    share = progress.bytes_done / progress.bytes if progress.bytes else 1.0
    left = f", {progress.seconds / share - progress.seconds:.0f} s left" if 0 < share < 1 else ""
    return (
        f"merging: {share:.0%}, {progress.tensors_done} of {progress.tensors} tensors, "
        f"{progress.bytes_done / 1e9:.2f} of {progress.bytes / 1e9:.2f} GB{left}"
    )
