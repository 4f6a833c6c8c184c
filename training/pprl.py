"""Proxy Prompt RL of a klein folder (3.2): DiffusionNFT against proxy rewards, as a LoRA on the SFT's weights.

    python -m training.pprl --recipe training/recipes/pprl_4b.yaml --model SFT --data DATASET --out runs/pprl

Without --data the tasks come from the built-in world's grammar. `accelerate launch -m training.pprl …` spreads the
groups over processes. OUT holds the LoRA, log.csv, tensorboard/, curve.png, sheets/ and checkpoints/; the same command
goes on where a run stopped. `clvr merge` adds OUT/lora to the SFT's weights as an RL LoRA.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from clvr.errors import ClvrError, SettingError
from clvr.flux2.limits import TOKEN
from clvr.ports import Proxy
from clvr.vlm import OpenAIClient

from . import monitors, nft, pictures, rewards, rollouts
from .checkpoints import OptimizerState, Weights
from .klein import Klein
from .learner import NFT, Learned, Learner
from .monitors import Limits
from .optim import Average, published
from .policy import Lora, Policy, Which
from .proxy import LastWords, Offline, Teacher, WorldTeacher
from .recipe import load, plain
from .rollouts import Drawing, Group, Verdict
from .runs import PRECISIONS, OptimConfig, Run, RunConfig, generator
from .tasks import Dataset, Source, Task, World, mixed


@dataclass(frozen=True)
class Reward:
    """measured: the built-in world's verifier. unified: UnifiedReward at `url` and UnifiedReward-Edit at `edit_url`,
    OpenAI-compatible servers; their key comes from CLVR_VLM_API_KEY.

    edit_share: of R_I2I in eq. 3. workers: scores at a time. tries: before a picture is dropped."""

    kind: Literal["measured", "unified"] = "measured"
    url: str = ""
    model: str | None = None
    prompt: str = "reward_general.v1"
    edit_url: str = ""
    edit_model: str | None = None
    edit_prompt: str = "reward_edit.v1"
    edit_share: float = 0.5
    workers: int = 8
    tries: int = 3

    def __post_init__(self) -> None:
        if self.kind == "unified" and not (self.url and self.edit_url):
            raise SettingError("reward.kind unified needs reward.url and reward.edit_url.", "Name both servers.")

    def build(self) -> rewards.ProxyReward:
        if self.kind == "measured":
            return rewards.ProxyReward(rewards.MeasuredScene(), rewards.MeasuredEdit(), self.edit_share)
        key = os.environ.get("CLVR_VLM_API_KEY")
        return rewards.ProxyReward(
            rewards.UnifiedReward(functools.partial(OpenAIClient, self.url, self.model, key), self.prompt),
            rewards.UnifiedRewardEdit(
                functools.partial(OpenAIClient, self.edit_url, self.edit_model, key), self.edit_prompt
            ),
            self.edit_share,
        )


@dataclass(frozen=True)
class PPRLConfig:
    """epochs: rounds of drawing and learning. groups: tasks an epoch, over all processes; group: pictures a task.

    updates: optimizer steps an epoch. simple: the paper's "simple RL", which scores by the newest words and image
    instead of proxies. teacher: who distils the proxies; dataset reads what python -m training.proxies extracted.
    gradient_checkpointing: compute activations twice instead of keeping them. sheet_every: epochs between two contact
    sheets. fixed: tasks that stay the same, drawn by the new policy from the same noise whenever a sheet is made, for
    a curve without the chance of an epoch's tasks; from the held-back tenth in the built-in world."""

    epochs: int = 300
    groups: int = 16
    group: int = 16
    updates: int = 2
    simple: bool = False
    teacher: Literal["dataset", "world"] = "dataset"
    gradient_checkpointing: bool = False
    sheet_every: int = 10
    fixed: int = 0
    run: RunConfig = RunConfig(checkpoint_every=10)
    optim: OptimConfig = OptimConfig(lr=1e-4, weight_decay=1e-4)
    lora: Lora = Lora()
    nft: NFT = NFT()
    reward: Reward = Reward()
    drawing: Drawing = Drawing()
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if self.group < 2 or self.updates < 1 or self.groups % self.updates:
            raise SettingError(
                f"group {self.group}, groups {self.groups} and updates {self.updates} cannot work.",
                "A group has at least two pictures, and groups is a multiple of updates.",
            )
        if self.drawing.width % TOKEN or self.drawing.height % TOKEN:
            raise SettingError(f"drawing: sides are multiples of {TOKEN}.", "For example 512.")

    def named_teacher(self, data: Path | None) -> Teacher:
        if self.simple:
            return LastWords()
        if self.teacher == "world":
            return WorldTeacher()
        if data is None:
            raise SettingError("teacher dataset needs --data.", "Name a dataset, or set teacher to world.")
        return Offline(data / "proxies")


