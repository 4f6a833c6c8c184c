"""Throughput of SFT and of Proxy Prompt RL at tiny size, against plain diffusers loops that do the same work.

    python -m benchmarks.train                 the built-in model; minutes
    python -m benchmarks.train --quick         a few samples; the same tables
    python -m benchmarks.train --out docs/results/train.md

SFT: the same micro-batches go through training.sft_dit, whose encodings lie in its cache, and through a loop as
diffusers' training scripts write it, which encodes texts and pictures in every step. RL: rollouts of the same tasks by
training.pprl and by Flux2KleinPipeline, a group a call; rewards are measured in the built-in world, then slowed to
what a reward server takes. Everything runs in one process, one after the other: compare ratios.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import random
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from diffusers import Flux2KleinPipeline
from PIL import Image

from clvr import builtin
from clvr.devices import choose_device
from clvr.flux2.folder import Folder, find
from clvr.flux2.loading import silence
from clvr.images import load_image
from clvr.ports import Proxy
from training import trackers
from training.buckets import Item, Picture, Plan
from training.data import engine
from training.data.config import CastConfig, EngineConfig, PromptConfig, RuleConfig
from training.data.records import read
from training.klein import Klein
from training.latent_cache import Cache, Encodings
from training.policy import Lora
from training.pprl import NFT, PPRLConfig, Trainer
from training.proxy import WorldTeacher
from training.rewards import MeasuredEdit, MeasuredScene, ProxyReward, Scorer
from training.rollouts import Drawing
from training.runs import OptimConfig, Run, RunConfig
from training.sft_dit import Feed, SFTConfig, items
from training.sft_dit import Trainer as SFTTrainer
from training.tasks import Task, World, mixed

QUIET = RunConfig(precision="fp32", checkpoint_every=10_000, report_seconds=1e9)


def trajectories(folder: Path, prompts: int) -> None:
    """A small dataset of the data engine's."""
    config = EngineConfig(
        prompts=PromptConfig(world=prompts, categories={"position": 1}),
        cast=CastConfig(steps=6, batch=prompts),
        rules=RuleConfig(rounds=4),
    )
    engine.run(config, folder, lambda line: None)


class Clocked(Run):
    """Knows when each step was done. A run's first step is slow, and is left out of rates."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        super().__init__(config, folder, {})
        self.times: list[float] = []

    def log(self, values: Mapping[str, float]) -> None:
        super().log(values)
        self.times.append(time.perf_counter())


def ours(config: SFTConfig, folder: Folder, plan: Plan[Item], encodings: Encodings, out: Path) -> tuple[float, float]:
    """Samples a second of training.sft_dit, and seconds that filling its cache took."""
    run = Clocked(config.run, out)
    with run:
        feed = Feed(config, plan, encodings, run.device, folder.sampling.steps)
        began = time.perf_counter()
        feed.fill(0, 1)
        filled = time.perf_counter() - began
        SFTTrainer(config, run, folder, feed).train()
        return _samples(config, plan) / (run.times[-1] - run.times[0]), filled


def plain(config: SFTConfig, folder: Folder, plan: Plan[Item], device: torch.device) -> float:
    """Samples a second of a loop as diffusers' training scripts write it."""
    pipeline: Any = Flux2KleinPipeline.from_pretrained(folder.path, dtype=torch.float32).to(device)
    transformer = pipeline.transformer.train()
    optimizer = torch.optim.AdamW(transformer.parameters(), config.optim.lr)
    began = 0.0
    for number in range(config.steps or 0):
        micros, count = plan.share(number, 0, 1)
        for places in micros:
            rows = [plan.items[place.item] for place in places]
            (_loss(pipeline, folder, rows, device) * len(rows) / count).backward()
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), config.optim.clip)
        optimizer.step()
        optimizer.zero_grad()
        began = began or time.perf_counter()
    return _samples(config, plan) / (time.perf_counter() - began)


def _samples(config: SFTConfig, plan: Plan[Item]) -> int:
    """Of all steps but the first."""
    return sum(plan.share(number, 0, 1)[1] for number in range(1, config.steps or 0))


