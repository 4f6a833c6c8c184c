"""The whole engine: candidates, deduplication, outcomes, export, reports. What is done already is not done again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

from clvr import builtin
from clvr.models import BUILTIN
from clvr.report.figures import duration
from clvr.trajectory import encode

from .candidates import Prompt, gather
from .config import EngineConfig
from .crews import Crew, Job, Opener, Processes, Threads, dispatch
from .dedup import Dropped, deduplicate
from .folder import Folder
from .page import render
from .statistics import Statistics, summarise
from .work import EngineWorker, Made

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What is to be made: `prompts` in order, of so many candidates; `dropped` are the rest."""

    candidates: int
    prompts: tuple[Prompt, ...]
    dropped: tuple[Dropped, ...]


def plan(config: EngineConfig) -> Plan:
    """Raises what `gather` and `deduplicate` raise."""
    found = gather(config.prompts, config.seed)[: config.prompts.limit or None]
    kept, dropped = deduplicate(found, config.dedup, world=config.cast.vlm == BUILTIN)
    return Plan(len(found), tuple(kept), tuple(dropped))


def run(config: EngineConfig, out: Path, say: Say, opener: Opener = EngineWorker) -> Statistics:
    """Raises what a folder raises, and what goes wrong with every prompt; outcomes until then are kept, and the same
    call goes on from there."""
    planned = plan(config)
    say(f"{planned.candidates} candidates, {len(planned.dropped)} of them copies: {len(planned.prompts)} prompts")
    with Folder(out, config) as folder:
        left = [p for p in planned.prompts if not folder.done(p)]
        if len(left) < len(planned.prompts):
            say(f"{len(planned.prompts) - len(left)} are done already")
        try:
            if left:
                _make(config, planned, left, folder, say, opener)
        finally:
            statistics = finish(config, planned, folder)
    return statistics


def finish(config: EngineConfig, planned: Plan, folder: Folder) -> Statistics:
    """Shards and reports of what is done so far. Raises RunFolderError."""
    outcomes = [o for o in map(folder.outcome, planned.prompts) if o is not None]
    statistics = summarise(planned.candidates, planned.prompts, planned.dropped, outcomes)
    folder.export([o for o in outcomes if not o.gate], config.shard)
    sheet = render(config, statistics, outcomes, planned.dropped, folder.path)
    folder.tell(planned.dropped, encode(statistics), sheet)
    return statistics


def _make(config: EngineConfig, planned: Plan, left: list[Prompt], folder: Folder, say: Say, opener: Opener) -> None:
    shown = {prompt.id for prompt in planned.prompts[: config.shown]}
    teller = _Teller(len(left), say)

    def keep(made: Made) -> None:
        folder.keep(made)
        teller.tell(made)

    jobs = [Job(prompt, prompt.id in shown) for prompt in left]
    if config.cast.batch:
        in_batches(config, jobs, keep)
        return
    crew = hire(config, opener)
    try:
        dispatch(crew, jobs, config.run.threads, keep)
    finally:
        crew.close()


def hire(config: EngineConfig, opener: Opener) -> Crew:
    """On a Ray cluster, in a process for each device, or in this process where there is one device. Raises
    SettingError for a cluster that is not there."""
    if config.run.ray:
        from .ray_run import RayCrew

        return RayCrew(opener, config)
    device, *others = config.run.devices
    if others:
        return Processes(opener, config)
    return Threads(opener(config, device), config.run.threads)


def in_batches(config: EngineConfig, jobs: Sequence[Job], keep: Callable[[Made], None]) -> None:
    """Every job through `keep` once, drawings of equal shape going through the model together. Raises what a folder
    of weights raises, and what a job raises."""
    from clvr.devices import choose_device
    from clvr.flux2.folder import find

    from ..folder import open_sampler
    from ..lockstep import Lockstep, Painter

    (device,) = config.run.devices
    found = find(builtin.located(config.cast.model))
    sampling = found.sampling.chosen(config.cast.steps, config.cast.guidance)
    sampler = open_sampler(found.path, choose_device(device))
    guidance = 1.0 if found.distilled else sampling.guidance
    painter = Painter(sampler, sampling.steps, guidance, sampling.width)
    worker = EngineWorker(config, device, painter)
    calls = (partial(worker.make, job.prompt, job.shown) for job in jobs)
    Lockstep(painter, config.cast.batch).run(calls, keep)


class _Teller:
    """A line for each outcome, with the share kept so far and the time left."""

    def __init__(self, total: int, say: Say) -> None:
        self._total = total
        self._say = say
        self._done = self._kept = 0
        self._began = perf_counter()

    def tell(self, made: Made) -> None:
        outcome = made.outcome
        self._done += 1
        self._kept += not outcome.gate
        left = (perf_counter() - self._began) / self._done * (self._total - self._done)
        end = f"kept, {len(outcome.images)} pictures" if not outcome.gate else f"{outcome.gate}: {outcome.reason}"
        told = f"[{self._done:{len(str(self._total))}}/{self._total}] {_short(outcome.prompt, 60)} – {_short(end, 90)}"
        self._say(f"{told} ({self._kept} kept, {duration(left)} left)")


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
