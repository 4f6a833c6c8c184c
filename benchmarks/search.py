"""Policies against one shot and best-of-N at equal function evaluations, in the built-in world.

    python -m benchmarks.search                        everything, 90 minutes of one core; resumes
    python -m benchmarks.search --quick                two minutes: fewer prompts, the same tables
    python -m benchmarks.search --part 1/2             half of the runs; start 2/2 beside it, then once without

Prompts are held back from training, each with its exact checklist; tiers are quartiles of A.7's complexity. The
measuring verifier judges the result, and in the loop, unless a row says otherwise. Drawings of different runs share
batches, so that pictures may differ by a rounding from those of `clvr generate`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL.Image import Image

from clvr import builtin, loop, probe
from clvr.budget import Budget
from clvr.events import Drawn, Event
from clvr.judges.faulty import FaultyVerifier
from clvr.policies import POLICIES, Means, Policy, Ruling
from clvr.policies.auto import Auto
from clvr.policies.base import Climb
from clvr.ports import Verifier
from clvr.shapes.controller import ShapesController
from clvr.shapes.verifier import MeasuringVerifier
from clvr.trajectory import Brief, Candidate, Check, CheckVerdict, Decision, Goal, Trajectory, Verdict
from training import book
from training.folder import open_sampler
from training.goals import TIERS, Task, tasks
from training.lockstep import Painter

from .search_tables import Result, write

IMAGES = 8
"""The budget of every method, in pictures."""


class Refine(Climb):
    """Refinement alone: one shot, then an edit a round, each kept whatever it does."""

    name = "refinement only"

    def brief(self, trajectory: Trajectory, means: Means) -> Brief:
        return Brief() if trajectory.steps else Brief(tactic="one-shot")

    def settle(self, trajectory: Trajectory, candidate: Candidate, decision: Decision) -> Ruling:
        return Ruling(True)


@dataclass(frozen=True)
class Holistic:
    """One verdict for the whole goal, in place of a checklist: `checks` tell what it goes by."""

    checks: tuple[Check, ...]
    name: str = "one question for the whole"

    def judge(self, image: Image, checks: Sequence[Check], references: Sequence[Image] = ()) -> Verdict:
        own = [check for check in checks if check.id != "whole"]
        verdict = MeasuringVerifier().judge(image, own, references)
        if len(own) == len(checks):
            return verdict
        holds = MeasuringVerifier().judge(image, self.checks).satisfied(self.checks)
        return Verdict((*verdict.results, CheckVerdict("whole", "pass" if holds else "fail")))


Judge = Callable[[Task], Verifier]


def measuring(task: Task) -> Verifier:
    return MeasuringVerifier()


def faulty(task: Task, flip: float = 0, fail: float = 0, garbage: float = 0) -> Verifier:
    return FaultyVerifier(MeasuringVerifier(), task.number, flip, fail, garbage)


@dataclass(frozen=True)
class Method:
    """A row: how the loop is run. `images` is the budget in pictures, `longer` draws one picture in so many times
    the denoising steps, `only` takes every n-th prompt."""

    name: str
    policy: str
    candidates: int = 1
    rounds: int = IMAGES
    images: int = IMAGES
    longer: int = 1
    judge: Judge = measuring
    holistic: bool = False
    only: int = 1
    group: str = "methods"


def methods() -> list[Method]:
    """Every row of every table. Registers the laboratory's own policies."""
    for policy in (Refine(), *_variants()):
        POLICIES.setdefault(policy.name, policy)
    part = partial(Method, only=2)
    rows = [
        Method("one shot", "one-shot", rounds=1, images=1),
        Method("one shot, 8 times the denoising steps", "one-shot", rounds=1, images=1, longer=IMAGES, only=4),
        Method("best of 8", "one-shot", IMAGES, rounds=1),
        Method("refinement only", "refinement only"),
        Method("clvr", "clvr"),
        Method("director", "director", 2, rounds=6),
        Method("strokes", "strokes"),
        Method("auto", "auto"),
    ]
    rows += [part(f"auto, {n} images", "auto", 1, n, n, group="budget") for n in (1, 2, 4, 16)]
    rows += [
        part("one question instead of a checklist", "auto", holistic=True, group="parts"),
        part("two candidates a round", "auto", 2, group="parts"),
        part("no rollback", "auto without rollback", group="parts"),
        part("no gate", "auto without gate", group="parts"),
        part("no change of tactics", "auto without tactics", group="parts"),
    ]
    judges = {
        "wrong 10 %": partial(faulty, flip=0.1),
        "wrong 20 %": partial(faulty, flip=0.2),
        "fails 20 % of its calls": partial(faulty, fail=0.2),
        "answers garbage": partial(faulty, garbage=1.0),
    }
    for policy in ("clvr", "auto"):
        rows += [part(f"{policy}, {k}", policy, judge=j, group="robust") for k, j in judges.items()]
    return rows


