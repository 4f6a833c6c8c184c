"""A tiny dataset of trajectories in the built-in world, as `python -m training.data` exports one."""

from __future__ import annotations

import json
import random
from pathlib import Path

from clvr.context import to_sharegpt
from clvr.images import png_bytes
from clvr.shapes.render import render
from clvr.shapes.sampler import edit_sample, prompt
from clvr.shapes.scene import realise
from clvr.trajectory import Candidate, Decision, Goal, Step, Trajectory, encode
from training.data.export import samples
from training.data.records import FORMAT, Provenance

PROVENANCE = Provenance("prompts.txt:1", "test", "test", "test", "test", "test", 0, 0)


def write(folder: Path, trajectories: int = 4, seed: int = 0) -> Path:
    """Trajectories of one to three pictures; the second and third refer to those before."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [_record(folder, rng, f"t{n}", 1 + n % 3) for n in range(trajectories)]
    (folder / "shard-00000.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return folder


def _record(folder: Path, rng: random.Random, name: str, rounds: int) -> dict:
    text, spec = prompt("two", rng)
    trajectory, album, paths = Trajectory(Goal(text)), {}, {}
    for n in range(rounds):
        label = f"IMG_GEN_{n}"
        picture = render(realise(spec, rng) if n == 0 else edit_sample("add", rng)[0], rng.getrandbits(30))
        album[label], paths[label] = picture, f"images/{name}-{n}.png"
        (folder / "images").mkdir(exist_ok=True)
        (folder / paths[label]).write_bytes(png_bytes(picture))
        references = tuple(f"IMG_GEN_{k}" for k in range(n))
        words = text if n == 0 else f"add thing {n}"
        decision = Decision("edit" if n else "generate", words, words, references)
        trajectory = trajectory.append(Step(n, decision, (Candidate(0),), 0, True))
    told = to_sharegpt(trajectory, paths)
    images = [*dict.fromkeys([*told["images"], *paths.values()])]
    return {
        "format": FORMAT,
        "id": name,
        "goal": text,
        "checks": [],
        **told,
        "images": images,
        "steps": encode(list(samples(trajectory, album, list(paths.values()), images))),
        "provenance": encode(PROVENANCE),
    }
