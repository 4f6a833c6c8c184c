"""Train the planner by GRPO in clvr's own loop, over TRL (VisionDirector, CVPR 2026).

    python -m training.planner --recipe training/recipes/planner_8b.yaml --goals goals.txt \\
        --model runs/sft_vlm/model --generator black-forest-labs/FLUX.2-klein-4B --verifier http://127.0.0.1:8000 \\
        --out runs/planner

GOALS has a goal a line: a prompt, or JSON {"prompt": …, "references": [paths], "checks": [a checklist]}. The objective
is the paper's J_GRPO: clipped ratios averaged over the planner's own tokens of a completion, tokens of the generator
and the verifier masked, advantages against the group's mean, and a KL term against the untrained planner.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from datasets import Dataset
from tqdm import tqdm
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor
from trl import GRPOConfig, GRPOTrainer

from clvr.budget import Budget
from clvr.errors import ClvrError, FormatError, MissingFileError, SettingError, WeightsError
from clvr.files import write_atomic
from clvr.models import BUILTIN, Choice, load_client, load_generator, load_judges
from clvr.ports import Album, Controller
from clvr.state import Settings
from clvr.trajectory import Check, Goal, decode, referenced
from clvr.vlm.rating import VLMRater

from .director import HIGHEST, ByChecks, ByRubric, Judge, reward
from .environment import RESPONSE, Given, Rollout, Studio, final, opening
from .recipe import load
from .vlm import Log, LoRA, Precision, on_cpu, open_vlm, prepare, processes, publish

GOALS = "goals.jsonl"
TEMPLATE = """{%- for message in messages %}
    {{- '<|im_start|>' + ('user' if message.role == 'tool' else message.role) + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {{- '<|vision_start|><|image_pad|><|vision_end|>' if part.type == 'image' else part.text }}
        {%- endfor %}
    {%- endif %}
    {%- for call in message.tool_calls or [] %}
        {{- call | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""
"""Qwen3-VL's chat template for a conversation without tools, in which a tool's turn is the user's."""


@dataclass(frozen=True)
class PlannerRecipe:
    """GRPO of the planner. [paper] marks VisionDirector's settings; the rest it does not tell."""

    steps: int = 200
    """Updates in all."""
    group: int = 8
    """Runs a goal, G; their mean reward is the baseline."""
    batch: int = 1
    """Runs a process and forward pass."""
    accumulation: int = 16
    """Forward passes an update; batch * accumulation * processes is a multiple of `group`."""
    lr: float = 1e-6
    """Constant learning rate of AdamW. A LoRA wants about ten times as much."""
    kl: float = 0.01
    """Weight of the KL term, above 0 [paper]."""
    clip: float = 0.2
    """Ratios are clipped to [1 - clip, 1 + clip]."""
    scale: Literal["group", "batch", "none"] = "group"
    """Which rewards' standard deviation divides the advantages."""
    temperature: float = 1.0
    """Of the planner's sampling."""
    rounds: int = 6
    """Most drawings of a run [paper]."""
    candidates: int = 4
    """Images a drawing, of which the verifier chooses (the paper's micro-grid; its number is not given)."""
    tokens: int = 12288
    """Longest conversation after its opening, the images' tokens included; a run that would outgrow it ends."""
    reward: Literal["rubric", "checks"] = "rubric"
    """rubric: a VLM scores the final image by typography, lighting and layout [paper]; checks: the share of the
    goal's checklist that holds. Both from 0 to 5."""
    cost: float = 0.0
    """Taken off the reward for each drawing after the first; 0 in the paper."""
    judges: int = 8
    """Final images that are scored at once."""
    retries: int = 2
    """Further tries to score an image; after them its run is left out of the update, and counted."""
    image_side: int = 1024
    """Pixels of an image's longer side: the `image_side` that the VLM's client will use."""
    size: tuple[int, int] | None = None
    """Width and height of the drawings; the generator's own where it is not given."""
    precision: Precision = "bf16"
    """bf16 computes in bf16 over fp32 weights."""
    lora: LoRA | None = None
    """Adapters instead of all parameters; the KL's reference is then the model without them, at no memory."""
    checkpointing: bool = True
    """Whether activations are computed twice, to save memory."""
    checkpoint_every: int = 25
    """Updates between two checkpoints."""
    log_every: int = 1
    """Updates between two log entries."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulation", "tokens", "judges", "image_side", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name}={getattr(self, name)} leaves nothing to do.", f"{name} is at least 1.")
        if self.group < 2:
            raise SettingError(f"A group of {self.group} has nothing to compare.", "group is at least 2.")
        if not 0 <= self.cost <= HIGHEST or self.kl < 0:
            raise SettingError("cost or kl is out of its range.", f"cost lies in [0, {HIGHEST}], kl is not negative.")

    def loop(self) -> Settings:
        """The loop ends a run where everything holds, or its rounds are used up."""
        return Settings(Budget(self.rounds, self.candidates, patience=self.rounds), size=self.size)


class Reward:
    """TRL's reward function: scores the final image of each run, several at once.

    What cannot be scored after all tries is None: TRL leaves it out of its group's mean and gives it no advantage."""

    __name__ = "alignment"

    def __init__(self, judge: Judge, recipe: PlannerRecipe) -> None:
        self._judge = judge
        self._recipe = recipe
        self.dropped = 0

    def __call__(self, environments: Sequence[Rollout], log_metric: Logger, **_: object) -> list[float | None]:
        """Raises what went wrong in the generator or the verifier."""
        with ThreadPoolExecutor(self._recipe.judges) as pool:
            rewards = list(pool.map(self._score, environments))
        drawings = [len(run.state.trajectory.steps) for run in environments]
        self.dropped += rewards.count(None)
        log_metric("drawings", sum(drawings) / len(drawings))
        log_metric("dropped", self.dropped)
        return rewards

    def _score(self, run: Rollout) -> float | None:
        image, references = final(run.state)
        goal, drawings = run.state.trajectory.goal, len(run.state.trajectory.steps)
        if image is None:
            return reward(None, drawings, self._recipe.cost)
        for _ in range(1 + self._recipe.retries):
            if (alignment := self._judge.score(image, goal, references)) is not None:
                return reward(alignment, drawings, self._recipe.cost)
        return None


class Logger(Protocol):
    def __call__(self, name: str, value: float) -> None: ...


def read_goals(file: Path) -> Iterator[Given]:
    """Goals, their checklists as far as they have one. Raises MissingFileError, and FormatError naming the line."""
    if not file.is_file():
        raise MissingFileError(f"There is no file {file}.", "Write a prompt a line.")
    for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
        if line.strip():
            try:
                yield _goal(line.strip(), file.parent)
            except (FormatError, json.JSONDecodeError) as error:
                problem = error.thing if isinstance(error, FormatError) else f"This is no JSON: {error.msg}."
                raise FormatError(f"{file} line {number}: {problem}", 'Write a prompt, or {"prompt": …}.') from error


def _goal(line: str, folder: Path) -> Given:
    data = json.loads(line) if line.startswith("{") else {"prompt": line}
    unknown = sorted(data.keys() - {"prompt", "references", "checks"})
    if unknown or "prompt" not in data:
        raise FormatError(f"A goal has a prompt, references and checks, not {', '.join(unknown) or 'nothing'}.")
    references = decode(tuple[str, ...], data.get("references", []), "references")
    checks = decode(tuple[Check, ...], data.get("checks", []), "checks")
    goal = Goal(decode(str, data["prompt"], "prompt"), len(references), checks)
    return Given(goal, tuple(str((folder / path).resolve()) for path in references))


def with_checklist(given: Given, controller: Controller) -> Given:
    """Raises VLMError or GrammarError where none can be made."""
    if given.goal.checks:
        return given
    album = Album({referenced(i): image for i, image in enumerate(given.images())})
    goal = Goal(given.goal.prompt, given.goal.references, controller.checklist(given.goal, album).checks)
    return Given(goal, given.references)


def open_goals(file: Path, controller: Controller, run: Path) -> list[Given]:
    """The goals with their checklists, which are made once a run. Raises SettingError where the run was begun with
    other goals, and what `read_goals` and `with_checklist` raise."""
    goals, kept = list(read_goals(file)), run / GOALS
    with processes().main_process_first():
        if not kept.is_file():
            made = [with_checklist(given, controller) for given in tqdm(goals, "Checklists", disable=None)]
            write_atomic(kept, "\n".join(given.pack() for given in made).encode())
        found = [Given.unpack(line) for line in kept.read_text("utf-8").splitlines()]
    if [(g.goal.prompt, g.references) for g in found] != [(g.goal.prompt, g.references) for g in goals]:
        raise SettingError(f"The run in {run} was begun with other goals.", "Name another folder.")
    return found


def open_dataset(goals: Iterable[Given], seed: int) -> Dataset:
    """All runs of a group draw from the same seed, so that they differ by their decisions alone."""
    rows = [{"prompt": opening(g), "given": g.pack(), "seed": seed + n} for n, g in enumerate(goals)]
    if not rows:
        raise FormatError("There is no goal to plan for.", "Write a prompt a line.")
    return Dataset.from_list(rows)


def trainer_of(
    recipe: PlannerRecipe, data: Dataset, model: str | Path, studio: Studio, judge: Judge, run: Path
) -> GRPOTrainer:
    """Everything that a run needs, at its beginning. Raises SettingError where the groups do not fill an update."""
    weights, processor = open_vlm(model, recipe.precision, recipe.lora)
    acting(processor)
    try:
        args = arguments(recipe, weights, run)
    except ValueError as error:
        raise SettingError(
            f"{recipe.batch} x {recipe.accumulation} runs a process and update are no multiple of the group of "
            f"{recipe.group}.",
            "Change accumulation or group.",
        ) from error
    return GRPOTrainer(
        weights,
        Reward(judge, recipe),
        args,
        train_dataset=data,
        processing_class=processor,
        peft_config=recipe.lora.config() if recipe.lora else None,
        environment_factory=partial(Rollout, studio),
        callbacks=[Log(run)],
    )


def acting(processor: Qwen3VLProcessor) -> None:
    """Let TRL show and read clvr's conversation. Raises WeightsError where the model's own chat template would show
    it in other words."""
    if _rendered(processor, "user") != _rendered(processor, "tool", TEMPLATE):
        raise WeightsError(
            "The model's chat template is not that of Qwen3-VL.",
            "Take the chat template of Qwen/Qwen3-VL-8B-Instruct.",
        )
    processor.chat_template = TEMPLATE
    processor.tokenizer.response_template = RESPONSE


def _rendered(processor: Qwen3VLProcessor, role: str, template: str | None = None) -> str:
    def text(words: str) -> list[dict[str, str]]:
        return [{"type": "text", "text": words}]

    talk = [
        {"role": "system", "content": text("Plan.")},
        {"role": "user", "content": [*text("Goal:"), {"type": "image"}, *text("Decide.")]},
        {"role": "assistant", "content": text("{}")},
        {"role": role, "content": [*text("Image:"), {"type": "image"}, *text("Decide.")]},
    ]
    return str(processor.apply_chat_template(talk, template, tokenize=False, add_generation_prompt=True))


def arguments(recipe: PlannerRecipe, model: Qwen3VLForConditionalGeneration, run: Path) -> GRPOConfig:
    return GRPOConfig(
        output_dir=str(run),
        max_steps=recipe.steps,
        learning_rate=recipe.lr,
        lr_scheduler_type="constant",
        per_device_train_batch_size=recipe.batch,
        gradient_accumulation_steps=recipe.accumulation,
        num_generations=recipe.group,
        loss_type="grpo",
        beta=recipe.kl,
        epsilon=recipe.clip,
        scale_rewards=recipe.scale,
        temperature=recipe.temperature,
        max_completion_length=recipe.tokens,
        max_tool_calling_iterations=2 * recipe.rounds,
        generation_kwargs={"suppress_tokens": unspeakable(model)},
        bf16=recipe.precision == "bf16",
        gradient_checkpointing=recipe.checkpointing,
        remove_unused_columns=False,
        use_cpu=on_cpu(),
        dataloader_pin_memory=not on_cpu(),
        save_steps=recipe.checkpoint_every,
        save_total_limit=2,
        logging_steps=recipe.log_every,
        report_to=["tensorboard"],
        seed=recipe.seed,
    )


def unspeakable(model: Qwen3VLForConditionalGeneration) -> list[int]:
    """Tokens that stand for images: one in a reply would ask for features that there are not."""
    config: Any = model.config
    return [config.image_token_id, config.video_token_id, config.vision_start_token_id, config.vision_end_token_id]


@dataclass(frozen=True)
class Crew:
    """Who is trained, who draws, who judges, as named on the command line; a judge '' is the verifier."""

    model: str
    generator: str = BUILTIN
    verifier: str = BUILTIN
    judge: str = ""


def train(recipe: PlannerRecipe, goals: Path, crew: Crew, out: Path) -> Path:
    """The published model of a run, begun or gone on with. Raises what a user can mend as a ClvrError."""
    checkpoint = prepare(out, recipe)
    choice = Choice(crew.generator, crew.verifier)
    controller, verifier = load_judges(choice)
    judge = open_judge(recipe, Choice(crew.generator, crew.judge or crew.verifier))
    data = open_dataset(open_goals(goals, controller, out), recipe.seed)
    studio = Studio(load_generator(choice), verifier, recipe.loop(), recipe.image_side)
    trainer = trainer_of(recipe, data, crew.model, studio, judge, out)
    trainer.train(resume_from_checkpoint=checkpoint)
    return publish(trainer, crew.model, out, recipe.precision)


def open_judge(recipe: PlannerRecipe, choice: Choice) -> Judge:
    """Raises SettingError where the built-in judge is asked for what it cannot rate."""
    if recipe.reward == "checks":
        return ByChecks(load_judges(choice)[1])
    if choice.vlm == BUILTIN:
        raise SettingError("The built-in judge cannot rate typography and lighting.", "Set reward: checks.")
    return ByRubric(VLMRater(load_client(choice)))


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when the model is trained, 2 for what the user can mend."""
    options = parser().parse_args(arguments)
    crew = Crew(options.model, options.generator, options.verifier, options.judge)
    try:
        model = train(load(options.recipe, PlannerRecipe), options.goals, crew, options.out)
    except ClvrError as error:
        print(f"training.planner: {error}", file=sys.stderr)
        return 2
    print(f"Use it with: clvr generate … --vlm transformers:{model}")
    return 0


def parser() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    root = argparse.ArgumentParser("python -m training.planner", description=__doc__, formatter_class=layout)
    add = root.add_argument
    add("--recipe", type=Path, required=True, metavar="FILE", help="see training/recipes/planner_*.yaml")
    add("--goals", type=Path, required=True, metavar="FILE", help="a goal a line")
    add("--model", required=True, help="the planner, a Qwen3-VL: folder or hub id")
    add("--generator", default=BUILTIN, metavar="MODEL", help="a klein: folder or hub id; builtin where not given")
    add("--verifier", default=BUILTIN, metavar="VLM", help="an address, builtin, or transformers: and a Qwen3-VL")
    add("--judge", default="", metavar="VLM", help="whose word is the reward; the verifier where not given")
    add("--out", type=Path, required=True, metavar="DIR", help="the run: log, checkpoints, and the trained model/")
    return root


if __name__ == "__main__":
    sys.exit(main())
