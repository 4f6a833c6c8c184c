"""Prompt files that nobody vouches for: every mistake names the file, the line and the remedy."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import FormatError, MissingFileError

MAX_BYTES = 64 * 2**20
LONGEST = 20_000
"""Characters of one text; the longest official prompt has under 3,000."""


@dataclass(frozen=True)
class Row:
    """One prompt's record. `place` is where it stands; `needs` says what a record must hold."""

    place: str
    data: Mapping[str, Any]
    needs: str

    def text(self, name: str) -> str:
        """A text with something in it."""
        value = self._present(name)
        if not isinstance(value, str) or not value.strip():
            raise self.error(f"'{name}' should be a text, not {value!r:.60}")
        if len(value) > LONGEST:
            raise self.error(f"'{name}' has {len(value)} characters, more than {LONGEST}")
        if any("\ud800" <= c <= "\udfff" for c in value):
            raise self.error(f"'{name}' holds half a character (a lone surrogate)")
        return value.strip()

    def number(self, name: str, low: int, high: int) -> int:
        value = self._present(name)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.error(f"'{name}' should be a whole number from {low} to {high}, not {value!r:.60}")
        return value

    def choice(self, name: str, known: Iterable[str]) -> str:
        value, names = self.text(name), tuple(known)
        if value not in names:
            raise self.error(f"'{name}' is {value!r:.60}, which is none of {', '.join(names)}")
        return value

    def rows(self, name: str, needs: str) -> tuple[Row, ...]:
        """A list of records within this one."""
        value = self._present(name)
        if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
            raise self.error(f"'{name}' should be a list of objects, not {value!r:.60}")
        return tuple(Row(f"{self.place}, {name}[{i}]", v, needs) for i, v in enumerate(value))

    def error(self, problem: str) -> FormatError:
        return FormatError(f"{self.place}: {problem}.", f"A prompt needs {self.needs}.")

    def _present(self, name: str) -> Any:  # noqa: ANN401
        if name not in self.data:
            raise self.error(f"'{name}' is missing")
        return self.data[name]


def lines(path: Path, needs: str) -> list[Row]:
    """A .jsonl file's records; blank lines are skipped. Raises MissingFileError, FormatError."""
    rows = [Row(f"{path} line {n}", _object(path, n, line, needs), needs) for n, line in _numbered(path)]
    return _some(rows, path, needs)


def table(path: Path, needs: str) -> list[Row]:
    """A .json file's list of records; or, where it ends in .jsonl, its lines."""
    if path.suffix == ".jsonl":
        return lines(path, needs)
    try:
        value = json.loads(text(path))
    except json.JSONDecodeError as error:
        raise _malformed(path, error.lineno, error.msg, needs) from None
    except (ValueError, RecursionError):
        raise _malformed(path, 1, "it cannot be read", needs) from None
    if not isinstance(value, list):
        raise FormatError(f"{path} holds no list of prompts.", f"It should be a list of objects with {needs}.")
    rows = [_listed(path, i, entry, needs) for i, entry in enumerate(value, 1)]
    return _some(rows, path, needs)


def plain(path: Path) -> list[tuple[int, str]]:
    """A text file's lines with their numbers, without blank ones."""
    found = list(_numbered(path))
    return _some(found, path, "one prompt a line")


def text(path: Path) -> str:
    """A whole UTF-8 file. Raises MissingFileError, FormatError."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise FormatError(f"{path} is larger than {MAX_BYTES >> 20} MB.", "Is this a file of prompts?")
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise MissingFileError(f"There is no {path}.", "Give the prompts' file or folder with --prompts.") from None
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is not UTF-8 (byte {error.start}).", "Save it again as UTF-8.") from None
    except OSError as error:
        raise FormatError(f"Cannot read {path}: {error.strerror or error}.", "Check the file's rights.") from None


def unique(rows: Iterable[tuple[str, Row]]) -> None:
    """Raises FormatError where two records have the same id."""
    seen: dict[str, str] = {}
    for name, row in rows:
        if name in seen:
            raise row.error(f"the id {name} is already that of {seen[name]}")
        seen[name] = row.place


def _numbered(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text(path).split("\n"), 1):
        if line.strip():
            yield number, line.strip()


def _object(path: Path, number: int, line: str, needs: str) -> Mapping[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise _malformed(path, number, error.msg, needs) from None
    except (ValueError, RecursionError):
        raise _malformed(path, number, "it cannot be read", needs) from None
    if not isinstance(value, dict):
        raise FormatError(f"{path} line {number} is no JSON object.", f"A line should be an object with {needs}.")
    return value


def _malformed(path: Path, number: int, problem: str, needs: str) -> FormatError:
    return FormatError(f"{path} line {number} is no JSON: {problem}.", f"A prompt is an object with {needs}.")


def _listed(path: Path, number: int, entry: object, needs: str) -> Row:
    if not isinstance(entry, dict):
        raise FormatError(f"{path} prompt {number} is no JSON object.", f"A prompt is an object with {needs}.")
    return Row(f"{path} prompt {number}", entry, needs)


def _some(rows: list, path: Path, needs: str) -> list:
    if not rows:
        raise FormatError(f"{path} holds no prompt.", f"It should hold {needs}.")
    return rows
