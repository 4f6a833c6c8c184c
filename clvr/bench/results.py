"""What a benchmark leaves on disk, besides its runs.

bench.json           what was asked for; another request in the same folder is refused
images/…             as the official scorer expects them
runs/ID/             a run's folder for each prompt
verdicts/ID.json     one result, written as a whole: nothing is lost or doubled by a kill
results.jsonl        the results in the suite's order, summary.json, bench.html: made anew from the above
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import FormatError, RunFolderError
from ..files import hold, write_atomic
from ..trajectory import Check, CheckVerdict, Cost, decode, encode

PLAN, RESULTS, SUMMARY, PAGE = "bench.json", "results.jsonl", "summary.json", "bench.html"


@dataclass(frozen=True)
class Plan:
    """What makes two results of a folder comparable. `mode` is a policy's name, one-shot, best-of-N, or images."""

    suite: str
    prompts: str
    mode: str
    seed: int = 0
    budget: str = ""
    size: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    format: int = 1


@dataclass(frozen=True)
class RunFacts:
    """How an image came to be. `unfinished`: the run broke off and can go on."""

    rounds: int
    pictures: int
    cost: Cost
    stop: str
    unfinished: bool = False


@dataclass(frozen=True)
class Result:
    """One image, or a prompt that has none. `image` is a path within the folder of images, '' for none; `digest` is
    of the file and of what was asked; `error` says why there is no image or no verdict."""

    id: str
    item: str
    prompt: str
    tags: Mapping[str, str]
    image: str = ""
    values: Mapping[str, float | None] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    verdicts: tuple[CheckVerdict, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    judge: str = ""
    digest: str = ""
    judging: Cost = field(default_factory=Cost)
    run: RunFacts | None = None
    error: str = ""

    @property
    def settled(self) -> bool:
        """Whether the judge told anything; a call that failed is worth another try."""
        return any(value is not None for value in self.values.values())


class Folder:
    """A benchmark's folder, locked for this process. Use it as a context manager."""

    def __init__(self, path: Path, plan: Plan) -> None:
        """Raises RunLockedError, RunFolderError, and FormatError where it holds another benchmark."""
        self.path = path
        self.plan = plan
        self._held = hold(path, ".lock")
        try:
            _agree(path / PLAN, plan)
        except BaseException:
            self._held.close()
            raise

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    @property
    def images(self) -> Path:
        return self.path / "images"

    def run(self, item: str) -> Path:
        return self.path / "runs" / item

    def result(self, name: str) -> Result | None:
        """An earlier result; None where there is none, or none that can be read."""
        try:
            return decode(Result, json.loads((self.path / "verdicts" / f"{name}.json").read_text("utf-8")))
        except (OSError, ValueError, RecursionError):
            return None

    def keep(self, result: Result) -> None:
        write_atomic(self.path / "verdicts" / f"{result.id}.json", _line(encode(result)))

    def finish(self, results: Iterable[Result], summary: object, page: str) -> None:
        lines = b"".join(_line(encode(result)) for result in results)
        write_atomic(self.path / RESULTS, lines)
        write_atomic(self.path / SUMMARY, json.dumps(summary, indent=1, ensure_ascii=False).encode("utf-8", "replace"))
        write_atomic(self.path / PAGE, page.encode("utf-8", "replace"))


def file_digest(data: bytes, asked: str) -> str:
    return hashlib.sha256(hashlib.sha256(data).digest() + asked.encode()).hexdigest()


def place(path: Path, data: bytes) -> None:
    """Write a file unless it is there already, just so."""
    try:
        if path.read_bytes() == data:
            return
    except OSError:
        pass  # it is missing, or writing will say what is wrong with it
    write_atomic(path, data)


def _line(data: object) -> bytes:
    return (json.dumps(data) + "\n").encode()


def _agree(path: Path, plan: Plan) -> None:
    """Write the plan, or compare it with the one that is there."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        if (path.parent / "journal.jsonl").exists():
            raise RunFolderError(f"{path.parent} is a run's folder.", "Give another --out.") from None
        write_atomic(path, json.dumps(encode(plan), indent=1).encode())
        return
    except (OSError, UnicodeDecodeError) as error:
        raise RunFolderError(f"Cannot read {path}: {error}.", "Give another --out.") from None
    try:
        before = decode(Plan, json.loads(text))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is damaged: {error}", "Give another --out.") from None
    _same(path.parent, encode(before), encode(plan))


def _same(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name, value in now.items():
        if before[name] != value:
            was, wanted = ("another one", "this") if name == "prompts" else (repr(before[name]), repr(value))
            raise FormatError(
                f"{folder} holds a benchmark with {_WORDS.get(name, name)} {was}, not {wanted}.",
                "Give another --out, or ask for the same again to continue.",
            )


_WORDS = {"prompts": "a list of prompts that is", "options": "models and their settings", "mode": "the policy"}
