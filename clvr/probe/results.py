"""What models achieved, read from files of JSON lines, and compared by tier.

A line is one judged image: {"prompt", "passed": true or false, "recall": 0 to 1 if known, "complexity": number}, or
"parts" in place of the number, or neither for a prompt of the built-in world. Other fields are left alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import FormatError, GrammarError, MissingFileError
from .complexity import DEFAULT, Parts, Weights, complexity
from .stratify import GrammarReader
from .tiers import TIERS, Scored, Shot, TierResult, auc_pass, auc_recall, by_prompt, by_tier, edges

_REMEDY = 'A line is {"prompt": …, "passed": true, "recall": 0.8, "complexity": 12.3} for one image.'


@dataclass(frozen=True)
class Result:
    """One model's file: its name, all prompts, and the tiers that it shares with the other files."""

    name: str
    scored: tuple[Scored, ...]
    tiers: tuple[TierResult, ...]

    @property
    def images(self) -> int:
        return sum(one.images for one in self.scored)

    @property
    def area(self) -> float:
        """AUC_pass."""
        return auc_pass(self.tiers)

    @property
    def recall_area(self) -> float | None:
        return auc_recall(self.tiers)


def compare(files: Mapping[str, Sequence[Shot]], count: int = TIERS) -> list[Result]:
    """Every model over the same tiers: the quantiles of all prompts that stand in any file. Raises SettingError."""
    scored = {name: tuple(by_prompt(shots)) for name, shots in files.items()}
    places = {one.prompt: one.complexity for ones in scored.values() for one in ones}
    upper = edges(list(places.values()), count)
    return [Result(name, ones, tuple(by_tier(ones, upper))) for name, ones in scored.items()]


def read(path: Path, weights: Weights = DEFAULT) -> list[Shot]:
    """Raises MissingFileError, and FormatError naming the line."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (FileNotFoundError, IsADirectoryError):
        raise MissingFileError(f"There is no file {path}.", "Check the path.") from None
    except UnicodeDecodeError:
        raise FormatError(f"{path} is no text.", _REMEDY) from None
    shots = [_shot(f"{path}, line {n}", line, weights) for n, line in enumerate(lines, 1) if line.strip()]
    if not shots:
        raise FormatError(f"{path} holds no result.", _REMEDY)
    return shots


def _shot(place: str, line: str, weights: Weights) -> Shot:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise FormatError(f"{place} is not JSON.", _REMEDY) from None
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise FormatError(f"{place} names no prompt.", _REMEDY)
    passed, recall = row.get("passed"), row.get("recall")
    if not isinstance(passed, bool):
        raise FormatError(f"{place}: passed is {passed!r:.40}.", "It is true or false.")
    if recall is not None and not _number(recall, 1.0):
        raise FormatError(f"{place}: recall is {recall!r:.40}.", "It is a share from 0 to 1, or null.")
    return Shot(row["prompt"], _complexity(place, row, weights), passed, recall)


def _complexity(place: str, row: Mapping[str, Any], weights: Weights) -> float:
    if "parts" in row:
        try:
            return complexity(Parts.from_dict(row["parts"]), weights)
        except FormatError as error:
            raise FormatError(f"{place}: {error.thing}", error.remedy) from None
    found = row.get("complexity")
    if found is None:
        try:
            return complexity(GrammarReader().count(row["prompt"]), weights)
        except GrammarError as error:
            raise FormatError(
                f"{place} has no complexity, and its prompt is none of the built-in world. {error.thing}",
                "Make the file's prompts with clvr probe prompts FILE --json, which says it for each.",
            ) from None
    if not _number(found, math.inf):
        raise FormatError(f"{place}: complexity is {found!r:.40}.", "It is a number from 0 up.")
    return float(found)


def _number(value: object, most: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= most and value < math.inf
