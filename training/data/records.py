"""A dataset of verified trajectories, as the trainers read it.

`shard-00000.jsonl` …: one trajectory a line, with its pictures under `images/`. A line is a ShareGPT record (keys
`conversations` and `images`, as `clvr.context.to_sharegpt` writes them) with `steps`, the DiT's samples (A.6: a
trajectory of n pictures is n samples), `checks`, the goal's checklist, and `provenance`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clvr.context import EXTRA, from_sharegpt
from clvr.errors import ClvrError, FormatError, ImageError, MissingFileError
from clvr.images import load_image
from clvr.trajectory import Action, Check, Trajectory, Usage, decode

if TYPE_CHECKING:
    from PIL.Image import Image

FORMAT = 1
SHARDS = "shard-*.jsonl"


@dataclass(frozen=True)
class Sample:
    """One round: what the DiT is given and what it should draw. `references` and `target` index the record's
    images; `context` is c_t of eq. 1; `checks` are the round's own, made from its instruction."""

    context: str
    references: tuple[int, ...]
    target: int
    instruction: str
    action: Action
    checks: tuple[Check, ...] = ()


@dataclass(frozen=True)
class Vote:
    """One judge's word in the blind comparison with the one-shot baseline. `first`: the trajectory's picture was
    shown first. `preferred`: the probability in [0, 1] that it is the better one."""

    judge: str
    first: bool
    preferred: float
    note: str = ""
    usage: Usage = Usage()

    @property
    def word(self) -> str:
        if self.preferred == 0.5:
            return "tie"
        return "trajectory" if self.preferred > 0.5 else "one shot"


@dataclass(frozen=True)
class Provenance:
    """Where everything in a record comes from. `prompt` is a file and line; `attempt` counts from 0; `digests` are
    the SHA-256 of the images' files in order; `fields` says of each key of the record who made it."""

    prompt: str
    engine: str
    controller: str
    generator: str
    verifier: str
    narrator: str
    seed: int
    attempt: int
    votes: tuple[Vote, ...] = ()
    digests: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Turn:
    """A turn of a conversation: human, gpt or tool. Each `<image>` in `value` stands for the next of the images."""

    role: str
    value: str


@dataclass(frozen=True)
class Record:
    """One trajectory. `images` are paths within `folder`, opened when they are asked for; `place` is the file and
    line that the record stands in."""

    folder: Path
    place: str
    id: str
    goal: str
    checks: tuple[Check, ...]
    conversations: tuple[Turn, ...]
    images: tuple[str, ...]
    steps: tuple[Sample, ...]
    trajectory: Trajectory
    provenance: Provenance

    def path(self, index: int) -> Path:
        return self.folder / self.images[index]

    def image(self, index: int) -> Image:
        """Upright 8-bit RGB. Raises MissingFileError and ImageError, which name the record's place too."""
        try:
            return load_image(self.path(index))
        except (ImageError, MissingFileError) as error:
            raise type(error)(f"{self.place}: {error.thing}", error.remedy) from error


def shards(folder: str | Path) -> list[Path]:
    """In order. Raises MissingFileError where the folder holds no dataset."""
    found = sorted(Path(folder).glob(SHARDS))
    if not found:
        raise MissingFileError(
            f"{folder} holds no dataset (no {SHARDS}).", "Make one with: python -m training.data PROMPTS --out DIR"
        )
    return found


def read(folder: str | Path) -> Iterator[Record]:
    """Every record, line by line. Raises MissingFileError, and FormatError naming the file and the line."""
    folder = Path(folder)
    for shard in shards(folder):
        with open(shard, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield parse(line, folder, f"{shard} line {number}")


def parse(line: str, folder: Path, place: str) -> Record:
    """One line of a shard. Raises FormatError naming `place`."""
    try:
        return _record(json.loads(line), folder, place)
    except (FormatError, json.JSONDecodeError) as error:
        problem = error.thing if isinstance(error, ClvrError) else f"This is no JSON: {error.msg}."
        raise FormatError(f"{place}: {problem}", "Export the dataset again, or take the line out.") from error


def _record(data: Any, folder: Path, place: str) -> Record:  # noqa: ANN401
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise FormatError(f"This is no record of format {FORMAT}.")
    missing = [key for key in ("id", "goal", "checks", "images", "steps", "provenance", EXTRA) if key not in data]
    if missing:
        raise FormatError(f"The record lacks {', '.join(missing)}.")
    trajectory, _ = from_sharegpt(data)
    turns = tuple(Turn(turn["from"], turn["value"]) for turn in data["conversations"])
    record = Record(
        folder,
        place,
        decode(str, data["id"], "id"),
        decode(str, data["goal"], "goal"),
        decode(tuple[Check, ...], data["checks"], "checks"),
        turns,
        decode(tuple[str, ...], data["images"], "images"),
        decode(tuple[Sample, ...], data["steps"], "steps"),
        trajectory,
        decode(Provenance, data["provenance"], "provenance"),
    )
    _check_images(record)
    return record


def _check_images(record: Record) -> None:
    """Raises FormatError for a path that leads out of the folder, or an index without an image."""
    for path in record.images:
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise FormatError(f"The image path {path!r} leads out of the dataset.")
    for number, step in enumerate(record.steps):
        wrong = [i for i in (step.target, *step.references) if not 0 <= i < len(record.images)]
        if wrong:
            raise FormatError(f"steps[{number}] names image {wrong[0]}; there are {len(record.images)}.")
