"""The rows of the paper's tables 4 and 6 at our scale, and how one is measured."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from clvr import loop, probe
from clvr.bench.registry import open_suite
from clvr.bench.suite import Item
from clvr.budget import Budget
from clvr.flux2.folder import Sampling, find
from clvr.flux2.generator import Flux2Generator
from clvr.images import png_bytes
from clvr.ports import Generator
from clvr.shapes.controller import ShapesController
from clvr.shapes.language import parse
from clvr.shapes.phrases import prompt_words
from clvr.shapes.planning import slots
from clvr.shapes.scene import Group, Spec
from clvr.shapes.verifier import MeasuringVerifier
from clvr.trajectory import Goal

from .. import book
from ..folder import open_sampler
from ..lockstep import Painter
from .config import Evaluation

BOOK, PICTURES = "results.jsonl", "pictures"
ONE_SHOT = "one-shot"


@dataclass(frozen=True)
class Row:
    """`model`: the stage whose weights draw. `paper`: its printed GenEval categories and overall, () where it has no
    such row. `short` names it where there is little room."""

    key: str
    name: str
    short: str
    model: str
    few: bool
    looped: bool = True
    rewritten: bool = False
    paper: tuple[float, ...] = ()


ROWS = (
    Row("base", "base, one shot", "one shot", "base", False, False, paper=(0.99, 0.87, 0.62, 0.85, 0.52, 0.59, 0.74)),
    Row("base-loop", "base + CLVR", "CLVR", "base", False),
    Row("sft", "+ SFT", "+ SFT", "sft", False, paper=(0.96, 0.88, 0.76, 0.81, 0.71, 0.57, 0.78)),
    Row("simple", "+ SFT + simple RL", "+ simple RL", "base-simple", False),
    Row("pprl", "+ SFT + PPRL", "+ PPRL", "base-pprl", False, paper=(0.95, 0.89, 0.75, 0.90, 0.74, 0.72, 0.83)),
    Row("few", "distilled, one shot", "one shot", "distilled", True, False,
        paper=(0.99, 0.91, 0.77, 0.86, 0.69, 0.64, 0.81)),
    Row("few-rewritten", "distilled, one shot, prompt rewritten", "rewritten", "distilled", True, False, True,
        paper=(0.99, 0.86, 0.66, 0.83, 0.64, 0.68, 0.78)),
    Row("few-loop", "distilled + CLVR", "CLVR", "distilled", True, paper=(1.00, 0.93, 0.80, 0.86, 0.85, 0.69, 0.86)),
    Row("few-sft", "DSWM: + SFT", "+ SFT", "dswm-sft", True, paper=(1.00, 0.95, 0.81, 0.86, 0.81, 0.67, 0.85)),
    Row("few-simple", "DSWM: + SFT + simple RL", "+ simple RL", "dswm-simple", True,
        paper=(1.00, 0.93, 0.79, 0.89, 0.78, 0.65, 0.84)),
    Row("few-pprl", "DSWM: + SFT + PPRL", "+ PPRL", "dswm-pprl", True,
        paper=(0.99, 0.92, 0.85, 0.89, 0.85, 0.71, 0.87)),
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """One prompt's run. `recall`: share of the checks that hold."""

    task: int
    category: str
    prompt: str
    passed: bool
    recall: float
    images: int
    nfe: int
    seconds: float
    reason: str


def held_back(config: Evaluation) -> list[Item]:
    """Prompts of `clvr bench builtin`, which the data engine keeps out of every dataset."""
    items = open_suite("builtin").items
    found = []
    for category in config.categories:
        found += [item for item in items if item.tags["category"] == category][: config.prompts]
    return found


def measure(row: Row, model: Path, config: Evaluation, out: Path, device: torch.device) -> None:
    """Fill the row's book with what it lacks; pictures of the shown prompts lie beside it."""
    drawn = sampling(model, config)
    painter = Painter(open_sampler(model, device), drawn.steps, drawn.guidance)
    (out / PICTURES).mkdir(exist_ok=True)
    items = held_back(config)
    shown = {number for number, _ in chosen(items, config.shown)}
    jobs = {
        number: partial(attempt, row, number, item, painter, config, out if number in shown else None)
        for number, item in enumerate(items)
    }
    book.fill(out / BOOK, Measured, jobs, painter, row.name, config.width)


def sampling(model: Path, config: Evaluation) -> Sampling:
    folder = find(model)
    return folder.sampling if folder.distilled else folder.sampling.chosen(config.steps, config.guidance)


def attempt(
    row: Row, number: int, item: Item, generator: Generator, config: Evaluation, out: Path | None = None
) -> Measured:
    """One prompt, drawn once or in the closed loop. The measuring verifier judges, in the loop and at its end."""
    began, seed = time.monotonic(), config.seed + number
    text = rewritten(item.prompt, seed) if row.rewritten else item.prompt
    rounds = config.rounds if row.looped else 1
    ports = loop.Ports(ShapesController(), generator, MeasuringVerifier())
    settings = loop.Settings(Budget(steps=rounds, patience=rounds), config.policy if row.looped else ONE_SHOT)
    state = loop.run(Goal(text, 0, item.checks), (), ports, settings, seed)
    assert state.best is not None
    verdict = MeasuringVerifier().judge(state.best, item.checks)
    if out is not None:
        (out / PICTURES / f"{number}.png").write_bytes(png_bytes(state.best))
    return Measured(
        number,
        item.tags["category"],
        item.prompt,
        verdict.satisfied(item.checks),
        probe.recall(outcome for _, outcome in verdict.effective(item.checks)) or 0.0,
        sum(len(step.candidates) for step in state.trajectory.steps),
        state.trajectory.cost.nfe,
        time.monotonic() - began,
        state.trajectory.stop_reason,
    )


def rewritten(prompt: str, seed: int) -> str:
    """The prompt as the planner would draw it, every object with its place: what an open-loop rewriter can add where
    there is no knowledge of the world to bring in. Raises GrammarError."""
    return prompt_words(Spec(tuple(Group(slot.item.noun, 1, slot.item.cell) for slot in slots(parse(prompt), seed))))


def chosen(items: Sequence[Item], count: int) -> list[tuple[int, Item]]:
    """Some of the prompts, from all categories in turn."""
    rng = random.Random(count)
    groups: dict[str, list[tuple[int, Item]]] = {}
    for number, item in enumerate(items):
        groups.setdefault(item.tags["category"], []).append((number, item))
    for group in groups.values():
        rng.shuffle(group)
    turns = [group[turn] for turn in range(count) for group in groups.values() if turn < len(group)]
    return sorted(turns[:count], key=lambda pair: pair[0])


def clock(model: Path, config: Evaluation, out: Path, device: torch.device) -> None:
    """Table 8: seconds of whole trajectories as `clvr generate` draws them, one at a time."""
    drawn = sampling(model, config)
    generator = Flux2Generator.load(model, device=str(device), steps=drawn.steps, guidance=drawn.guidance)
    done = {row.task for row in book.read(out / BOOK, Measured)}
    if not done:
        attempt(ROWS[0], 0, held_back(config)[0], generator, config)  # the first picture of a process is slow
    with (out / BOOK).open("a") as lines:
        for number, item in chosen(held_back(config), config.timed):
            if number not in done:
                book.write(lines, attempt(ROWS[1], number, item, generator, config))
