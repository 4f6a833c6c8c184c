"""Prompts to make trajectories for: from files, and made up in the built-in world."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clvr.bench import reading
from clvr.bench.registry import NAMES, open_suite
from clvr.errors import SettingError
from clvr.shapes.sampler import CATEGORIES
from clvr.shapes.sampler import prompt as world_prompt

from .config import PromptConfig

_PATIENCE = 200
"""Prompts in a row that brought nothing new."""


@dataclass(frozen=True)
class Prompt:
    """`source` is a file and line, or what made it up. `tag` groups prompts in the statistics, '' for none."""

    text: str
    source: str
    tag: str = ""

    @property
    def id(self) -> str:
        """16 hex digits of its words."""
        return hashlib.sha256(" ".join(self.text.split()).encode()).hexdigest()[:16]


def gather(config: PromptConfig, seed: int) -> list[Prompt]:
    """All candidates, in order. Raises SettingError for a category that there is not or where nothing is asked for;
    MissingFileError and FormatError for a file."""
    found = [prompt for name in config.files for prompt in from_file(Path(name), config.key)]
    found += from_world(config, seed)
    if not found:
        raise SettingError("There are no prompts.", "Name files under prompts.files, or a number as prompts.world.")
    return found


def from_file(path: Path, key: str) -> Iterator[Prompt]:
    """Raises MissingFileError, FormatError."""
    if path.suffix in (".jsonl", ".json"):
        for number, row in enumerate(reading.table(path, f"a text '{key}'"), 1):
            tag = row.data.get("tag")
            yield Prompt(row.text(key), f"{path.name}:{number}", tag if isinstance(tag, str) else "")
        return
    for number, text in reading.plain(path):
        yield Prompt(text, f"{path.name}:{number}")


def from_world(config: PromptConfig, seed: int) -> list[Prompt]:
    """Different prompts of the built-in world, none of its held-back tenth; fewer where there are not as many."""
    unknown = sorted(set(config.categories) - set(CATEGORIES))
    if unknown:
        raise SettingError(f"The built-in world has no prompts '{unknown[0]}'.", f"It has {', '.join(CATEGORIES)}.")
    rng = random.Random(f"{seed}/prompts")
    names, shares = list(config.categories), list(config.categories.values())
    found: dict[str, Prompt] = {}
    idle = 0
    while len(found) < config.world and idle < _PATIENCE:
        category = rng.choices(names, shares)[0]
        text, _ = world_prompt(category, rng, held=False)
        idle = idle + 1 if text in found else 0
        found.setdefault(text, Prompt(text, f"built-in world, {category}", category))
    return list(found.values())


def evaluation(name: str) -> Iterator[tuple[str, str]]:
    """Where each evaluation prompt stands, and the prompt: of a suite, `suite=PATH`, or a file. Raises SettingError,
    MissingFileError, FormatError."""
    suite, _, path = name.partition("=")
    if suite in NAMES:
        for item in open_suite(suite, Path(path) if path else None).items:
            yield f"{suite} {item.id}", item.prompt
        return
    file = Path(name)
    rows = reading.table(file, "a prompt") if file.suffix in (".jsonl", ".json") else None
    if rows is None:
        yield from ((f"{file.name}:{number}", text) for number, text in reading.plain(file))
        return
    for number, row in enumerate(rows, 1):
        key = next((k for k in ("prompt", "Prompt", "instruction", "caption") if k in row.data), "prompt")
        yield f"{file.name}:{number}", row.text(key)
