"""Many runs at once, their drawings in shared batches: three times the pictures a second on a CPU.

Each run is `clvr.loop.run` in a thread of its own. A drawing waits until every run that is alive waits for one;
then those of equal text length and reference count go through the model together.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

from PIL.Image import Image

from clvr.context import Context
from clvr.ports import Drawing, DrawProgress, Size

from .sampling import Sampler, noise

R = TypeVar("R")
MOST = 64
"""Pictures of a batch."""


@dataclass
class _Request:
    context: Context
    seeds: Sequence[int]
    drawn: Future[list[Image]] = field(default_factory=Future)


class Painter:
    """`ports.Generator` for the runs of a `Lockstep`, with the pipeline's schedule and guidance."""

    name = "built-in model, in batches"

    def __init__(self, sampler: Sampler, steps: int, guidance: float, side: int = 64) -> None:
        self.sampler, self.steps, self.guidance = sampler, steps, guidance
        self.default_size: Size = (side, side)
        self.pictures = 0
        self.lock = threading.Condition()
        self.requests: list[_Request] = []

    def nfe(self, images: int) -> int:
        return images * self.steps * (2 if self.guidance > 1 else 1)

    def draw(
        self,
        context: Context,
        size: Size,
        seeds: Sequence[int],
        on_step: Callable[[DrawProgress], None] | None = None,
    ) -> Drawing:
        request = _Request(context, seeds)
        with self.lock:
            self.requests.append(request)
            self.lock.notify_all()
        return Drawing(tuple(request.drawn.result()), self.nfe(len(seeds)))

    def paint(self, requests: Sequence[_Request]) -> None:
        """Fulfil requests in batches of equal shape."""
        rows = [(request, seed) for request in requests for seed in request.seeds]
        alike: dict[tuple[int, int], list[tuple[_Request, int]]] = {}
        for row in rows:
            context = row[0].context
            alike.setdefault((self.sampler.padded([context.text]), len(context.images)), []).append(row)
        images: dict[tuple[int, int], Image] = {}
        for members in alike.values():
            for start in range(0, len(members), MOST):
                part = members[start : start + MOST]
                for (request, seed), image in zip(part, self._batch(part), strict=True):
                    images[id(request), seed] = image
        self.pictures += len(rows)
        for request in requests:
            request.drawn.set_result([images[id(request), seed] for seed in request.seeds])

    def _batch(self, part: Sequence[tuple[_Request, int]]) -> list[Image]:
        contexts = [request.context for request, _ in part]
        references = self.sampler.encode([[image for _, image in context.images] for context in contexts])
        tokens = (self.default_size[0] // 16) ** 2
        # A candidate's seed has 53 bits; torch takes 64.
        start = noise([seed for _, seed in part], tokens)
        texts = [context.text for context in contexts]
        return self.sampler.images(self.sampler.latents(texts, references, start, self.steps, self.guidance))


class Lockstep:
    """Runs jobs, at most `width` at a time, in threads that share a painter."""

    def __init__(self, painter: Painter, width: int = 96) -> None:
        self.painter, self.width = painter, width

    def run(self, jobs: Iterable[Callable[[], R]], done: Callable[[R], None]) -> None:
        """Each job's result goes to `done`, in this thread. What a job raises is raised here."""
        waiting, alive, results = iter(jobs), 0, []
        lock = self.painter.lock

        def work(job: Callable[[], R]) -> None:
            outcome: R | BaseException
            try:
                outcome = job()
            except BaseException as error:
                outcome = error
            with lock:
                results.append(outcome)
                lock.notify_all()

        def begin() -> int:
            job = next(waiting, None)
            if job is None:
                return 0
            threading.Thread(target=work, args=(job,), daemon=True).start()
            return 1

        while True:
            while alive < self.width and begin():
                alive += 1
            if not alive:
                return
            with lock:
                while not results and len(self.painter.requests) < alive:
                    lock.wait()
                ended, results[:] = list(results), []
                ready = [] if ended else list(self.painter.requests)
                if ready:
                    self.painter.requests.clear()
            for outcome in ended:
                alive -= 1
                if isinstance(outcome, BaseException):
                    raise outcome
                done(outcome)
            if ready:
                self.painter.paint(ready)
