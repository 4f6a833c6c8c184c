"""Fine-tune a Qwen3-VL as the planner on verified trajectories, over TRL (section 3.2).

    python -m training.sft_vlm --recipe training/recipes/sft_vlm_8b.yaml \\
        --data datasets/verified --model Qwen/Qwen3-VL-8B-Instruct --out runs/sft_vlm

On several GPUs: accelerate launch -m training.sft_vlm … . A second call goes on from the last checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import Qwen3VLProcessor
from trl import SFTConfig, SFTTrainer
from trl.chat_template_utils import get_training_chat_template, has_generation_markers
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from clvr.context import PLACEHOLDER
from clvr.errors import ClvrError, FormatError, SettingError, WeightsError
from clvr.ports import Album
from clvr.vlm.wire import shrunk

from .chat import asked, conversation, pictures, side_within, turn
from .data.records import Record, read
from .recipe import load
from .vlm import Log, LoRA, Precision, on_cpu, open_vlm, prepare, publish

IGNORED = -100
"""The label of a token that is not learned."""


@dataclass(frozen=True)
class VLMRecipe:
    """Fine-tuning of the VLM. The defaults are the paper's for Qwen3-VL 8B where it gives them (A.5)."""

    epochs: float = 3.0
    """Passes over the dataset."""
    steps: int | None = None
    """Updates in all, in the place of `epochs`."""
    lr: float = 1e-5
    """Peak learning rate of AdamW; it falls as a cosine to 0. A LoRA wants about ten times as much."""
    warmup: float = 0.1
    """Share of the updates in which the rate rises linearly."""
    batch: int = 1
    """Trajectories a process and forward pass."""
    accumulation: int = 8
    """Forward passes an update."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    precision: Precision = "bf16"
    """bf16 computes in bf16 over fp32 weights: 16 bytes a parameter with AdamW, 140 GB for the 8B without a LoRA."""
    lora: LoRA | None = None
    """Adapters instead of all parameters; they are merged into the published model."""
    image_side: int = 1024
    """Pixels of an image's longer side: the `image_side` that the VLM's client will use."""
    pixels: int | None = None
    """Pixels of all images of a conversation together; above, they are made smaller by one side for all."""
    learn_rejected: bool = False
    """Whether to learn decisions whose drawing was rolled back too; they are read as history in any case."""
    checkpointing: bool = True
    """Whether activations are computed twice, to save memory."""
    checkpoint_every: int = 100
    """Updates between two checkpoints."""
    log_every: int = 10
    """Updates between two log entries."""
    workers: int = 2
    """Processes that open images, for each training process; 0 opens them in the training process."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch", "accumulation", "checkpoint_every", "log_every", "image_side"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name}={getattr(self, name)} leaves nothing to do.", f"{name} is at least 1.")


def learned(record: Record, rejected: bool) -> list[bool]:
    """For each decision of a record's conversation, whether it is learned."""
    past, last = asked(record.trajectory)
    steps = record.trajectory.steps
    final = [True] if last.action == "stop" else [steps[-1].accepted or rejected]
    return [*(step.accepted or rejected for step in past.steps), *final]


def example(record: Record, recipe: VLMRecipe) -> dict[str, Any]:
    """A record as TRL's conversational sample: messages with image blocks, and the images, opened now.

    Raises FormatError, naming the record's place, where conversation and images do not fit together."""
    past, _ = asked(record.trajectory)
    labels = [*past.goal.labels(), *(step.label for step in past.steps)]
    marks = sum(said.value.count(PLACEHOLDER) for said in record.conversations)
    if not len(labels) == marks == len(record.images):
        raise FormatError(
            f"{record.place}: the conversation shows {marks} images, the record names {len(record.images)}, and its "
            f"trajectory has {len(labels)} that were looked at.",
            "Export the dataset again, or take the line out.",
        )
    messages = conversation(record.trajectory, Album({label: record.image(i) for i, label in enumerate(labels)}))
    images = pictures(messages)
    side = side_within([image.size for image in images], recipe.image_side, recipe.pixels)
    return {
        "messages": [turn(message) for message in messages],
        "images": [shrunk(image, side) for image in images],
        "learned": learned(record, recipe.learn_rejected),
    }


@dataclass(frozen=True)
class Examples:
    """What a dataset of indices turns into when one of its rows is read."""

    records: Sequence[Record]
    recipe: VLMRecipe

    def __call__(self, rows: Mapping[str, Sequence[int]]) -> dict[str, list[Any]]:
        made = [example(self.records[index], self.recipe) for index in rows["index"]]
        return {name: [one[name] for one in made] for name in made[0]}


def open_dataset(records: Iterable[Record], recipe: VLMRecipe) -> Dataset:
    """Every record in which something is learned; an image is opened when its row is read. Raises FormatError where
    nothing is left."""
    kept = [r for r in records if r.trajectory.steps and any(learned(r, recipe.learn_rejected))]
    if not kept:
        raise FormatError("The dataset holds no decision to learn.", "Set learn_rejected, or gather more trajectories.")
    return Dataset.from_dict({"index": list(range(len(kept)))}).with_transform(Examples(kept, recipe))