def _loss(pipeline: Any, folder: Folder, rows: Sequence[Item], device: torch.device) -> torch.Tensor:  # noqa: ANN401
    with torch.no_grad():
        context, text_ids = pipeline.encode_prompt(
            [row.text for row in rows],
            device,
            max_sequence_length=rows[0].length,
            text_encoder_out_layers=folder.sampling.text_encoder_out_layers,
        )
        target = _encoded(pipeline, [row.target for row in rows], device)
        pictures = zip(*(row.references for row in rows), strict=True)
        references = [_encoded(pipeline, column, device) for column in pictures]
    ids = pipeline._prepare_latent_ids(target).to(device)
    if references:
        ids = torch.cat(
            [ids, pipeline._prepare_image_ids([r[:1] for r in references]).to(device).expand(len(rows), -1, -1)], 1
        )
    x0 = pipeline._pack_latents(target)
    noise, t = torch.randn_like(x0), torch.rand(len(rows), device=device)
    noisy = torch.lerp(x0, noise, t[:, None, None])
    found = pipeline.transformer(
        hidden_states=torch.cat([noisy, *(pipeline._pack_latents(r) for r in references)], 1),
        encoder_hidden_states=context,
        timestep=t,
        img_ids=ids,
        txt_ids=text_ids,
        guidance=None,
        return_dict=False,
    )[0][:, : x0.shape[1]]
    return torch.nn.functional.mse_loss(found, noise - x0)


def _encoded(pipeline: Any, pictures: Sequence[Picture], device: torch.device) -> torch.Tensor:  # noqa: ANN401
    images = [pipeline.image_processor.preprocess(load_image(picture.path)) for picture in pictures]
    return pipeline._encode_vae_image(torch.cat(images).to(device), generator=None)


class Timed:
    """A reward that takes `delay` seconds more, as a server's would; `seconds` is what all calls took together."""

    def __init__(self, delay: float) -> None:
        self.delay, self.seconds, self._lock = delay, 0.0, threading.Lock()
        self._reward = ProxyReward(MeasuredScene(), MeasuredEdit())

    def score(self, image: Image.Image, proxy: Proxy, history: Mapping[str, Image.Image]) -> float:
        began = time.perf_counter()
        time.sleep(self.delay)
        try:
            return self._reward.score(image, proxy, history)
        finally:
            with self._lock:
                self.seconds += time.perf_counter() - began


@dataclasses.dataclass(frozen=True)
class Rates:
    """Pictures a second, drawn and learned; seconds by phase, and what the rewards took all together."""

    drawn: float
    learned: float
    draw: float
    wait: float
    update: float
    rewards: float

    def line(self, name: str) -> str:
        whole = self.draw + self.wait + self.update
        shares = " | ".join(f"{100 * part / whole:.0f} %" for part in (self.draw, self.wait, self.update))
        hidden = max(0.0, 1 - self.wait / self.rewards) if self.rewards else 1.0
        rates = f"{self.drawn:.2f} | {self.learned:.2f}"
        return f"| {name} | {rates} | {shares} | {self.rewards:.1f} s | {100 * hidden:.0f} % |"


def rl(config: PPRLConfig, model: Path, delay: float, out: Path) -> Rates:
    """The first epoch is left out: it warms up."""
    with Run(config.run, out, {}) as run:
        klein = Klein.open(model, run.device)
        trainer = Trainer(config, run, klein, World(), WorldTeacher())
        trainer.scorer.close()
        reward: Any = Timed(delay)
        trainer.scorer = Scorer(reward, config.reward.workers)
        trainer.train()
    rows = trackers.read(out / "log.csv")[1:]
    draw, wait, update = (sum(float(row[name]) for row in rows) for name in ("draw_s", "wait_s", "update_s"))
    count = len(rows) * config.groups * config.group
    return Rates(count / draw, count / update, draw, wait, update, reward.seconds * len(rows) / config.epochs)


