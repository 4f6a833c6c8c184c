"""What a budget still allows in the middle of a call to a port.

One call of the loop may be several requests to a VLM: a judge's batches, a reply that is repaired, two images
compared in both orders. The loop grants what is left; whoever makes the requests asks for leave before each one
and tells what it took, so that no limit is passed by more than the requests under way: one, or those that a server is
sent at the same time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter

from .budget import Budget
from .trajectory import Cost, Usage


@dataclass
class Allowance:
    """`spent` is what the run cost before the call, `usage` what the call's requests took so far; it began at
    `began` of perf_counter. Safe for judges that are asked at once, each in a copy of the caller's context."""

    budget: Budget
    spent: Cost
    began: float
    usage: Usage = Usage()
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def refused(self) -> str:
        """Why a request may not be made; or '', and it is counted."""
        with self._lock:
            elapsed = self.spent.total_seconds + perf_counter() - self.began
            reason = self.budget.used(Cost(usage=self.spent.usage + self.usage), elapsed)
            if not reason:
                self.usage += Usage(calls=1)
            return reason

    @property
    def made(self) -> Usage:
        """What a call that failed took: its requests, at least one."""
        return self.usage if self.usage.calls else Usage(calls=1)

    def add_tokens(self, usage: Usage) -> None:
        with self._lock:
            self.usage += Usage(0, usage.tokens_in, usage.tokens_out)


_granted: ContextVar[Allowance | None] = ContextVar("clvr allowance", default=None)


@contextlib.contextmanager
def grant(budget: Budget, spent: Cost) -> Iterator[Allowance]:
    """For every request until the block ends. Outside of a block nothing is refused."""
    allowance = Allowance(budget, spent, perf_counter())
    token = _granted.set(allowance)
    try:
        yield allowance
    finally:
        _granted.reset(token)


def refused() -> str:
    """To be asked before each request to a VLM: why it may not be made, or ''."""
    allowance = _granted.get()
    return allowance.refused() if allowance else ""


def answered(usage: Usage) -> None:
    """To be told after each request that was answered: the tokens it took."""
    allowance = _granted.get()
    if allowance:
        allowance.add_tokens(usage)
