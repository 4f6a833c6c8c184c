"""What the engine leaves on disk.

engine.json               what was asked for; another request in the same folder is refused
jobs/ab/ID.json           a prompt's outcome, written last and as a whole: nothing is lost or doubled by a kill
records/ab/ID.json        a kept prompt's line; images/ab/ID/N.png its pictures, baselines/… the one-shot ones
discarded/ab/ID.png       the newest picture of an attempt that was given up, for the sheet
shard-00000.jsonl …       the dataset, in the prompts' order: made anew from the above
dropped.jsonl, statistics.json, sheet.html
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from clvr.errors import FormatError
from clvr.files import hold, write_atomic
from clvr.trajectory import decode, encode

from .candidates import Prompt
from .config import EngineConfig
from .dedup import Dropped
from .records import SHARDS
from .work import Made, Outcome

PLAN, DROPPED, STATISTICS, SHEET = "engine.json", "dropped.jsonl", "statistics.json", "sheet.html"
CRASHED = "crashed"
"""The gate of a prompt whose worker died again and again; the next start tries it anew."""


class Folder:
    """The engine's folder, locked for this process. Use it as a context manager."""

    def __init__(self, path: Path, config: EngineConfig) -> None:
        """Raises RunLockedError, RunFolderError, and FormatError where it holds what another recipe made."""
        self.path = path
        self._held = hold(path, "lock")
        try:
            _agree(path / PLAN, plan(config))
        except BaseException:
            self._held.close()
            raise

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def outcome(self, prompt: Prompt) -> Outcome | None:
        """An earlier outcome; None where there is none, or none that can be read."""
        try:
            return decode(Outcome, json.loads(self._job(prompt.id).read_text("utf-8")))
        except (OSError, ValueError, RecursionError):
            return None

    def done(self, prompt: Prompt) -> bool:
        found = self.outcome(prompt)
        return found is not None and found.gate != CRASHED

    def keep(self, made: Made) -> None:
        """Raises RunFolderError."""
        for path, data in made.files.items():
            write_atomic(self.path / path, data)
        if made.line:
            write_atomic(self._record(made.outcome.id), made.line.encode("utf-8", "replace"))
        write_atomic(self._job(made.outcome.id), _json(encode(made.outcome)))

    def export(self, kept: Sequence[Outcome], size: int) -> list[Path]:
        """The shards, `size` records each, in order; older shards beyond them are removed. Raises RunFolderError."""
        written = []
        for number, start in enumerate(range(0, len(kept), size)):
            lines = [self._record(outcome.id).read_bytes() + b"\n" for outcome in kept[start : start + size]]
            written.append(self.path / f"shard-{number:05d}.jsonl")
            write_atomic(written[-1], b"".join(lines))
        for old in set(self.path.glob(SHARDS)) - set(written):
            old.unlink()
        return written

    def tell(self, dropped: Iterable[Dropped], statistics: object, sheet: str) -> None:
        """The reports. Raises RunFolderError."""
        write_atomic(self.path / DROPPED, b"".join(_json(encode(one)) + b"\n" for one in dropped))
        write_atomic(self.path / STATISTICS, json.dumps(statistics, indent=1, ensure_ascii=False).encode())
        write_atomic(self.path / SHEET, sheet.encode("utf-8", "replace"))

    def _job(self, name: str) -> Path:
        return self.path / "jobs" / name[:2] / f"{name}.json"

    def _record(self, name: str) -> Path:
        return self.path / "records" / name[:2] / f"{name}.json"


def plan(config: EngineConfig) -> dict[str, Any]:
    """What makes two outcomes of a folder comparable: not which prompts, nor on what machine."""
    return {"cast": encode(config.cast), "rules": encode(config.rules), "seed": config.seed}


def _json(data: object) -> bytes:
    return json.dumps(data, ensure_ascii=False).encode("utf-8", "replace")


def _agree(path: Path, wanted: dict[str, Any]) -> None:
    """The same plan as before, or the first one."""
    try:
        before = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        write_atomic(path, json.dumps(wanted, indent=1, ensure_ascii=False).encode())
        return
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} cannot be read: {error}.", "Give another --out.") from error
    differing = [key for key in wanted if before.get(key) != wanted[key]]
    if differing:
        raise FormatError(
            f"{path.parent} was begun with another {' and '.join(differing)}.",
            "Give another --out, or the recipe that it was begun with.",
        )