def pipeline_rollouts(config: PPRLConfig, folder: Folder, device: torch.device) -> float:
    """Pictures a second of a call of the pipeline for each task."""
    pipeline: Any = Flux2KleinPipeline.from_pretrained(folder.path, dtype=torch.float32).to(device)
    pipeline.set_progress_bar_config(disable=True)
    drawing, tasks = config.drawing, list(islice(_tasks(), config.groups))
    began = time.perf_counter()
    for task in tasks:
        pipeline(
            prompt=task.text,
            image=list(task.pictures) or None,
            num_inference_steps=drawing.steps,
            guidance_scale=drawing.guidance,
            num_images_per_prompt=config.group,
            width=drawing.width,
            height=drawing.height,
            max_sequence_length=128,
            text_encoder_out_layers=folder.sampling.text_encoder_out_layers,
        )
    return len(tasks) * config.group / (time.perf_counter() - began)


def _tasks() -> Iterator[Task]:
    return mixed(World(), random.Random(0))


def measure_sft(quick: bool, folder: Folder, device: torch.device, work: Path) -> list[str]:
    trajectories(work / "data", 2 if quick else 16)
    config = SFTConfig(
        steps=3 if quick else 12, batch=4 if quick else 16, micro=4 if quick else 16, caption_dropout=0.0,
        gradient_checkpointing=False, optim=OptimConfig(lr=1e-5), run=QUIET,
    )  # fmt: skip
    encodings = Encodings(folder, device, torch.float32, Cache(work / "cache"))
    made, _ = items(read(work / "data"), encodings.encoders)
    plan = Plan(made, config.batch, config.micro, 0)
    theirs = plain(config, folder, plan, device)
    mine, filled = ours(config, folder, plan, encodings, work / "sft")
    return [
        "## SFT of the DiT",
        "",
        f"{config.steps} steps of {config.batch} samples at most, {len(made)} samples of "
        f"{len({i.shape for i in made})} shapes. Encoding all of them once took {filled:.1f} s.",
        "",
        "| loop | samples a second | |",
        "| --- | --- | --- |",
        f"| plain diffusers, encoding in every step | {theirs:.2f} | 1 |",
        f"| training.sft_dit | {mine:.2f} | {mine / theirs:.2f} |",
    ]


def measure_rl(quick: bool, folder: Folder, device: torch.device, work: Path) -> list[str]:
    config = PPRLConfig(
        epochs=2 if quick else 4, groups=2 if quick else 8, group=4 if quick else 16, updates=2, teacher="world",
        sheet_every=10_000, run=QUIET, lora=Lora(16, 32), nft=NFT(times=2),
        drawing=Drawing(64, 64, 2 if quick else 8, 4.0, 16),
    )  # fmt: skip
    fast = rl(config, folder.path, 0.0, work / "fast")
    delay = 0.5 * config.reward.workers / fast.drawn
    slow = rl(config, folder.path, delay, work / "slow")
    theirs = pipeline_rollouts(config, folder, device)
    return [
        "## Proxy Prompt RL",
        "",
        f"Groups of {config.group}, {config.groups} an epoch, {config.drawing.steps} steps at guidance "
        f"{config.drawing.guidance:g}, {config.nft.times} noise levels a picture. {config.reward.workers} rewards at a "
        f"time; the slowed ones take {delay:.2f} s each, half of what drawing takes. Hidden: share of the rewards' "
        "seconds in which the device draws or learns.",
        "",
        "| rewards | drawn a second | learned a second | drawing | waiting | learning | rewards took | hidden |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        fast.line("measured"),
        slow.line(f"slowed by {delay:.2f} s"),
        "",
        f"Flux2KleinPipeline, one call a group: {theirs:.2f} pictures a second; training.pprl draws "
        f"{fast.drawn / theirs:.2f} times as many.",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=builtin.PATH)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, help="also write the tables here")
    options = parser.parse_args(arguments)
    silence()
    device, folder = choose_device(options.device), find(options.model)
    with tempfile.TemporaryDirectory() as name:
        lines = [
            "# Throughput of training at tiny size",
            "",
            f"The built-in model, fp32, {device}, {torch.get_num_threads()} threads, {platform.machine()}, "
            f"torch {torch.__version__}. Made by `python -m benchmarks.train{' --quick' if options.quick else ''}`.",
            "",
            *measure_sft(options.quick, folder, device, Path(name)),
            "",
            *measure_rl(options.quick, folder, device, Path(name)),
        ]
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
