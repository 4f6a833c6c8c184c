"""Pictures with questions that a person answered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from ..errors import FormatError, MissingFileError
from ..trajectory import Check, CheckKind

FILE = "labels.jsonl"
_ANSWERS = {"yes": True, "no": False, "true": True, "false": False, "1": True, "0": False}
_EXAMPLE = 'Write lines like {"image": "cat.png", "question": "Is there a cat?", "answer": "yes"}.'


@dataclass(frozen=True)
class Photo:
    """A picture's file, its questions, and the true answer of each by id."""

    path: Path
    checks: tuple[Check, ...]
    answers: Mapping[str, bool]


def read(path: Path) -> list[Photo]:
    """From JSON lines, or a folder with labels.jsonl; image paths are relative to the file. Raises MissingFileError,
    FormatError naming the line."""
    file = path / FILE if path.is_dir() else path
    try:
        lines = file.read_text("utf-8").splitlines()
    except FileNotFoundError:
        raise MissingFileError(f"There is no file {file}.", _EXAMPLE) from None
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"Cannot read {file}: {error}.", _EXAMPLE) from error
    found: dict[Path, list[tuple[Check, bool]]] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            image, check, answer = _row(line, f"{file}, line {number}")
            rows = found.setdefault(file.parent / image, [])
            rows.append((Check(f"q{len(rows) + 1}", *check), answer))
    if not found:
        raise FormatError(f"{file} has no lines.", _EXAMPLE)
    return [Photo(p, tuple(c for c, _ in rows), {c.id: a for c, a in rows}) for p, rows in found.items()]


def _row(line: str, where: str) -> tuple[str, tuple[str, CheckKind], bool]:
    try:
        data: Any = json.loads(line)
    except ValueError as error:
        raise FormatError(f"{where} is no JSON: {error}.", _EXAMPLE) from None
    if not isinstance(data, dict):
        raise FormatError(f"{where} is no JSON object.", _EXAMPLE)
    image, question = data.get("image"), data.get("question")
    answer = _ANSWERS.get(str(data.get("answer")).strip().lower())
    if not (isinstance(image, str) and image and isinstance(question, str) and question) or answer is None:
        raise FormatError(f"{where} lacks an image, a question, or an answer that is yes or no.", _EXAMPLE)
    kind = data.get("kind")
    return image, (question, cast(CheckKind, kind) if kind in get_args(CheckKind) else "other"), answer
