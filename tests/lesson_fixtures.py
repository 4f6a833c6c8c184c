"""A dataset of verified trajectories, small and made by hand, and the tiny Qwen3-VL that learns from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from trl.chat_template_utils import qwen3_vl_chat_template

from clvr.context import to_sharegpt
from clvr.trajectory import (
    Candidate,
    Check,
    CheckVerdict,
    Decision,
    Evidence,
    Goal,
    Outcome,
    Step,
    Trajectory,
    Verdict,
    encode,
)
from clvr.vlm import templates
from clvr.vlm.replies import dump_decision

from .tiny_vlm import make

DOG = Check("dog", "Is there a dog?", "object")
RED = Check("red", "Is the dog red?", "color", "dog")
COLORS = ("red", "green", "blue", "white", "black")


def model(folder: Path) -> Path:
    """A tiny Qwen3-VL with the real one's chat template, for which the planner's prompt is a few hundred tokens."""
    spoken = [dump_decision(s.decision) for s in trajectory("fail", "fail").steps]
    return make(folder, qwen3_vl_chat_template, texts=[templates.text("plan"), templates.repair(""), *spoken])


def step(index: int, outcome: Outcome, accepted: bool = True) -> Step:
    decision = (
        Decision("edit", f"It is not red, {index}.", f"make it red {index}", (f"IMG_GEN_{index - 1}",), (RED,))
        if index
        else Decision("generate", "Nothing is there yet.", "a red dog", (), (DOG,))
    )
    seen = (CheckVerdict("dog", "pass"), CheckVerdict("red", outcome, None, (Evidence("judge", "I looked."),)))
    verdict = Verdict(seen)
    return Step(index, decision, (Candidate(7 + index, verdict, verdict),), 0, accepted)


def trajectory(*outcomes: Outcome, references: int = 0, rejected: Sequence[int] = ()) -> Trajectory:
    """One step an outcome of RED."""
    steps = tuple(step(i, outcome, i not in rejected) for i, outcome in enumerate(outcomes))
    return Trajectory(Goal("a red dog", references, (DOG, RED)), steps, 3, "every check holds")


def write(folder: Path, *made: Trajectory, size: tuple[int, int] = (64, 48)) -> Path:
    """A dataset as training.data exports it."""
    (folder / "images").mkdir(parents=True)
    with open(folder / "shard-00000.jsonl", "w", encoding="utf-8") as shard:
        for number, one in enumerate(made):
            shard.write(json.dumps(_line(folder, number, one, size)) + "\n")
    return folder


def _line(folder: Path, number: int, one: Trajectory, size: tuple[int, int]) -> dict[str, object]:
    labels = [*one.goal.labels(), *(s.label for s in one.steps)]
    paths = {label: f"images/{number}-{label}.png" for label in labels}
    for index, path in enumerate(paths.values()):
        Image.new("RGB", size, COLORS[(number + index) % len(COLORS)]).save(folder / path)
    origin = dict.fromkeys(("prompt", "engine", "controller", "generator", "verifier", "narrator"), "test")
    return {
        **to_sharegpt(one, paths),
        "format": 1,
        "id": str(number),
        "goal": one.goal.prompt,
        "checks": encode(one.goal.checks),
        "steps": [],
        "provenance": {**origin, "seed": one.seed, "attempt": 0},
    }