class Decisions(DataCollatorForVisionLanguageModeling):
    """TRL's collator, with the loss on those decisions only that a sample says are learned."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        for labels, one in zip(batch["labels"], examples, strict=True):
            forget(labels, one["learned"])
        return batch


def forget(labels: torch.Tensor, learned: Sequence[bool]) -> None:
    """Labels [L] in place: ignored in those assistant turns, counted from the first, that are not learned.

    Raises FormatError where the labels have another number of turns."""
    edges = torch.nn.functional.pad((labels != IGNORED).int(), (1, 1)).diff().nonzero().flatten().tolist()
    turns = list(zip(edges[::2], edges[1::2], strict=True))
    if len(turns) != len(learned):
        raise FormatError(
            f"{len(turns)} turns of the assistant are marked in a conversation with {len(learned)} decisions.",
            "The model's chat template leaves some out: take that of Qwen/Qwen3-VL-8B-Instruct.",
        )
    for (start, end), wanted in zip(turns, learned, strict=True):
        if not wanted:
            labels[start:end] = IGNORED


def collator(processor: Qwen3VLProcessor) -> Decisions:
    """Raises WeightsError for a chat template in which the assistant's tokens cannot be told apart."""
    template, own = None, processor.chat_template
    if own is None or not has_generation_markers(own):
        try:
            template = get_training_chat_template(processor)
        except ValueError as error:
            raise WeightsError(
                "The model's chat template is not that of Qwen3-VL.",
                "Take the chat template of Qwen/Qwen3-VL-8B-Instruct, or mark what is learned with {% generation %}.",
            ) from error
    return Decisions(processor, assistant_only_loss=True, chat_template=template)


def trainer_of(recipe: VLMRecipe, data: Dataset, model: str | Path, run: Path) -> SFTTrainer:
    """Everything that a run needs, at its beginning."""
    weights, processor = open_vlm(model, recipe.precision, recipe.lora)
    return SFTTrainer(
        weights,
        arguments(recipe, run),
        data_collator=collator(processor),
        train_dataset=data,
        processing_class=processor,
        peft_config=recipe.lora.config() if recipe.lora else None,
        callbacks=[Log(run)],
    )


def arguments(recipe: VLMRecipe, run: Path) -> SFTConfig:
    return SFTConfig(
        output_dir=str(run),
        num_train_epochs=recipe.epochs,
        max_steps=recipe.steps or -1,
        learning_rate=recipe.lr,
        lr_scheduler_type="cosine",
        warmup_steps=recipe.warmup,
        per_device_train_batch_size=recipe.batch,
        gradient_accumulation_steps=recipe.accumulation,
        max_grad_norm=recipe.clip,
        bf16=recipe.precision == "bf16",
        gradient_checkpointing=recipe.checkpointing,
        max_length=None,
        assistant_only_loss=True,
        remove_unused_columns=False,
        dataloader_num_workers=recipe.workers,
        use_cpu=on_cpu(),
        dataloader_pin_memory=not on_cpu(),
        save_steps=recipe.checkpoint_every,
        save_total_limit=2,
        logging_steps=recipe.log_every,
        logging_first_step=True,
        report_to=["tensorboard"],
        seed=recipe.seed,
    )


def train(recipe: VLMRecipe, data: Path, model: str | Path, out: Path) -> Path:
    """The published model of a run, begun or gone on with. Raises what a user can mend as a ClvrError."""
    checkpoint = prepare(out, recipe)
    trainer = trainer_of(recipe, open_dataset(read(data), recipe), model, out)
    trainer.train(resume_from_checkpoint=checkpoint)
    return publish(trainer, model, out, recipe.precision)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when the model is trained, 2 for what the user can mend."""
    options = parser().parse_args(arguments)
    try:
        model = train(load(options.recipe, VLMRecipe), options.data, options.model, options.out)
    except ClvrError as error:
        print(f"training.sft_vlm: {error}", file=sys.stderr)
        return 2
    print(f"Use it with: clvr generate … --vlm transformers:{model}")
    return 0


def parser() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    root = argparse.ArgumentParser("python -m training.sft_vlm", description=__doc__, formatter_class=layout)
    add = root.add_argument
    add("--recipe", type=Path, required=True, metavar="FILE", help="see training/recipes/sft_vlm_*.yaml")
    add("--data", type=Path, required=True, metavar="DIR", help="a dataset that python -m training.data made")
    add("--model", required=True, help="a Qwen3-VL: folder or hub id")
    add("--out", type=Path, required=True, metavar="DIR", help="the run: log, checkpoints, and the trained model/")
    return root


if __name__ == "__main__":
    sys.exit(main())