class Trainer:
    """A run's policy, its tasks and their rewards. `run` trains; `publish` writes the LoRA."""

    def __init__(self, config: PPRLConfig, run: Run, klein: Klein, source: Source, teacher: Teacher) -> None:
        parts = config.updates * run.processes
        if config.groups % parts or config.fixed % run.processes:
            raise SettingError(
                f"{config.groups} groups and {config.fixed} fixed tasks do not divide among {run.processes} processes.",
                f"Make groups a multiple of {parts}, and fixed one of {run.processes}.",
            )
        self.config, self.run, self.klein = config, run, klein
        self.source, self.teacher = source, teacher
        self.policy = Policy(klein, config.lora, config.run.seed)
        if config.gradient_checkpointing:
            klein.transformer.enable_gradient_checkpointing()
        self.scorer = rewards.Scorer(config.reward.build(), config.reward.workers, config.reward.tries)
        self.optimizer = config.optim.build(list(self.policy.trained.values()))
        tokens = config.drawing.width * config.drawing.height // TOKEN**2
        self.levels = klein.sigmas(config.drawing.steps, tokens)
        self.learner = Learner(
            self.policy,
            config.nft,
            self.levels,
            config.drawing.guidance,
            config.drawing.batch,
            config.run.seed,
            run.autocast,
        )
        self.left_out: Counter[str] = Counter()
        run.keep("lora", Weights(klein.transformer, lambda name, _: ".lora_" in name))
        run.keep("optimizer", OptimizerState(self.optimizer))
        self.average = Average({"policy": klein.transformer}, config.optim.ema) if config.optim.ema else None
        if self.average:
            run.keep("ema", self.average)

    def train(self) -> None:
        try:
            for epoch in self.run.steps(self.config.epochs):
                self.epoch(epoch)
        finally:
            self.scorer.close()

    def epoch(self, epoch: int) -> None:
        """Draw all groups, learn from them, let the old policy follow."""
        shown = epoch % self.config.sheet_every == 0 or epoch + 1 == self.config.epochs
        fixed = self._fixed() if shown and self.config.fixed else {}
        clock = Clock()
        chosen = self._own(self.source, self.config.groups, epoch)
        groups = [self._drawn("old", epoch, index, *one) for index, one in chosen]
        clock.lap("draw")
        told = Told()
        for part in _parts(groups, self.config.updates):
            verdicts = [group.settle() for group in part]
            clock.lap("wait")
            self._update(epoch, list(zip(part, verdicts, strict=True)), told)
            clock.lap("update")
        self.policy.follow(nft.old_decay(epoch, self.config.nft.old_rate, self.config.nft.old_most))
        self._report(epoch, groups, {**told.summed(self.run), **fixed, **clock.seconds})
        if shown and self.run.main:
            self._show(epoch, groups)

    def _fixed(self) -> dict[str, float]:
        """The mean reward of the new policy, as it would be published, on the fixed tasks."""
        source = self.source.held() if isinstance(self.source, World) else self.source
        tasks = self._own(source, self.config.fixed, "fixed")
        with published(self.average):
            groups = [self._drawn("new", "fixed", index, *one) for index, one in tasks]
        told = Told()
        told.verdicts = [(group.task.kind, group.settle()) for group in groups]
        return {name.replace("reward", "fixed"): value for name, value in told.rewards(self.run).items()}

    def _own(self, source: Source, count: int, when: int | str) -> Iterator[tuple[int, tuple[Task, Proxy]]]:
        """This process's tasks of an epoch, with their numbers among all."""
        chosen = self._usable(source, random.Random(f"{self.config.run.seed}:{when}"))
        for index in range(count):
            one = next(chosen)
            if index % self.run.processes == self.run.process:
                yield index, one

    def _usable(self, source: Source, rng: random.Random) -> Iterator[tuple[Task, Proxy]]:
        """Tasks that have a proxy and fit the text encoder; the others are counted."""
        limit, refused = self.klein.encoders.limit, 0
        for task in mixed(source, rng):
            try:
                proxy = self.teacher.proxy(task.context)
            except ClvrError as error:
                self.left_out[type(error).__name__] += 1
                refused += 1
                if refused > 100 * self.config.groups:
                    raise
                continue
            if self.klein.encoders.lengths([task.text])[0] > limit:
                self.left_out["too long"] += 1
                continue
            yield task, proxy

    def _drawn(self, which: Which, when: int | str, index: int, task: Task, proxy: Proxy) -> Group:
        drawing = self.config.drawing
        given = rollouts.condition(self.klein.encoders, task, drawing)
        start = rollouts.noise(self.config.group, drawing, generator(self.config.run.seed, "noise", when, index))
        with self.policy.acting(which), self.run.autocast():
            latents = rollouts.draw(self.policy, given, start.to(self.run.device), self.levels, drawing)
        images = self.klein.encoders.decode(latents)
        return rollouts.score(Group(index, task, proxy, given, latents, images), self.scorer)

    def _update(self, epoch: int, settled: list[tuple[Group, Verdict]], told: Told) -> None:
        """One optimizer step on these groups. A part without any reward moves nothing."""
        told.verdicts += [(group.task.kind, verdict) for group, verdict in settled]
        count = self.run.sum(sum((v.weights.sum() for _, v in settled), torch.zeros(())))
        if count == 0:
            self.run.say("No reward could be had for a whole update, which is left out.")
            return
        for group, verdict in settled:
            told.learned.append(self.learner.learn(epoch, group, verdict, 1 / count))
        self._sum_gradients()
        told.norms.append(self.run.update(self.optimizer, self.config.optim))
        if self.average:
            self.average.update()

    def _sum_gradients(self) -> None:
        """Over the processes. LoRAs are whole on each, also where the weights under them are sharded."""
        if self.run.processes > 1:
            for parameter in self.policy.trained.values():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)

    def _report(self, epoch: int, groups: list[Group], values: dict[str, float]) -> None:
        """Log an epoch, and warn of what the monitors found."""
        images = [image for group in groups for image in group.images]
        watched = {
            "grid": monitors.grid(images),
            "latents": monitors.rms(torch.cat([group.latents.tokens for group in groups])),
            "shift": self.policy.shift(),
        }
        first = self.run.notes.setdefault("first", watched)
        for warning in monitors.warnings(watched, first, self.config.limits):
            self.run.say(f"epoch {epoch + 1}: {warning}")
        self.run.log({**values, **watched, "left_out": float(self.left_out.total())})

    def _show(self, epoch: int, groups: list[Group]) -> None:
        pictures.sheet(groups).save(_made(self.run.folder / "sheets") / f"epoch-{epoch + 1:05d}.png")
        title = "Simple RL" if self.config.simple else "PPRL"
        pictures.curve(self.run.folder / "log.csv", title).save(self.run.folder / "curve.png")

    def publish(self) -> Path:
        """Write the LoRA into OUT/lora."""
        folder = self.run.folder / "lora"
        if self.run.main:
            with published(self.average):
                self.policy.save(folder)
        return folder


