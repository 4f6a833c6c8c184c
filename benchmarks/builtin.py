"""How good the built-in model is, measured by the verifier on the held-back tenth.

    python -m benchmarks.builtin                      all of it, docs/results/builtin.md's table
    python -m benchmarks.builtin --only edits --n 50

Text-to-image and edits are drawn in batches with the pipeline's own schedule; the closed loop runs through the
engine, the generator and the rule-based controller, as `clvr generate` does.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL.Image import Image

from clvr import builtin, loop, probe
from clvr.budget import Budget
from clvr.context import Context
from clvr.errors import GrammarError
from clvr.flux2.generator import Flux2Generator
from clvr.intervals import wilson
from clvr.ports import Generator
from clvr.shapes.checks import checklist, expectations
from clvr.shapes.controller import ShapesController
from clvr.shapes.edits import KINDS, Edit, say
from clvr.shapes.phrases import prompt_words, sayable
from clvr.shapes.render import render
from clvr.shapes.sampler import complex_spec, edit_sample, held_back, prompt
from clvr.shapes.scene import Scene, Spec, realise
from clvr.shapes.verifier import MeasuringVerifier
from clvr.trajectory import Check, Goal
from training.folder import open_sampler
from training.sampling import Sampler, noise

TARGETS = {
    "single": 0.98,
    "colors": 0.95,
    "two": 0.80,
    "counting": 0.60,
    "position": 0.60,
    "attribution": 0.70,
    "add": 0.85,
    "recolor": 0.85,
    "remove": 0.90,
    "replace": 0.80,
    "move": 0.60,
}


@dataclass(frozen=True)
class Rate:
    """Passes out of tries, with a 95 % Wilson interval."""

    passed: int
    tries: int

    @property
    def share(self) -> float:
        return self.passed / self.tries if self.tries else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.passed, self.tries)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.share:.3f} [{low:.3f}, {high:.3f}]"


@dataclass(frozen=True)
class Task:
    text: str
    checks: tuple[Check, ...]
    before: Image | None = None


def text_tasks(category: str, count: int, rng: random.Random) -> list[Task]:
    made = [prompt(category, rng, held=True) for _ in range(count)]
    return [Task(text, checklist(spec)) for text, spec in made]


def edit_tasks(kind: str, count: int, rng: random.Random) -> list[Task]:
    made: list[tuple[Scene, Edit]] = [edit_sample(kind, rng, held=True) for _ in range(count)]
    return [Task(say(e), expectations(e, s), render(s, rng.getrandbits(31))) for s, e in made]


def passes(sampler: Sampler, tasks: Sequence[Task], seed: int, steps: int, guidance: float) -> Rate:
    """Draw every task once, in batches of equal text length, and judge strictly."""
    verifier = MeasuringVerifier()
    lengths: dict[int, list[int]] = {}
    for n, task in enumerate(tasks):
        lengths.setdefault(sampler.padded([task.text]), []).append(n)
    passed = 0
    for members in lengths.values():
        for start in range(0, len(members), 50):
            part = [tasks[n] for n in members[start : start + 50]]
            seeds = [seed + n for n in members[start : start + 50]]
            references = sampler.encode([[t.before] if t.before else [] for t in part])
            x = sampler.latents([t.text for t in part], references, noise(seeds, 16), steps, guidance)
            for task, image in zip(part, sampler.images(x), strict=True):
                before = [task.before] if task.before else []
                passed += verifier.judge(image, task.checks, before).satisfied(task.checks)
    return Rate(passed, len(tasks))


def goals(count: int, rng: random.Random, sizes: Sequence[int] = (3, 4, 5)) -> list[tuple[str, Spec]]:
    """Held-back prompts of so many objects each, satisfiable and sayable."""
    out: list[tuple[str, Spec]] = []
    while len(out) < count:
        spec = complex_spec(rng, sizes[len(out) % len(sizes)])
        text = prompt_words(spec)
        if not sayable(spec) or not held_back(text):
            continue
        try:
            realise(spec, random.Random(0))
        except GrammarError:
            continue
        out.append((text, spec))
    return out


def best_of(generator: Generator, text: str, checks: Sequence[Check], seeds: Sequence[int]) -> list[bool]:
    """Which of the one-shot drawings satisfy the checklist."""
    verifier = MeasuringVerifier()
    drawn = generator.draw(Context(text), generator.default_size, list(seeds))
    return [verifier.judge(i, checks).satisfied(checks) for i in drawn.images]


def closed_loop(
    generator: Generator, text: str, checks: tuple[Check, ...], seed: int, rounds: int
) -> tuple[bool, int, int]:
    """Whether the loop's result satisfies the checklist, its images and its NFE."""
    ports = loop.Ports(ShapesController(), generator, MeasuringVerifier())
    settings = loop.Settings(Budget(steps=rounds, patience=rounds))
    trajectory = loop.run(Goal(text, 0, checks), (), ports, settings, seed).trajectory
    best = trajectory.best
    good = best is not None and best.winner.active is not None and best.winner.active.satisfied(checks)
    return good, len(trajectory.steps), trajectory.cost.nfe


