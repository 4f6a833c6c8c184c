"""Workers on many machines: an actor of a Ray cluster for each device. Nodes need no common file system: outcomes and
pictures travel to the driver, which alone writes."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

import ray
from ray.actor import ActorProxy
from ray.exceptions import RayActorError

from clvr.errors import SettingError

from .config import EngineConfig
from .crews import Done, Job, Opener, attempt
from .work import Made

LOCAL = "local"
PATIENCE = 300.0
"""Seconds without any result after which workers that the cluster never started are told of."""


class Actor:
    """One worker; its models are opened with the first job."""

    def __init__(self, opener: Opener, config: EngineConfig, device: str) -> None:
        self._worker = opener(config, device)

    def ready(self) -> bool:
        return True

    def make(self, job: Job) -> tuple[Made | None, Exception | None]:
        return attempt(self._worker, job)


class RayCrew:
    """A `Crew`. An actor that dies, with its node or alone, is replaced wherever there is room. `patience`: seconds."""

    def __init__(self, opener: Opener, config: EngineConfig, patience: float = PATIENCE) -> None:
        """Connects to the cluster, or starts one of its own. Raises SettingError where there is none."""
        run = config.run
        connect(run.ray, len(run.devices))
        options = {"num_cpus": 1, "num_gpus": run.gpus, "max_concurrency": run.threads}
        self._actor = ray.remote(**options)(Actor)
        self._opener, self._config, self._patience = opener, config, patience
        self._started: dict[int, ray.ObjectRef] = {}
        self._members: list[ActorProxy[Actor]] = [self._hired(slot) for slot in range(len(run.devices))]
        self._jobs: dict[ray.ObjectRef, tuple[int, Job]] = {}

    @property
    def slots(self) -> int:
        return len(self._members)

    def send(self, slot: int, job: Job) -> None:
        self._jobs[self._members[slot].make.remote(job)] = (slot, job)

    def wait(self) -> Sequence[Done]:
        """Raises SettingError where all that is left was given to workers that the cluster has no room for."""
        finished: list[ray.ObjectRef] = []
        while not finished:
            finished, _ = ray.wait(list(self._jobs), num_returns=1, timeout=self._patience)
            if not finished and all(self._absent(slot) for slot, _ in self._jobs.values()):
                raise SettingError(
                    f"The Ray cluster started no worker within {self._patience:.0f} s.",
                    f"Each needs one CPU and run.gpus = {self._config.run.gpus:g}: ray status tells what is free.",
                )
        return [done for reference in finished for done in self._heard(reference)]

    def close(self) -> None:
        ray.shutdown()

    def _absent(self, slot: int) -> bool:
        return not ray.wait([self._started[slot]], timeout=0)[0]

    def _heard(self, reference: ray.ObjectRef) -> list[Done]:
        slot, job = self._jobs.pop(reference)
        try:
            made, error = ray.get(reference)
        except RayActorError:
            return [Done(slot, job), *self._replaced(slot)]
        return [Done(slot, job, made, error)]

    def _replaced(self, slot: int) -> list[Done]:
        """What else the slot's dead actor had been given."""
        lost = {reference: job for reference, (number, job) in self._jobs.items() if number == slot}
        for reference in lost:
            del self._jobs[reference]
        self._members[slot] = self._hired(slot)
        return [Done(slot, job) for job in lost.values()]

    def _hired(self, slot: int) -> ActorProxy[Actor]:
        actor = self._actor.remote(self._opener, self._config, self._config.run.devices[slot])
        self._started[slot] = actor.ready.remote()
        return actor


def connect(address: str, workers: int) -> None:
    """Join the cluster at `address`; 'local' starts one on this machine and its loopback alone, without dashboard
    or usage statistics. Raises SettingError."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == LOCAL:
        os.environ.setdefault("RAY_worker_niceness", "0")  # 15 otherwise: no share of a busy machine
        ray.init(
            num_cpus=workers,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address="127.0.0.1",
        )
        return
    try:
        ray.init(address=address, log_to_driver=False, ignore_reinit_error=True)
    except (ConnectionError, ValueError) as error:
        raise SettingError(f"There is no Ray cluster at {address}: {error}.", "Start one: ray start --head.") from error
