"""SFT of a klein's DiT on verified trajectories (A.6): an n-step trajectory is n samples, c_t and references -> x_t.

    python -m training.sft_dit --recipe training/recipes/sft_dit_builtin.yaml --data DATASET --model MODEL --out RUN
    accelerate launch --num_processes 8 -m training.sft_dit --recipe training/recipes/sft_dit_4b.yaml …

RUN/model is a klein folder with the trained weights (their average, where the recipe has one); under a LoRA
RUN/lora holds it alone too. RUN/curve.png shows the losses, RUN/sheet.png what is drawn for samples that were kept
from training. A second call goes on where the first one stopped, with the same losses.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig
from PIL import Image
from torch import nn

from clvr.chart import Axis
from clvr.devices import choose_dtype
from clvr.errors import ClvrError, ImageError, MissingFileError, SettingError
from clvr.flux2.folder import Folder, find
from clvr.flux2.limits import TOKEN, scaled
from clvr.flux2.loading import check_architecture, silence

from . import figures
from .buckets import Item, Picture, Place, Plan
from .checkpoints import OptimizerState, Weights
from .data.records import Record, read
from .klein import Encoders, Latents, TextContext, lora_targets, sample, shifted, sigmas, velocity
from .latent_cache import Cache, Encodings, digest_of_file
from .optim import Average, published
from .policy import Lora
from .publishing import collect, fused, publish, save_lora, stored_dtype
from .recipe import load, plain
from .runs import PRECISIONS, OptimConfig, Run, RunConfig, generator
from .sharding import load_transformer, released

ADAPTER = "default"
_SHOWN = 10
"""Samples of a sheet."""


@dataclass(frozen=True)
class SFTConfig:
    """SFT of the DiT.

    epochs: passes over the dataset; steps: instead of epochs, where it is given. batch: samples of a step on all
    processes together; micro: of one forward. timesteps: uniform, or shifted as the sampler's schedule is.
    caption_dropout: share of texts that are replaced by "", which guidance needs. mask_padding: keep padding
    from being attended, which the generators do not. lora: train adapters instead of all weights. held: trajectories
    at the dataset's end that are kept from training; the loss on them is measured every `measure_every` steps, at
    the same times and with the same noise.
    gradient_checkpointing: compute activations twice instead of keeping them. cache: keep encodings on disk, and
    the encoders out of memory while training."""

    epochs: int = 3
    steps: int | None = None
    batch: int = 8
    micro: int = 1
    timesteps: Literal["shifted", "uniform"] = "shifted"
    caption_dropout: float = 0.1
    mask_padding: bool = False
    gradient_checkpointing: bool = True
    cache: bool = True
    lora: Lora | None = None
    held: int = 0
    measure_every: int = 200
    optim: OptimConfig = OptimConfig()
    run: RunConfig = RunConfig()

    def __post_init__(self) -> None:
        if self.held < 0 or self.measure_every < 1:
            raise SettingError(
                f"held {self.held} and measure_every {self.measure_every} cannot work.", "From 0, and from 1."
            )
        if self.lora is not None and self.run.shard:
            raise SettingError(
                "A LoRA is not trained over weights that processes share.",
                "Leave run.shard out: under a LoRA the frozen weights are held in bf16, 18 GB of the 9B.",
            )


@dataclass(frozen=True)
class Batch:
    """Rows of one shape. t [B] and noise like the target's tokens, both drawn for each row by itself."""

    target: Latents
    references: tuple[Latents, ...]
    context: TextContext
    t: torch.Tensor
    noise: torch.Tensor

    @property
    def size(self) -> int:
        return len(self.t)


def items(records: Iterable[Record], encoders: Encoders) -> tuple[list[Item], int]:
    """The samples of a dataset, and how many were left out because their text is longer than is read.

    Raises FormatError, MissingFileError and ImageError, which name the file and the line."""
    made, left_out = [], 0
    seen: dict[Path, Picture] = {}
    for record in records:
        lengths = encoders.lengths([step.context for step in record.steps]) if record.steps else []
        for step, length in zip(record.steps, lengths, strict=True):
            if length > encoders.limit:
                left_out += 1
                continue
            target, *references = (_picture(record, i, seen) for i in (step.target, *step.references))
            made.append(Item(step.context, length, target, tuple(references)))
    return made, left_out