class Told:
    """What an epoch's learning told, on this process."""

    def __init__(self) -> None:
        self.learned: list[Learned] = []
        self.norms: list[float] = []
        self.verdicts: list[tuple[str, Verdict]] = []

    @property
    def dropped(self) -> int:
        return sum(reward is None for _, verdict in self.verdicts for reward in verdict.rewards)

    def rewards(self, run: Run) -> dict[str, float]:
        """Means over all processes: of all pictures, of new ones and of edits."""
        values: dict[str, float] = {}
        for name, prefix in (("reward", ""), ("reward_t2i", "t2i"), ("reward_i2i", "i2i")):
            known = [r for kind, verdict in self.verdicts if kind.startswith(prefix) for r in verdict.known]
            count = run.sum(torch.tensor(float(len(known))))
            total = run.sum(torch.tensor(float(sum(known))))
            if count:
                values[name] = total / count
        return values

    def summed(self, run: Run) -> dict[str, float]:
        """Over all processes: rewards, their spread within groups, what was dropped, the losses a step."""
        values = self.rewards(run)
        spreads = [torch.tensor(v.known).std(correction=0) for _, v in self.verdicts if len(v.known) > 1]
        groups = run.sum(torch.tensor(float(len(spreads))))
        total = run.sum(sum(spreads, torch.zeros(())))
        if groups:
            values["spread"] = total / groups
        updates = max(len(self.norms), 1)
        values["policy_loss"] = run.sum(sum((one.policy for one in self.learned), torch.zeros(()))) / updates
        values["kl"] = run.sum(sum((one.kl for one in self.learned), torch.zeros(()))) / updates
        values["dropped"] = run.sum(torch.tensor(float(self.dropped)))
        return values | {"gradient": max(self.norms, default=0.0)}


