"""A kept trajectory as a record: its conversation, the DiT's samples, its pictures, and where each of them is from."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clvr import context
from clvr.context import to_sharegpt
from clvr.images import png_bytes
from clvr.ports import Album
from clvr.trajectory import Trajectory, encode

from .candidates import Prompt
from .records import FORMAT, Provenance, Sample

FIELDS: Mapping[str, str] = {
    "goal": "prompt",
    "checks": "controller",
    "conversations": "narrator for `reasoning`; controller for action, instruction, references; verifier for outcomes",
    "images": "generator",
    "steps.context": "clvr.context.build over the narrated trajectory",
    "steps.instruction": "controller",
    "steps.checks": "controller, one list a step; every check of it passed by verifier",
    "clvr.trajectory": "controller, generator, verifier; reasoning and stop_reason by narrator",
}
"""Who, of those that a provenance names, made each key of a record."""


def image_path(prompt: Prompt, index: int) -> str:
    """Within the dataset's folder."""
    return f"images/{prompt.id[:2]}/{prompt.id}/{index}.png"


def record(
    prompt: Prompt, trajectory: Trajectory, album: Album, provenance: Provenance
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The line of a shard as plain data, and its pictures as PNG by path. `trajectory` is straightened and narrated,
    and ends rightly, so that every picture is shown."""
    paths = {label: image_path(prompt, index) for index, label in enumerate(album)}
    files = {paths[label]: png_bytes(image) for label, image in album.items()}
    told = to_sharegpt(trajectory, paths)
    digests = tuple(hashlib.sha256(files[path]).hexdigest() for path in told["images"])
    data = {
        "format": FORMAT,
        "id": prompt.id,
        "goal": trajectory.goal.prompt,
        "checks": encode(trajectory.goal.checks),
        **told,
        "steps": encode(list(samples(trajectory, album, [paths[label] for label in album], told["images"]))),
        "provenance": encode(dataclasses.replace(provenance, digests=digests, fields=FIELDS)),
    }
    return data, files


def samples(trajectory: Trajectory, album: Album, paths: Sequence[str], images: Sequence[str]) -> Iterator[Sample]:
    """A sample for each accepted round. `paths` in the album's order; indices are into `images`."""
    where = {label: images.index(path) for label, path in zip(album, paths, strict=True)}
    for step in trajectory.steps:
        if not step.accepted:
            continue
        decision = step.decision
        before = dataclasses.replace(trajectory, steps=trajectory.steps[: step.index])
        yield Sample(
            context.build(before, decision, album).text,
            tuple(where[label] for label in decision.references),
            where[step.label],
            decision.instruction,
            decision.action,
            decision.expects,
        )
