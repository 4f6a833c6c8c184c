"""Workers on one machine: in this process, or a process for each device. A worker that dies is replaced, and its
prompts are given out again."""

from __future__ import annotations

import multiprocessing
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from multiprocessing.process import BaseProcess
from typing import Protocol

from clvr.errors import ClvrError

from .candidates import Prompt
from .config import EngineConfig
from .folder import CRASHED
from .work import Made, Outcome, Worker

Opener = Callable[[EngineConfig, str], Worker]
DEATHS = 2
"""Workers that may die over a prompt before it is given up as the cause."""


@dataclass(frozen=True)
class Job:
    prompt: Prompt
    shown: bool


@dataclass(frozen=True)
class Done:
    """What came from a worker: a prompt's outcome, what went wrong with it, or neither where the worker died."""

    slot: int
    job: Job
    made: Made | None = None
    error: Exception | None = None


class Crew(Protocol):
    """`slots` workers, each with room for several jobs at a time."""

    @property
    def slots(self) -> int: ...

    def send(self, slot: int, job: Job) -> None: ...

    def wait(self) -> Sequence[Done]:
        """What is done by now, at least one."""
        ...

    def close(self) -> None: ...


def dispatch(crew: Crew, jobs: Iterable[Job], room: int, keep: Callable[[Made], None]) -> None:
    """Every job through `keep` once, `room` of them at a time in each slot. Raises what a worker raises, after which
    nothing more is given out; what was kept by then is kept."""
    waiting, deaths = list(reversed(list(jobs))), Counter[str]()
    busy: Counter[int] = Counter()
    while waiting or busy.total():
        for slot in range(crew.slots):
            while waiting and busy[slot] < room:
                crew.send(slot, waiting.pop())
                busy[slot] += 1
        for done in crew.wait():
            busy[done.slot] -= 1
            prompt = done.job.prompt
            if done.error is not None:
                raise done.error
            if done.made is not None:
                keep(done.made)
            elif deaths[prompt.id] >= DEATHS:
                reason = f"{DEATHS + 1} workers died over it"
                keep(Made(Outcome(prompt.id, prompt.text, prompt.source, prompt.tag, CRASHED, reason)))
            else:
                deaths[prompt.id] += 1
                waiting.append(done.job)


class Threads:
    """A `Crew` of one worker, in this process."""

    slots = 1

    def __init__(self, worker: Worker, room: int) -> None:
        self._worker = worker
        self._pool = ThreadPoolExecutor(room, thread_name_prefix="engine")
        self._jobs: dict[Future[Made], Job] = {}

    def send(self, slot: int, job: Job) -> None:
        self._jobs[self._pool.submit(self._worker.make, job.prompt, job.shown)] = job

    def wait(self) -> Sequence[Done]:
        finished, _ = wait(self._jobs, return_when=FIRST_COMPLETED)
        return [self._done(future) for future in finished]

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _done(self, future: Future[Made]) -> Done:
        job, error = self._jobs.pop(future), future.exception()
        if isinstance(error, Exception):
            return Done(0, job, error=error)
        return Done(0, job, future.result())


class Processes:
    """A `Crew` of a process for each device."""

    def __init__(self, opener: Opener, config: EngineConfig) -> None:
        self._opener = opener
        self._config = config
        self._context = multiprocessing.get_context("spawn")
        self._members = [self._hired(device) for device in config.run.devices]

    @property
    def slots(self) -> int:
        return len(self._members)

    def send(self, slot: int, job: Job) -> None:
        member = self._members[slot]
        member.jobs[job.prompt.id] = job
        try:
            member.pipe.send(job)
        except OSError:
            return  # it died; `wait` hears of it

    def wait(self) -> Sequence[Done]:
        ready = wait_for([member.pipe for member in self._members if member.jobs])
        return [done for slot, member in enumerate(self._members) if member.pipe in ready for done in self._heard(slot)]

    def close(self) -> None:
        for member in self._members:
            member.pipe.close()
        for member in self._members:
            member.process.join(5)
            if member.process.is_alive():
                member.process.terminate()
                member.process.join()

    def _heard(self, slot: int) -> list[Done]:
        member = self._members[slot]
        try:
            name, made, error = member.pipe.recv()
        except (EOFError, OSError):
            member.pipe.close()
            member.process.join()
            self._members[slot] = self._hired(member.device)
            return [Done(slot, job) for job in member.jobs.values()]
        return [Done(slot, member.jobs.pop(name), made, error)]

    def _hired(self, device: str) -> _Member:
        here, there = self._context.Pipe()
        run = (self._opener, self._config, device, there)
        process = self._context.Process(target=_serve, args=run, name=f"engine {device}", daemon=True)
        process.start()
        there.close()
        return _Member(device, process, here, {})


@dataclass
class _Member:
    device: str
    process: BaseProcess
    pipe: Connection
    jobs: dict[str, Job]


def _serve(opener: Opener, config: EngineConfig, device: str, pipe: Connection) -> None:
    """A worker's process: jobs in, outcomes out, until the pipe closes."""
    worker, speaking = opener(config, device), threading.Lock()

    def make(job: Job) -> None:
        made, error = attempt(worker, job)
        with speaking:
            pipe.send((job.prompt.id, made, error))

    with ThreadPoolExecutor(config.run.threads) as pool:
        while True:
            try:
                job = pipe.recv()
            except (EOFError, OSError, KeyboardInterrupt):
                break
            pool.submit(make, job)


def attempt(worker: Worker, job: Job) -> tuple[Made | None, Exception | None]:
    """The outcome, or the error in a form that travels between processes."""
    try:
        return worker.make(job.prompt, job.shown), None
    except ClvrError as error:
        return None, type(error)(error.thing, error.remedy)
    except Exception as error:  # a worker's mistake is the driver's to raise
        return None, RuntimeError(f"{type(error).__name__} over {job.prompt.text!r}: {error}")
