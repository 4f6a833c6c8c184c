"""What every trainer shares: processes, precision, updates, logs, and checkpoints from which a killed run goes on.

A run is a function of its recipe and its seed. One process or several (`accelerate launch`), killed or not: the
losses are the same. For this the batch of a step is stated for all processes together, and what is random is
drawn from `generator(seed, step, …)`, not from a state."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from torch import nn
from torch.distributed.tensor import DTensor

from clvr.devices import choose_device
from clvr.errors import DivergedError, RunLockedError, SettingError
from clvr.files import lock, write_atomic

from . import checkpoints
from .checkpoints import Part
from .sharding import Mesh
from .trackers import CsvTracker

FREE = ("run.checkpoint_every", "run.keep", "run.report_seconds", "run.shard")
"""Fields of a recipe that change no loss, and may change while a run is under way."""
PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class RunConfig:
    """How a training runs.

    precision: of the arithmetic; bf16 is autocast over fp32 weights. shard: spread weights, gradients and
    optimizer over the processes (FSDP2) instead of copying them to each (DDP). checkpoint_every: steps.
    keep: checkpoints that stay. report_seconds: between two lines on the console."""

    seed: int = 0
    precision: Literal["bf16", "fp32"] = "bf16"
    shard: bool = False
    checkpoint_every: int = 250
    keep: int = 2
    report_seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.checkpoint_every < 1 or self.keep < 1:
            raise SettingError("run.checkpoint_every and run.keep must be at least 1.", "Mend the recipe.")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW. warmup: share of the steps over which the rate rises; decay: how it falls after that, to 0.

    clip: largest norm of the gradient, 0 for none. ema: decay of the averaged weights, which are the ones that
    are published; 0 publishes the last ones."""

    lr: float = 2e-5
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    warmup: float = 0.0
    decay: Literal["cosine", "linear", "constant"] = "constant"
    clip: float = 1.0
    ema: float = 0.0

    def __post_init__(self) -> None:
        if self.lr <= 0 or not 0 <= self.warmup < 1 or not 0 <= self.ema < 1 or self.clip < 0:
            raise SettingError(
                f"optim: lr {self.lr:g}, warmup {self.warmup:g}, ema {self.ema:g}, clip {self.clip:g} cannot work.",
                "lr is above 0, warmup and ema from 0 to below 1, clip from 0.",
            )

    def rate(self, step: int, total: int) -> float:
        """The learning rate of the step that follows `step` done ones."""
        rising = self.warmup * total
        if step < rising:
            return self.lr * (step + 1) / (rising + 1)
        left = 1 - (step - rising) / max(1.0, total - rising)
        factors = {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left)}
        return self.lr * factors[self.decay]

    def build(self, parameters: list[nn.Parameter]) -> torch.optim.AdamW:
        return torch.optim.AdamW(parameters, self.lr, betas=self.betas, weight_decay=self.weight_decay)


