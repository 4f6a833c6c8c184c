"""Few-step distillation of a klein folder: its guided trajectory of many steps in a few steps without guidance.

    python -m training.distill --recipe training/recipes/distill_builtin.yaml --model MODEL --out RUN
    accelerate launch --num_processes 8 -m training.distill --recipe training/recipes/distill_4b.yaml …

The teacher is MODEL itself, sampled deterministically under classifier-free guidance; the student starts from its
weights. In each of the student's steps, from t_i to t_(i+1), it learns the mean velocity of the teacher's way,
(x(t_(i+1)) - x(t_i)) / (t_(i+1) - t_i), so that one Euler step without guidance lands where the teacher's many do:
progressive distillation (arXiv 2202.00512) straight from the teacher to the last student, with guidance distilled
into it at one fixed scale (arXiv 2210.03142, section 3.2), in the velocity form of piecewise rectified flow
(PeRFlow, arXiv 2405.07510), which also learns points on the straight line inside a step.

The teacher's trajectories are drawn once, into RUN/teacher. RUN/model is a klein folder that draws in that many steps
without guidance; `clvr merge` takes it as the distilled model of MODEL. RUN/sheets/base.png and student.png show both
at that many steps, beside the teacher. Without --data the prompts come from the built-in world's grammar. A second
call goes on where the first one stopped, with the same losses.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from clvr.chart import Axis
from clvr.devices import choose_dtype
from clvr.errors import ClvrError, SettingError
from clvr.flux2.folder import Folder, find
from clvr.flux2.loading import check_architecture

from . import figures, teacher
from .buckets import Place, Plan
from .checkpoints import OptimizerState, Weights
from .config import DataConfig
from .klein import Latents, sample, velocity
from .latent_cache import Cache, Encodings
from .optim import Average, published
from .publishing import collect, publish, stored_dtype
from .recipe import load, plain
from .runs import OptimConfig, Run, RunConfig, duration, generator
from .sharding import load_transformer, released
from .teacher import Archive, Item, Teacher, Trajectories

_SHOWN = 10
"""Prompts of a sheet."""


@dataclass(frozen=True)
class DistillConfig:
    """Few-step distillation.

    steps: of the student. epochs: passes over the trajectories, one of a student's steps of each at a time. batch:
    samples of a step on all processes together; micro: of one forward. inside: share of samples within a step of the
    student, the others lie where its sampler evaluates it. held: trajectories that are kept from training, on which
    the distance to the teacher's pictures is measured every `measure_every` steps. world: the prompts without
    --data."""

    steps: int = 4
    epochs: int = 16
    batch: int = 64
    micro: int = 4
    inside: float = 0.25
    held: int = 64
    measure_every: int = 500
    gradient_checkpointing: bool = True
    teacher: Teacher = Teacher()
    world: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig(lr=1e-5, weight_decay=0.0, warmup=0.01, decay="cosine", ema=0.999)
    run: RunConfig = RunConfig()

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.inside <= 1 or self.held < 1 or self.measure_every < 1:
            raise SettingError(
                f"steps {self.steps}, inside {self.inside:g}, held {self.held} and measure_every "
                f"{self.measure_every} cannot work.",
                "inside is a share; the others are at least 1.",
            )


@dataclass(frozen=True)
class Samples:
    """Points of the teacher's way, rows of one shape: x_t at t [B], and the velocity to learn there; window [B] is
    the student's step in which t lies."""

    x: Latents
    t: torch.Tensor
    target: torch.Tensor
    window: torch.Tensor


def samples(found: Trajectories, knots: torch.Tensor, window: torch.Tensor, share: torch.Tensor) -> Samples:
    """`share` [B] of each row's window is behind it: 0 is where the sampler evaluates the student."""
    rows, knots = torch.arange(len(window)), knots.to(found.tokens.device)
    start, end = found.tokens[rows, window], found.tokens[rows, window + 1]
    begins, ends = knots[window], knots[window + 1]
    share = share.to(start)
    x = torch.lerp(start, end, share[:, None, None])
    return Samples(
        Latents(x, found.height, found.width),
        torch.lerp(begins, ends, share),
        (end - start) / (ends - begins)[:, None, None],
        window,
    )


def loss(model: nn.Module, made: Samples, found: Trajectories) -> torch.Tensor:
    """Squared error of the velocity, for each row [B]. Unweighted, every step of the student counts about alike in
    the picture: an error at t reaches it times (step's width) / (1 - next t)."""
    v = velocity(model, made.x, made.t, found.context, found.references)
    return (v.float() - made.target).square().mean((1, 2))