def _variants() -> Iterator[Policy]:
    yield Auto("auto without rollback", rollback=False)
    yield Auto("auto without gate", gate=False)
    yield Auto("auto without tactics", tactics=False)


def solve(method: Method, task: Task, painter: Painter, seed: int) -> Result:
    began = time.monotonic()
    checks = (Check("whole", "Does the picture show the goal?"),) if method.holistic else task.checks
    judge = Holistic(task.checks) if method.holistic else method.judge(task)
    budget = Budget(
        steps=method.rounds,
        candidates=method.candidates,
        batch=1,
        nfe=painter.nfe(method.images),
        patience=max(method.rounds, 1),
    )
    ports = loop.Ports(ShapesController(), painter, judge)
    settings = loop.Settings(budget, method.policy)
    first: list[Image] = []

    def listen(event: Event) -> None:
        if isinstance(event, Drawn) and not first:
            first.append(event.pictures.images[0])

    state = loop.run(Goal(task.text, 0, checks), (), ports, settings, seed + task.number, listen)
    trajectory, exact = state.trajectory, MeasuringVerifier()
    assert state.best is not None
    end, start = exact.judge(state.best, task.checks), exact.judge(first[0], task.checks)
    return Result(
        method.name,
        task.number,
        task.tier,
        task.complexity,
        end.satisfied(task.checks),
        _recall(end, task.checks),
        start.satisfied(task.checks),
        _recall(start, task.checks),
        sum(len(step.candidates) for step in trajectory.steps),
        len(trajectory.steps),
        trajectory.cost.nfe,
        sum(not step.accepted for step in trajectory.steps),
        trajectory.stop_reason,
        time.monotonic() - began,
        [step.decision.brief.tactic for step in trajectory.steps],
    )


def _recall(verdict: Verdict, checks: Sequence[Check]) -> float:
    return probe.recall(outcome for _, outcome in verdict.effective(checks)) or 0.0


def _books(folder: Path, row: int, part: str) -> tuple[Path, list[Path]]:
    """The file of a row's results that this part writes, and what other parts wrote of the row."""
    own = folder / f"{row:02}-{part.replace('/', 'of')}.jsonl"
    return own, [path for path in folder.glob(f"{row:02}-*.jsonl") if path != own]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=builtin.PATH)
    parser.add_argument("--prompts", type=int, default=212, help="for each tier, about: equal ones share a tier")
    parser.add_argument("--steps", type=int, default=6, help="denoising steps of a picture")
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=20261)
    parser.add_argument("--part", default="1/1", help="1/2 and 2/2 share the work between two processes")
    parser.add_argument("--work", type=Path, default=Path("out/search"), help="where results are collected")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="where tables and plots go")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.prompts, options.work, options.out = 2, options.work / "quick", options.work / "quick"
    options.work.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    part, parts = (int(n) for n in options.part.split("/"))
    made = tasks(options.prompts * TIERS, options.seed)
    rows, sampler = methods(), open_sampler(options.model)
    for number, method in enumerate(rows):
        painter = Painter(sampler, options.steps * method.longer, options.guidance)
        own, others = _books(options.work, number, options.part)
        done = {row.task for path in others for row in book.read(path, Result)}
        mine = [t for t in made[:: method.only] if t.number // method.only % parts == part - 1 and t.number not in done]
        jobs = {task.number: partial(solve, method, task, painter, options.seed) for task in mine}
        book.fill(own, Result, jobs, painter, method.name)
    found = [row for path in sorted(options.work.glob("*.jsonl")) for row in book.read(path, Result)]
    how = f"{options.steps} denoising steps and CFG {options.guidance:g} a picture, seed {options.seed}"
    for path in write(found, [(m.name, m.group) for m in rows], options.out, how):
        print(path)


if __name__ == "__main__":
    main()
