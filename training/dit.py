"""Flow matching for the built-in DiT and its text encoder, with exact resume."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import Qwen2Tokenizer, Qwen3ForCausalLM

from .config import BuiltinConfig
from .model import embed, make_text_encoder, make_transformer, tokenize
from .optim import Average, Muon, flatten, schedule, split, unflatten
from .sampling import Sampler, ids_of
from .sheets import curves, sheet
from .world import FACTS, Batch, Encoder, batches, held_out, samples


@dataclass
class Position:
    """Where a run stands: samples seen, optimizer steps, the shard in work and the batch in it."""

    samples: int = 0
    steps: int = 0
    shard: int = 0
    batch: int = 0
    seconds: float = 0.0


def times(count: int, shift: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """Flow times in (0, 1), 1 is noise: uniform u bent to s u / (1 + (s - 1) u); a fifth stay uniform."""
    u = torch.rand(count, generator=generator) * 0.999 + 5e-4
    bent = shift * u / (1 + (shift - 1) * u)
    return torch.where(torch.rand(count, generator=generator) < 0.2, u, bent)


class Trainer:
    """Everything that a run holds. `run` trains until the configured samples are seen."""

    def __init__(self, config: BuiltinConfig, vae: AutoencoderKLFlux2, tokenizer: Qwen2Tokenizer, folder: Path) -> None:
        self.config = config
        self.folder = folder
        self.tokenizer = tokenizer
        self.encoder = Encoder(vae, config.resolution)
        torch.manual_seed(config.data.seed)
        context = config.text.hidden * len(config.text.out_layers)
        self.text: Qwen3ForCausalLM = make_text_encoder(config.text, len(tokenizer))
        self.transformer: Flux2Transformer2DModel = make_transformer(config.dit, context)
        self.probe = nn.Linear(context, FACTS)
        torch.nn.init.zeros_(self.transformer.proj_out.weight)
        o = config.optim
        matrices, rest = split(self.transformer)
        self.muon = Muon(matrices, lr=o.muon_lr)
        self.adam = torch.optim.AdamW(
            [
                {"params": rest, "lr": o.adam_lr},
                {"params": [*self.text.parameters(), *self.probe.parameters()], "lr": o.text_lr},
            ],
            betas=(0.9, 0.98),
            weight_decay=0.01,
        )
        self.rates = [(opt, n, g["lr"]) for opt in (self.muon, self.adam) for n, g in enumerate(opt.param_groups)]
        self.average = Average({"transformer": self.transformer, "text": self.text}, o.ema)
        self.at = Position()
        self.empty = tokenize(tokenizer, "")
        self.forward = torch.compile(self.transformer, dynamic=True) if o.compile else self.transformer

    def loss(self, batch: Batch, generator: torch.Generator | None = None, dropout: float = 0.0) -> torch.Tensor:
        """Mean squared error of the velocity eps - x0 over the target's tokens."""
        return self._velocity_error(batch, self._context(batch, dropout), generator)

    def _context(self, batch: Batch, dropout: float = 0.0) -> torch.Tensor:
        ids, mask = self._drop(batch, dropout)
        return embed(self.text, ids, mask, self.config.text.out_layers)

    def _velocity_error(
        self, batch: Batch, context: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        t = times(batch.size, self.config.optim.shift, generator)
        noise = torch.randn(batch.target.shape, generator=generator)
        noisy = torch.lerp(batch.target, noise, t[:, None, None])
        side = int(batch.target.shape[1] ** 0.5)
        text_ids, image_ids = ids_of(context.shape[1], side, batch.references.shape[1] // side**2)
        predicted = self.forward(
            hidden_states=torch.cat([noisy, batch.references], 1),
            encoder_hidden_states=context,
            timestep=t,
            img_ids=image_ids[None],
            txt_ids=text_ids[None],
            guidance=None,
            return_dict=False,
        )[0][:, : batch.target.shape[1]]
        return F.mse_loss(predicted, noise - batch.target)

    def _drop(self, batch: Batch, share: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask with a share of the prompts replaced by the empty one (the references stay)."""
        if not share:
            return batch.ids, batch.mask
        dropped = torch.rand(batch.size) < share
        ids, mask = batch.ids.clone(), batch.mask.clone()
        length = ids.shape[1]
        empty = self.empty + [self.tokenizer.pad_token_id] * (length - len(self.empty))
        ids[dropped] = torch.tensor(empty)
        mask[dropped] = (torch.arange(length) < len(self.empty)).long()
        return ids, mask

    def shard(self, index: int) -> Iterator[Batch]:
        data = self.config.data
        rng = random.Random(f"{data.seed}:{index}")
        made = samples(data, rng, data.shard)
        return batches(made, self.encoder, self.tokenizer, self.config, rng, data.passes)

    def run(self, stop: float | None = None) -> None:
        """Train on; `stop` is a monotonic time at which to checkpoint and return."""
        validation = self._validation()
        saved = time.monotonic()
        while self.at.samples < self.config.optim.samples:
            for n, batch in enumerate(self.shard(self.at.shard)):
                if n < self.at.batch:
                    continue
                began = time.monotonic()
                value = self.step(batch)
                self.at.batch = n + 1
                self.at.seconds += time.monotonic() - began
                if self.at.steps % 50 == 0:
                    self._log(value)
                now = time.monotonic()
                if now - saved > self.config.checkpoint_minutes * 60 or self._over(stop):
                    self._report(value, validation)
                    saved = now
                if self._over(stop):
                    return
            self.at.shard, self.at.batch = self.at.shard + 1, 0
        self._report(0.0, validation)

    def _report(self, loss: float, validation: list[tuple[str, Batch]]) -> None:
        """Checkpoint, then what a person looks at: validation loss, curves, a sheet of pictures."""
        self._log(loss, self.validate(validation))
        self.save()
        curves(self.folder)
        with self.average.swapped():
            sheet(self.sampler(), self.folder / "samples.png")

    def sampler(self) -> Sampler:
        """The live weights, for drawing."""
        return Sampler(
            self.text,
            self.tokenizer,
            self.transformer,
            self.encoder.vae,
            self.config.text.out_layers,
            self.config.data.length,
        )

    def _over(self, stop: float | None) -> bool:
        return self.at.samples >= self.config.optim.samples or (stop is not None and time.monotonic() > stop)

    def step(self, batch: Batch) -> float:
        o = self.config.optim
        factor = schedule(self.at.samples, o.samples, o.warmup * o.batch, o.decay)
        for optimizer, group, rate in self.rates:
            optimizer.param_groups[group]["lr"] = rate * factor
        context = self._context(batch, self.config.data.caption_dropout)
        value = self._velocity_error(batch, context)
        read = F.binary_cross_entropy_with_logits(self.probe(context[:, -1]), batch.facts, reduction="sum")
        (value + self.config.text.probe * read / batch.size).backward()
        torch.nn.utils.clip_grad_norm_([*self.transformer.parameters(), *self.text.parameters()], o.clip)
        for optimizer in (self.muon, self.adam):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.average.update()
        self.at.samples += batch.size
        self.at.steps += 1
        return value.item()

    def _validation(self) -> list[tuple[str, Batch]]:
        made = held_out(self.config, 1200)
        rng = random.Random(0)
        parts = {"text": [s for s in made if not s.references], "edit": [s for s in made if s.references]}
        return [
            (name, b)
            for name, part in parts.items()
            for b in list(batches(part, self.encoder, self.tokenizer, self.config, rng, 1))[:4]
        ]

    @torch.no_grad()
    def validate(self, validation: list[tuple[str, Batch]]) -> dict[str, float]:
        """Loss of the averaged weights on held-back samples, by kind, at fixed noise."""
        with self.average.swapped():
            sums: dict[str, list[float]] = {}
            for name, batch in validation:
                generator = torch.Generator().manual_seed(0)
                sums.setdefault(name, []).append(self.loss(batch, generator).item())
        return {k: sum(v) / len(v) for k, v in sums.items()}

    def _log(self, loss: float, validation: dict[str, float] | None = None) -> None:
        a, total = self.at, self.config.optim.samples
        speed = a.samples / max(a.seconds, 1e-9)
        left = (total - a.samples) / max(speed, 1e-9) / 60
        line = {"samples": a.samples, "step": a.steps, "loss": round(loss, 4), "per_second": round(speed, 1)}
        line |= {f"val_{k}": round(v, 4) for k, v in (validation or {}).items()}
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(
            f"dit {a.samples}/{total} loss {loss:.4f} {speed:.0f}/s left {left:.1f} min {validation or ''}",
            flush=True,
        )

    def state(self) -> dict[str, torch.Tensor]:
        live = {f"live.{k}": v for k, v in self.average.live()}
        live |= {f"probe.{k}": v for k, v in self.probe.named_parameters()}
        shadow = {f"average.{k}": v for k, v in self.average.shadow.items()}
        optimizers = flatten(self.muon, "muon") | flatten(self.adam, "adam")
        return {**live, **shadow, **optimizers, "rng": torch.get_rng_state()}

    def save(self) -> None:
        """One safetensors file, replaced atomically: a kill leaves the previous checkpoint."""
        path, part = self.folder / "checkpoint.safetensors", self.folder / "checkpoint.part"
        header = {"position": json.dumps(vars(self.at)), "updates": str(self.average.updates)}
        save_file({k: v.detach().contiguous() for k, v in self.state().items()}, part, header)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)

    def resume(self) -> bool:
        """Go on from the folder's checkpoint, bit for bit. False where there is none."""
        path = self.folder / "checkpoint.safetensors"
        if not path.exists():
            return False
        with safe_open(path, "pt") as file:
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
            header = file.metadata()
        with torch.no_grad():
            for name, parameter in self.average.live():
                parameter.copy_(tensors[f"live.{name}"])
                self.average.shadow[name].copy_(tensors[f"average.{name}"])
            for name, parameter in self.probe.named_parameters():
                parameter.copy_(tensors[f"probe.{name}"])
        unflatten(self.muon, "muon", tensors)
        unflatten(self.adam, "adam", tensors)
        torch.set_rng_state(tensors["rng"])
        self.at = Position(**json.loads(header["position"]))
        self.average.updates = int(header["updates"])
        return True