def compare(generator: Generator, count: int, rounds: int, seed: int) -> list[str]:
    """One shot, best of N and the closed loop on the same prompts; N is what the loop itself drew there."""
    shots, equal, full, looped, images = [], [], [], [], []
    by_size: dict[int, list[tuple[bool, bool]]] = {}
    made = goals(count, random.Random(seed))
    for n, (text, spec) in enumerate(made):
        checks = checklist(spec)
        good, drawn, _ = closed_loop(generator, text, checks, seed + n, rounds)
        hits = best_of(generator, text, checks, range(1000 * n, 1000 * n + rounds))
        shots.append(hits[0])
        equal.append(any(hits[:drawn]))
        full.append(any(hits))
        looped.append(good)
        images.append(drawn)
        by_size.setdefault(spec.total, []).append((hits[0], good))
    mean = sum(images) / len(images)
    complexity_mean = sum(probe.complexity(probe.of_spec(s, t)) for t, s in made) / len(made)
    lines = [
        f"{count} prompts of 3 to 5 objects, complexity (A.7) {complexity_mean:.1f}; the loop drew {mean:.2f} each.",
        "",
        "| way | images a prompt | passes [95 %] |",
        "| --- | --- | --- |",
        f"| one shot | 1 | {_rate(shots)} |",
        f"| best of N, N = the loop's images for that prompt | {mean:.2f} | {_rate(equal)} |",
        f"| best of {rounds} | {rounds} | {_rate(full)} |",
        f"| closed loop, at most {rounds} rounds | {mean:.2f} | {_rate(looped)} |",
        "",
        "| objects | one shot | closed loop |",
        "| --- | --- | --- |",
    ]
    for size in sorted(by_size):
        lines.append(f"| {size} | {_rate(a for a, _ in by_size[size])} | {_rate(b for _, b in by_size[size])} |")
    return lines


def _rate(outcomes: Iterable[bool]) -> Rate:
    listed = list(outcomes)
    return Rate(sum(listed), len(listed))


def table(sampler: Sampler, names: Sequence[str], count: int, seed: int, steps: int, guidance: float) -> list[str]:
    lines = ["| task | passes [95 %] | target |", "| --- | --- | --- |"]
    for name in names:
        rng = random.Random(f"{seed}:{name}")
        tasks = edit_tasks(name, count, rng) if name in KINDS else text_tasks(name, count, rng)
        distinct = len({t.text for t in tasks})
        rate = passes(sampler, tasks, seed, steps, guidance)
        target = TARGETS.get(name)
        lines.append(f"| {name} ({distinct} texts) | {rate} | {target if target is not None else ''} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=builtin.PATH)
    parser.add_argument("--only", choices=("text", "edits", "loop"), action="append")
    parser.add_argument("--n", type=int, default=200, help="prompts for each line")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=12345)
    parser.add_argument("--out", type=Path, help="also write the tables here")
    options = parser.parse_args()
    parts = options.only or ["text", "edits", "loop"]
    began = time.monotonic()
    lines: list[str] = []
    sampler = open_sampler(options.model)
    if "text" in parts:
        names = ("single", "colors", "two", "counting", "position", "attribution", "complex")
        lines += [*table(sampler, names, options.n, options.seed, options.steps, options.guidance), ""]
    if "edits" in parts:
        lines += [*table(sampler, KINDS, options.n, options.seed, options.steps, options.guidance), ""]
    if "loop" in parts:
        generator = Flux2Generator.load(str(options.model), steps=options.steps, guidance=options.guidance)
        found = compare(generator, options.n, options.rounds, options.seed)
        print("\n".join(found), flush=True)
        lines += found
    minutes = (time.monotonic() - began) / 60
    how = f"{options.n} prompts a line, {options.steps} steps, CFG {options.guidance:g}, seed {options.seed}"
    lines += ["", f"{how}, torch {torch.__version__}, {minutes:.1f} min."]
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