def student(model: nn.Module, found: Trajectories, knots: torch.Tensor) -> Latents:
    """What the student draws from the trajectories' noise."""
    noise = Latents(found.tokens[:, 0], found.height, found.width)
    return sample(model, noise, knots, found.context, found.references)


def distance(model: nn.Module, found: Trajectories, knots: torch.Tensor) -> torch.Tensor:
    """Squared distance of the student's pictures from the teacher's, over the teacher's own square, for each row."""
    end = found.tokens[:, -1]
    drawn = student(model, found, knots)
    return (drawn.tokens.float() - end).square().sum((1, 2)) / end.square().sum((1, 2))


class Trainer:
    """A student on its device, its optimizer and its average, under a run. `held` is measured, `items` learned."""

    def __init__(self, config: DistillConfig, run: Run, folder: Folder, archive: Archive, made: Sequence[Item]) -> None:
        self.config, self.run, self.folder, self.archive = config, run, folder, archive
        self.held, self.items = made[: config.held], made[config.held :]
        self.plan = Plan(self.items, config.batch, config.micro, config.run.seed)
        self.transformer = load_transformer(folder, run.device, torch.float32, run.mesh())
        self.model: nn.Module = self.transformer
        self.optimizer = config.optim.build(list(self.transformer.parameters()))
        run.keep("weights", Weights(self.transformer))
        run.keep("adamw", OptimizerState(self.optimizer))
        self.average = Average({"transformer": self.transformer}, config.optim.ema) if config.optim.ema else None
        if self.average:
            run.keep("ema", self.average)

    def draw(self) -> None:
        """Let the teacher, which the weights still are, draw what is not there yet."""
        batches = self.archive.missing([*self.held, *self.items])
        self.run.accelerator.wait_for_everyone()
        told = began = time.monotonic()
        for done, rows in enumerate(teacher.own(batches, self.run.process, self.run.processes)):
            with self.run.autocast():
                self.archive.draw(self.transformer, rows)
            now, total = time.monotonic(), -(-len(batches) // self.run.processes)
            if now - told >= self.config.run.report_seconds:
                told, left = now, (now - began) / (done + 1) * (total - done - 1)
                self.run.say(f"the teacher draws: batch {done + 1}/{total}  left {duration(left)}")
        self.show("base")
        self.archive.encodings.close()
        self.run.accelerator.wait_for_everyone()

    @torch.no_grad()
    def show(self, name: str) -> None:
        """RUN/sheets/NAME.png: what the weights draw for the first held prompts, next to the teacher's pictures."""
        shown, decode = self.held[:_SHOWN], self.archive.encodings.encoders.decode
        pairs: list[tuple[Image.Image, Image.Image]] = []
        for item in shown:
            found = self.archive.read([item], self.run.device)
            with self.run.autocast():
                made = student(self.transformer, found, self.archive.knots)
            pairs.append((decode(made.like(found.tokens[:, -1]))[0], decode(made)[0]))
        released(self.transformer)
        if self.run.main:
            path = self.run.folder / "sheets" / f"{name}.png"
            path.parent.mkdir(exist_ok=True)
            teachers, own = zip(*pairs, strict=True)
            figures.sheet([item.prompt.text for item in shown], {"teacher": teachers, name: own}).save(path)

    def train(self) -> None:
        if self.config.gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()
        model, total = self.run.copied(self.transformer), self.plan.steps(self.config.epochs)
        for number in self.run.steps(total):
            values = self._measured() if number == 0 else {}
            values |= self._step(model, number)
            if (number + 1) % self.config.measure_every == 0 or number + 1 == total:
                values |= self._measured()
            self.run.log(values)

    def _step(self, model: nn.Module, number: int) -> dict[str, float]:
        """One update. Returns the loss, whole and by the student's step, the gradient's norm and the rate."""
        micros, rows = self.plan.share(number, self.run.process, self.run.processes)
        sums = torch.zeros(2, self.config.steps, device=self.run.device)
        for n, places in enumerate(micros):
            found = self.archive.read([self.items[p.item] for p in places], self.run.device)
            made = samples(found, self.archive.knots, *self._chosen(places))
            with self.run.autocast():
                each = loss(model, made, found)
            self.run.backward(each.sum() / rows, model, last=n == len(micros) - 1)
            window = made.window.to(each.device)
            sums.index_add_(1, window, torch.stack([each.detach(), torch.ones_like(each)]))
        norm = self.run.update(self.optimizer, self.config.optim)
        if self.average:
            self.average.update()
        by_step = [(self.run.sum(error), self.run.sum(count)) for error, count in sums.T]
        values = {"loss": sum(error for error, _ in by_step) / rows}
        values |= {f"loss_{n + 1}": error / count for n, (error, count) in enumerate(by_step) if count}
        return {**values, "gradient": norm, "lr": self.optimizer.param_groups[0]["lr"]}

    def _chosen(self, places: Sequence[Place]) -> tuple[torch.Tensor, torch.Tensor]:
        """Which of the student's steps each row learns, in turn over the epochs, and where in it."""
        seed, steps = self.config.run.seed, self.config.steps
        windows, shares = [], []
        for place in places:
            first = int(torch.randint(steps, (1,), generator=generator(seed, "window", place.item)))
            chance, share = torch.rand(2, generator=generator(seed, "share", place.epoch, place.item)).tolist()
            windows.append((first + place.epoch) % steps)
            shares.append(share if chance < self.config.inside else 0.0)
        return torch.tensor(windows), torch.tensor(shares)

    @torch.no_grad()
    def _measured(self) -> dict[str, float]:
        """The mean distance over the held trajectories, with the weights that would be published."""
        shapes: dict[tuple[object, ...], list[Item]] = {}
        for item in self.held:
            shapes.setdefault(item.shape, []).append(item)
        size = self.config.micro
        batches = [rows[n : n + size] for rows in shapes.values() for n in range(0, len(rows), size)]
        total = torch.zeros((), device=self.run.device)
        with published(self.average), self.run.autocast():
            for rows in batches:
                found = self.archive.read(rows, self.run.device)
                total += distance(self.transformer, found, self.archive.knots).sum()
            released(self.transformer)
        return {"distance": float(total) / len(self.held)}

    def publish(self, out: Path) -> None:
        """RUN/model, with the averaged weights where the recipe has an average."""
        with published(self.average):
            self.show("student")
            state = self.transformer.state_dict()
            weights = collect(state.items(), stored_dtype(self.folder), self.run.main)
        if self.run.main:
            drawing = {"steps": self.config.steps, "guidance": 1.0}
            self._curve(out)
            publish(self.folder, weights, out / "model", {"is_distilled": True}, drawing)

    def _curve(self, out: Path) -> None:
        """RUN/curve.png: the distance to the teacher's pictures, and the loss of each of the student's steps."""
        steps = {f"loss_{n + 1}": f"step {n + 1}" for n in range(self.config.steps)}
        held = ("Held trajectories", Axis("update"), Axis("distance"), {"distance": ""})
        learned = ("Velocity of the student's steps", Axis("update"), Axis("squared error", log=True), steps)
        figures.curves(out / "log.csv", "Distillation", held, learned).save(out / "curve.png")


def prompts(config: DistillConfig, data: Path | None) -> list[teacher.Prompt]:
    if data:
        return teacher.dataset_prompts(data)
    count = config.teacher.trajectories + config.held
    return teacher.world_prompts(config.world, count, config.run.seed, config.teacher.width)


def start(config: DistillConfig, model: str, data: Path | None, out: Path) -> Path:
    """Draw, train, and write the klein folder; returns it. Raises SettingError for a model that is distilled."""
    folder = find(model)
    check_architecture(folder)
    if folder.distilled:
        raise SettingError(f"{folder.path} is distilled already.", "Name the base model that it was made from.")
    with Run(config.run, out, {**plain(config), "model": model, "data": str(data) if data else ""}) as run:
        cache = Cache(out / "teacher")
        encodings = Encodings(folder, run.device, choose_dtype("auto", run.device), cache)
        made = teacher.items(prompts(config, data), config.teacher.trajectories + config.held, encodings.encoders)
        archive = Archive(cache, encodings, config.teacher, config.steps, config.run.seed)
        trainer = Trainer(config, run, folder, archive, made)
        trainer.draw()
        trainer.train()
        trainer.publish(out)
        run.accelerator.wait_for_everyone()
        run.say(f"wrote {out / 'model'}: {config.steps} steps without guidance")
    return out / "model"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.distill", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", type=Path, required=True, help="see training/recipes/distill*.yaml")
    parser.add_argument("--model", required=True, help="the base's klein folder, in diffusers' layout, or a hub id")
    parser.add_argument("--data", type=Path, help="a dataset of python -m training.data (default: the built-in world)")
    parser.add_argument("--out", type=Path, required=True, help="the run's folder; an earlier run there goes on")
    options = parser.parse_args()
    try:
        start(load(options.recipe, DistillConfig), options.model, options.data, options.out)
    except ClvrError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