def generator(*key: object) -> torch.Generator:
    """Random numbers on the CPU that depend on the key alone."""
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class Run:
    """A training's folder: recipe.json, log.csv, tensorboard/, checkpoints/. Use as a context manager.

    Raises RunLockedError while another run writes there; SettingError where the folder was begun with another
    recipe."""

    def __init__(self, config: RunConfig, folder: Path, recipe: Mapping[str, Any]) -> None:
        self.config, self.folder = config, folder
        self.csv = CsvTracker(folder / "log.csv")
        places = ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder))
        alone = choose_device("auto").type == "cpu"  # unless it is told so, accelerate starts no group of CPUs
        self.accelerator = Accelerator(cpu=alone, log_with=[self.csv, "tensorboard"], project_config=places)
        self.parts: dict[str, Part] = {}
        self.notes: dict[str, Any] = {}
        """What the trainer wants kept in a checkpoint besides tensors, as JSON."""
        self.step = 0
        """Steps that are done."""
        self.total = 0
        self._told = self._began = time.monotonic()
        self._started_at = 0
        self._lock: BinaryIO | None = None
        if self.main:
            self._enter(recipe)
        self.accelerator.wait_for_everyone()
        set_seed(config.seed + self.accelerator.process_index)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        for tracker in self.accelerator.trackers:
            tracker.finish()
        if self._lock is not None:
            self._lock.close()

    @property
    def main(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def processes(self) -> int:
        return self.accelerator.num_processes

    @property
    def process(self) -> int:
        return self.accelerator.process_index

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def mesh(self) -> Mesh | None:
        """The processes to spread a model over, None where each has its own copy."""
        if not self.config.shard:
            return None
        if not dist.is_initialized():
            raise SettingError(
                "run.shard spreads a model over several processes, and this is one.",
                "Start it with `accelerate launch --num_processes N -m …`, or set run.shard to false.",
            )
        return Mesh.over(self.device, self.processes, PRECISIONS[self.config.precision])

    def copied(self, module: nn.Module) -> nn.Module:
        """The module that a training calls: its gradients are averaged over the processes, unless it is sharded."""
        if self.processes == 1 or self.config.shard:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(
            module, devices, broadcast_buffers=False, gradient_as_bucket_view=True
        )

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        precision = PRECISIONS[self.config.precision]
        return torch.autocast(self.device.type, precision, enabled=precision != torch.float32)

    def keep(self, name: str, part: Part) -> None:
        """Make a part's tensors a part of every checkpoint. Call before `steps`."""
        self.parts[name] = part

    def steps(self, total: int) -> Iterator[int]:
        """Numbers of the steps that are still to do, from the newest checkpoint on; saves in between."""
        self.total = total
        self._resume()
        self._began, self._started_at = time.monotonic(), self.step
        for step in range(self.step, total):
            yield step
            self.step = step + 1
            if self.step % self.config.checkpoint_every == 0 or self.step == total:
                self.save()

    def backward(self, share: torch.Tensor, model: nn.Module, last: bool = True) -> None:
        """Add the gradient of this process's share of the step's loss, which is the sum of all shares. Between
        processes gradients travel only with the `last` share of a step."""
        waiting = isinstance(model, nn.parallel.DistributedDataParallel) and not last
        with model.no_sync() if waiting else contextlib.nullcontext():  # pyright: ignore[reportCallIssue]
            (share * self.processes).backward()

    def update(self, optimizer: torch.optim.Optimizer, config: OptimConfig) -> float:
        """Clip, step, clear; returns the gradient's norm. Raises DivergedError where that is not finite."""
        for group in optimizer.param_groups:
            group["lr"] = config.rate(self.step, self.total)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip or math.inf)
        value = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        if not math.isfinite(value):
            raise DivergedError(
                f"The gradient of step {self.step + 1} is not finite.",
                "Lower the learning rate or the clip; the last checkpoint is intact.",
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value

    def sum(self, value: torch.Tensor) -> float:
        """Over all processes."""
        total: Any = self.accelerator.reduce(value.detach().to(self.device), "sum")
        return float(total)

    def log(self, values: Mapping[str, float]) -> None:
        """The current step's numbers, the same on every process."""
        self.accelerator.log(dict(values), step=self.step)
        now = time.monotonic()
        last = self.step + 1 == self.total
        if self.main and (last or now - self._told >= self.config.report_seconds):
            self._told = now
            self.say(self._line(values, now))

    def say(self, line: str) -> None:
        if self.main:
            print(line, flush=True)

    def save(self) -> None:
        """A checkpoint of everything that was kept; a kill leaves the one before."""
        folder = self.folder / "checkpoints"
        path = checkpoints.path_of(folder, self.step)
        partial = path.with_name(f".{path.name}.partial")
        checkpoints.write_parts(partial, self.parts, self.process)
        checkpoints.write_random_state(partial, self.process)
        self.accelerator.wait_for_everyone()
        if self.main:
            facts = {"step": self.step, "notes": self.notes}
            checkpoints.complete(partial, path, self.parts, facts, self.config.keep)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        found = checkpoints.latest(self.folder / "checkpoints")
        if found is not None:
            for name, part in self.parts.items():
                with found.open(name) as saved:
                    part.restore(saved)
            checkpoints.read_random_state(found, self.process)
            self.step, self.notes = found.facts["step"], found.facts["notes"]
            self.say(f"going on after step {self.step} of {self.total}")
        if self.main:
            self.csv.rewind(self.step)
        self.accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": {"purge_step": self.step}})
        self.accelerator.wait_for_everyone()

    def _line(self, values: Mapping[str, float], now: float) -> str:
        done = self.step + 1 - self._started_at
        seconds = (now - self._began) / done
        shown = "  ".join(f"{k} {v:.4g}" for k, v in values.items())
        left = duration(seconds * (self.total - self.step - 1))
        return f"step {self.step + 1}/{self.total}  {shown}  {seconds:.2f} s a step  left {left}"

    def _enter(self, recipe: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / "lock").open("wb")
        if not lock(self._lock):
            raise RunLockedError(f"Another training writes into {self.folder}.", "Wait for it, or name another folder.")
        path = self.folder / "recipe.json"
        now = json.loads(json.dumps(recipe))
        before = json.loads(path.read_text("utf-8")) if path.exists() else now
        changed = [d for d in differences(before, now) if d.split()[0] not in FREE]
        if changed:
            raise SettingError(
                f"{self.folder} was begun with another recipe: {'; '.join(changed)}.",
                "Go on with the old recipe, or name another folder.",
            )
        write_atomic(path, json.dumps(now, indent=1).encode())


def differences(before: Any, now: Any, where: str = "") -> list[str]:  # noqa: ANN401
    """What of a recipe has changed, as 'field old -> new'."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = {**before, **now}
        return [d for k in keys for d in differences(before.get(k), now.get(k), f"{where}.{k}" if where else k)]
    return [] if before == now else [f"{where} {before!r} -> {now!r}"]


def duration(seconds: float) -> str:
    """'1 h 05 min', '12 min', '40 s'."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
