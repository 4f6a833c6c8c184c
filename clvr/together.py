"""Calls that do not need each other, made at the same time, and broken off together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass
class _Group:
    broken: BaseException | None = None
    """What one of the calls raised, or whoever waits for them."""


_group: ContextVar[_Group | None] = ContextVar("clvr calls together", default=None)


def together(calls: Sequence[Callable[[], T]], at_once: int) -> list[T]:
    """The results in order, each call in a copy of the caller's context. Where one raises, the others raise the same
    as soon as they `look`, and it passes through once all have ended."""
    if at_once < 2 or len(calls) < 2:
        return [call() for call in calls]
    group = _Group()
    with ThreadPoolExecutor(min(at_once, len(calls)), "clvr-call") as pool:
        pending = [pool.submit(copy_context().run, _run, group, call) for call in calls]
        try:
            return [call.result() for call in pending]
        except BaseException as error:  # an interrupt reaches the thread that waits
            group.broken = group.broken or error
            raise


def _run(group: _Group, call: Callable[[], T]) -> T:
    _group.set(group)
    look()
    try:
        return call()
    except BaseException as error:
        group.broken = group.broken or error
        raise


def grouped() -> bool:
    """Whether this call is one of several, and should `look` while it waits."""
    return _group.get() is not None


def look() -> None:
    """Raises what broke one of the calls made together with this one."""
    group = _group.get()
    if group and group.broken:
        raise group.broken