def _picture(record: Record, index: int, seen: dict[Path, Picture]) -> Picture:
    path = record.path(index)
    if path not in seen:
        digests = record.provenance.digests
        digest = digests[index] if len(digests) == len(record.images) else digest_of_file(path)
        width, height = scaled(Image.new("1", _size(record, path))).size
        seen[path] = Picture(path, digest, height // TOKEN, width // TOKEN)
    return seen[path]


def _size(record: Record, path: Path) -> tuple[int, int]:
    """Pixels of an upright picture, from its file's header."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112, 1) >= 5
            return (image.height, image.width) if turned else image.size
    except FileNotFoundError:
        raise MissingFileError(f"{record.place}: There is no image {path}.", "Check the dataset.") from None
    except OSError as error:
        raise ImageError(f"{record.place}: {path} cannot be read: {error}.", "Export the dataset again.") from error


class Feed:
    """Batches of a plan: encodings from the cache or the encoders, and what is random from the seed."""

    def __init__(self, config: SFTConfig, plan: Plan, encodings: Encodings, device: torch.device, steps: int) -> None:
        self.config, self.plan, self.encodings, self.device = config, plan, encodings, device
        self.sampler_steps = steps

    def fill(self, process: int, processes: int) -> None:
        """Encode this process's share of everything that the cache lacks."""
        chosen = self.plan.items
        texts = sorted({(i.text, i.length) for i in chosen} | {("", i.length) for i in chosen})
        pictures = {p.digest: p for i in chosen for p in (i.target, *i.references)}
        for text, length in texts[process::processes]:
            self.encodings.text(text, length)
        for digest in sorted(pictures)[process::processes]:
            self.encodings.picture(pictures[digest])

    def batch(self, places: Sequence[Place]) -> Batch:
        rows = [self._row(place) for place in places]
        references = zip(*(row.references for row in rows), strict=True)
        states = torch.cat([row.context.states for row in rows])
        mask = torch.cat([row.context.mask for row in rows])
        return Batch(
            _stacked([row.target for row in rows], self.device),
            tuple(_stacked(list(column), self.device) for column in references),
            TextContext(states, mask).to(self.device),
            torch.cat([row.t for row in rows]).to(self.device),
            torch.cat([row.noise for row in rows]).to(self.device),
        )

    def _row(self, place: Place) -> Batch:
        item = self.plan.items[place.item]
        draws = generator(self.plan.seed, "sample", place.epoch, place.item)
        dropped, t = (torch.rand(1, generator=draws) for _ in range(2))
        target = self.encodings.picture(item.target)
        noise = torch.randn(target.tokens.shape, generator=draws)
        if self.config.timesteps == "shifted":
            t = shifted(t, self.sampler_steps, target.tokens.shape[1])
        text = "" if float(dropped) < self.config.caption_dropout else item.text
        references = tuple(self.encodings.picture(p) for p in item.references)
        return Batch(target, references, self.encodings.text(text, item.length), t, noise)


def _stacked(rows: list[Latents], device: torch.device) -> Latents:
    return rows[0].like(torch.cat([row.tokens for row in rows]).to(device).float())


def loss(model: nn.Module, batch: Batch, mask_padding: bool = False) -> torch.Tensor:
    """Flow matching: the squared error of v against eps - x0 at x_t = (1 - t) x0 + t eps, for each row [B]."""
    noisy = torch.lerp(batch.target.tokens, batch.noise, batch.t[:, None, None])
    found = velocity(model, batch.target.like(noisy), batch.t, batch.context, batch.references, mask_padding)
    return (found.float() - (batch.noise - batch.target.tokens)).square().mean((1, 2))


class Trainer:
    """A transformer on its device, its optimizer and its average, under a run. `feed` is learned, `held` measured."""

    def __init__(self, config: SFTConfig, run: Run, folder: Folder, feed: Feed, held: Feed | None = None) -> None:
        self.config, self.run, self.folder, self.feed, self.held = config, run, folder, feed, held
        dtype = torch.float32 if config.lora is None else PRECISIONS[config.run.precision]
        self.transformer = load_transformer(folder, run.device, dtype, run.mesh())
        if config.lora is not None:
            add_lora(self.transformer, config.lora, config.run.seed)
        if config.gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()
        self.transformer.train()
        self.model = run.copied(self.transformer)
        self.optimizer = config.optim.build([p for p in self.transformer.parameters() if p.requires_grad])
        run.keep("weights", Weights(self.transformer))
        run.keep("adamw", OptimizerState(self.optimizer))
        self.average = Average({"transformer": self.transformer}, config.optim.ema) if config.optim.ema else None
        if self.average:
            run.keep("ema", self.average)

    def train(self) -> None:
        plan, config = self.feed.plan, self.config
        total = config.steps or plan.steps(config.epochs)
        for number in self.run.steps(total):
            before = self._measured() if number == 0 else {}
            micros, samples = plan.share(number, self.run.process, self.run.processes)
            value = torch.zeros((), device=self.run.device)
            for n, places in enumerate(micros):
                batch = self.feed.batch(places)
                with self.run.autocast():
                    share = loss(self.model, batch, config.mask_padding).sum() / samples
                self.run.backward(share, self.model, last=n == len(micros) - 1)
                value += share.detach()
            norm = self.run.update(self.optimizer, config.optim)
            if self.average:
                self.average.update()
            rate = self.optimizer.param_groups[0]["lr"]
            values = {"loss": self.run.sum(value), "gradient": norm, "lr": rate, **before}
            if (number + 1) % config.measure_every == 0 or number + 1 == total:
                values |= self._measured()
            self.run.log(values)

    @torch.no_grad()
    def _measured(self) -> dict[str, float]:
        """The mean loss on the held samples, of the weights that would be published."""
        if self.held is None:
            return {}
        total, plan = torch.zeros((), device=self.run.device), self.held.plan
        with published(self.average), self.run.autocast():
            for places in plan.once():
                total += loss(self.transformer, self.held.batch(places), self.config.mask_padding).sum()
            released(self.transformer)
        return {"held": float(total) / len(plan.items)}

    @torch.no_grad()
    def show(self, out: Path) -> None:
        """OUT/curve.png, and OUT/sheet.png: held targets, and what the weights draw in their place."""
        loss_ = ("Velocity", Axis("step"), Axis("squared error", log=True), {"loss": "trained on", "held": "held"})
        if self.run.main:
            figures.curves(out / "log.csv", "SFT of the DiT", loss_).save(out / "curve.png")
        if self.held is None:
            return
        feed, sampling = self.held, self.folder.sampling
        decode = feed.encodings.encoders.decode
        texts: list[str] = []
        pairs: list[tuple[Image.Image, Image.Image]] = []
        for number, item in enumerate(feed.plan.items[:_SHOWN]):
            one = feed.batch((Place(0, number),))
            levels = sigmas(self.folder, sampling.steps, one.target.tokens.shape[1])
            negative = feed.encodings.text("", item.length).to(self.run.device) if sampling.guidance > 1 else None
            drawn = sample(self.transformer, one.target.like(one.noise), levels, one.context, one.references,
                           sampling.guidance, negative)  # fmt: skip
            texts.append(item.text)
            pairs.append((decode(one.target)[0], decode(drawn)[0]))
        released(self.transformer)
        if self.run.main:
            targets, own = zip(*pairs, strict=True)
            figures.sheet(texts, {"target": targets, "drawn": own}).save(out / "sheet.png")

    def publish(self, out: Path) -> None:
        """RUN/model, RUN/lora under a LoRA, and what `show` draws."""
        lora = self.config.lora is not None
        with published(self.average):
            state: Mapping[str, torch.Tensor] = fused(self.transformer) if lora else self.transformer.state_dict()
            weights = collect(state.items(), stored_dtype(self.folder), self.run.main)
            if self.run.main:
                publish(self.folder, weights, out / "model")
                if lora:
                    save_lora(self.transformer, ADAPTER, out / "lora")
            with self.run.autocast():
                self.show(out)


def add_lora(transformer: Any, lora: Lora, seed: int) -> None:  # noqa: ANN401
    """Adapters on every matrix of the blocks, in fp32, without effect at first; the rest is frozen."""
    transformer.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=lora_targets(transformer))
        transformer.add_adapter(config, ADAPTER)
    for name, parameter in transformer.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()