class Clock:
    """Seconds by phase. `wait` is what rewards took beyond the drawing that hid them."""

    def __init__(self) -> None:
        self.seconds = {"draw_s": 0.0, "wait_s": 0.0, "update_s": 0.0}
        self._last = time.monotonic()

    def lap(self, phase: str) -> None:
        now = time.monotonic()
        self.seconds[f"{phase}_s"] += now - self._last
        self._last = now


def _parts(groups: list[Group], count: int) -> list[list[Group]]:
    size = len(groups) // count
    return [groups[n * size : (n + 1) * size] for n in range(count)]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def start(config: PPRLConfig, model: str, data: Path | None, out: Path) -> Path:
    """Train, and write the LoRA; returns its folder."""
    source: Source = Dataset(data) if data else World(config.drawing.width)
    teacher = config.named_teacher(data)
    recipe: Mapping[str, Any] = {**plain(config), "model": model, "data": str(data) if data else ""}
    with Run(config.run, out, recipe) as run:
        klein = Klein.open(model, run.device, PRECISIONS[config.run.precision], mesh=run.mesh())
        trainer = Trainer(config, run, klein, source, teacher)
        trainer.train()
        folder = trainer.publish()
        run.say(f"{folder}: add it to {model} with clvr merge.")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, required=True, help="see training/recipes/pprl*.yaml")
    parser.add_argument("--model", required=True, help="the SFT's klein folder, in diffusers' layout")
    parser.add_argument("--data", type=Path, help="a dataset of python -m training.data (default: the built-in world)")
    parser.add_argument("--out", type=Path, required=True, help="the run's folder")
    parser.add_argument("--simple", action="store_true", help="simple RL: score by the newest words and image alone")
    options = parser.parse_args()
    config = load(options.recipe, PPRLConfig)
    if options.simple:
        config = dataclasses.replace(config, simple=True)
    start(config, options.model, options.data, options.out)


if __name__ == "__main__":
    main()
