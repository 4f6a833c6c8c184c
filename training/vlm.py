"""What the trainers of the VLM share: opening a Qwen3-VL, adapters, the run's folder, and publishing the result."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from peft import LoraConfig, PeftModel
from transformers import (
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from clvr.errors import OutputError, SettingError
from clvr.files import write_atomic
from clvr.vlm.folder import find
from clvr.vlm.local import load

from .recipe import plain
from .trackers import CsvTracker

SETTINGS = "recipe.json"
LOG = "log.csv"
MODEL = "model"
Precision = Literal["bf16", "fp32"]
LAYERS = r".*language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
"""Every linear layer of the language model; the vision tower stays as it is."""


@dataclass(frozen=True)
class LoRA:
    """Adapters on the language model's linear layers, in the place of all its parameters."""

    rank: int = 64
    alpha: int = 128
    """The update is scaled by alpha / rank."""
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 1:
            raise SettingError(f"A LoRA of rank {self.rank} and alpha {self.alpha} learns nothing.", "Both from 1.")

    def config(self) -> LoraConfig:
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=LAYERS,
            task_type="CAUSAL_LM",
        )


def open_vlm(
    model: str | Path, precision: Precision, lora: LoRA | None
) -> tuple[Qwen3VLForConditionalGeneration, Qwen3VLProcessor]:
    """From a folder or a hub id, ready to be trained: in fp32, or in bf16 where that computes in bf16 and learns
    nothing itself. Raises what `clvr.vlm.local.load` raises."""
    opened = load(model, torch.bfloat16 if lora and precision == "bf16" else torch.float32)
    return opened.model.train(), opened.processor


def on_cpu() -> bool:
    return not torch.accelerator.is_available()


def processes() -> PartialState:
    """Those of this training, of which this is one. Several on CPUs are not found where that is not said."""
    return PartialState(cpu=on_cpu())


def prepare(run: Path, recipe: Any) -> str | None:  # noqa: ANN401
    """The checkpoint that a run goes on from, None for a new run; writes down the recipe.

    Raises OutputError where the run is over, SettingError where it was begun with another recipe."""
    if (run / MODEL).exists():
        raise OutputError(f"{run / MODEL} is there already.", "Name another folder, or move that one away.")
    wanted, file = plain(recipe), run / SETTINGS
    found = json.loads(file.read_text("utf-8")) if file.is_file() else wanted
    changed = sorted(key for key in wanted.keys() | found.keys() if found.get(key) != json_value(wanted.get(key)))
    if changed:
        raise SettingError(
            f"The run in {run} was begun with other settings: {', '.join(changed)}.",
            "Go on with its own recipe, or name another folder.",
        )
    if not file.is_file() and processes().is_main_process:
        write_atomic(file, json.dumps(wanted, indent=2).encode())
    return last_checkpoint(run)


def json_value(value: Any) -> Any:  # noqa: ANN401
    """A value as it comes back from JSON."""
    return json.loads(json.dumps(value))


def last_checkpoint(run: Path) -> str | None:
    """The newest checkpoint that was written to its end: the Trainer writes its state last."""
    complete = [path.parent for path in run.glob("checkpoint-*/trainer_state.json")]
    return str(max(complete, key=lambda path: int(path.name.partition("-")[2]))) if complete else None


def publish(trainer: Trainer, source: str | Path, run: Path, precision: Precision) -> Path:
    """The trained model, adapters merged, beside the untouched processor of `source`, in the run's folder `model`,
    which `clvr.vlm.local` opens. It appears whole or not at all."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    weights: Any = trainer.accelerator.get_state_dict(trainer.model)
    if not trainer.accelerator.is_main_process:
        return run / MODEL
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
        weights = model.state_dict()
    partial = run / f".{MODEL}.partial"
    model.config.dtype = dtype
    model.save_pretrained(partial, state_dict={name: tensor.to(dtype) for name, tensor in weights.items()})
    Qwen3VLProcessor.from_pretrained(find(source).path).save_pretrained(partial)
    os.replace(partial, run / MODEL)
    return run / MODEL


class Log(TrainerCallback):
    """Everything that the Trainer reports, in the run's log.csv."""

    def __init__(self, run: Path) -> None:
        self._tracker = CsvTracker(run / LOG)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,  # noqa: ANN401
    ) -> None:
        if state.is_world_process_zero:
            self._tracker.rewind(state.global_step + 1)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: Any,  # noqa: ANN401
    ) -> None:
        if state.is_world_process_zero:
            self._tracker.log(logs or {}, state.global_step)