def start(config: SFTConfig, model: str, data: Path, out: Path) -> Path:
    """Train, and write the klein folder; returns it."""
    silence()
    folder = find(model)
    check_architecture(folder)
    with Run(config.run, out, {**plain(config), "model": model, "data": str(data)}) as run:
        cache = Cache(out / "cache") if config.cache else None
        dtype = choose_dtype("auto", run.device)
        encodings = Encodings(folder, run.device, dtype, cache)
        records = list(read(data))
        cut = len(records) - config.held
        if cut < 1:
            raise SettingError(
                f"held is {config.held}, and {data} has {len(records)} trajectories.", "Keep fewer from training."
            )
        made, left_out = items(records[:cut], encodings.encoders)
        if left_out:
            run.say(f"left out: {left_out} samples whose text is longer than {encodings.encoders.limit} tokens")
        plan = Plan(made, config.batch, config.micro, config.run.seed)
        run.say(f"{len(made)} samples in {len({i.shape for i in made})} buckets, on {run.processes} processes")
        feed = Feed(config, plan, encodings, run.device, folder.sampling.steps)
        kept, _ = items(records[cut:], encodings.encoders)
        held = None
        if kept:
            measured = dataclasses.replace(config, caption_dropout=0.0)
            held_plan = Plan(kept, config.micro, config.micro, config.run.seed)
            held = Feed(measured, held_plan, encodings, run.device, folder.sampling.steps)
        if cache:
            for one in (feed, held) if held else (feed,):
                one.fill(run.process, run.processes)
            run.accelerator.wait_for_everyone()
            encodings.close()
        trainer = Trainer(config, run, folder, feed, held)
        trainer.train()
        trainer.publish(out)
        run.accelerator.wait_for_everyone()
        run.say(f"wrote {out / 'model'}")
    return out / "model"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.sft_dit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", type=Path, required=True, help="see training/recipes/sft_dit*.yaml")
    parser.add_argument("--data", type=Path, required=True, help="a dataset of python -m training.data")
    parser.add_argument("--model", required=True, help="a klein folder in diffusers' layout, or a hub id")
    parser.add_argument("--out", type=Path, required=True, help="the run's folder; an earlier run there goes on")
    options = parser.parse_args()
    try:
        start(load(options.recipe, SFTConfig), options.model, options.data, options.out)
    except ClvrError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
