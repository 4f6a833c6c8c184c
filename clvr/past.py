"""What past steps cost on this machine, kept for estimates.

After each finished step its cost goes into a small file in the user's state folder: numbers and the models' names,
nothing of the prompt. CLVR_STATE_DIR names another folder."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .errors import FormatError
from .events import Event, Settled
from .files import lock, write_atomic
from .ports import Controller, Size, Verifier
from .trajectory import Cost, Step, decode

FORMAT = 1
FILE, LOCK = "steps.jsonl", ".steps.lock"
LARGEST = 256 << 10
"""Bytes of the file, some 800 steps; beyond that the older half is dropped."""
PATIENCE = 0.5
"""Seconds to wait for another process; after that a step is not recorded."""
CHECKLIST = -1
"""Instead of a step's index: what making the checklist cost."""


@dataclass(frozen=True)
class Past:
    """What a finished step cost. `nfe` is of one image; `seconds` by phase, over all its images; `judged` counts
    the images that got a verdict; `plan_calls` and `plan_tokens` are the part of `calls` and `tokens` that went
    into the decision."""

    generator: str
    vlm: str
    size: Size
    nfe: int
    index: int
    images: int
    judged: int
    seconds: Mapping[str, float]
    calls: int = 0
    tokens: int = 0
    plan_calls: int = 0
    plan_tokens: int = 0
    format: int = FORMAT

    @classmethod
    def of(cls, step: Step, size: Size, generator: str, vlm: str) -> Past:
        count, usage, plan = len(step.candidates), step.cost.usage, step.decision.usage
        judged = sum(c.active is not None or c.passive is not None for c in step.candidates)
        seconds = {phase: round(value, 4) for phase, value in step.cost.seconds.items()}
        nfe = round(step.cost.nfe / count)
        spent = (usage.calls, usage.tokens, plan.calls, plan.tokens)
        return cls(generator, vlm, size, nfe, step.index, count, judged, seconds, *spent)

    def checked(self) -> Past:
        """Raises FormatError for numbers that no step has."""
        counts = (self.nfe, self.judged, self.calls, self.tokens, self.plan_calls, self.plan_tokens, *self.size)
        step = self.index == CHECKLIST or (self.index >= 0 and self.images >= 1)
        if not step or min(counts) < 0 or not all(0 <= s < float("inf") for s in self.seconds.values()):
            raise FormatError("These are no costs of a step.", "The line is left out.")
        return self

    @classmethod
    def of_checklist(cls, cost: Cost, vlm: str) -> Past:
        usage, seconds = cost.usage, {"plan": round(cost.total_seconds, 4)}
        return cls("", vlm, (0, 0), 0, CHECKLIST, 0, 0, seconds, usage.calls, usage.tokens, usage.calls, usage.tokens)


def state_folder() -> Path:
    """Where programs keep what they remember, by the habit of the system."""
    named = os.environ.get("CLVR_STATE_DIR")
    if named:
        return Path(named)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "clvr"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "clvr"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "clvr"


def vlm_name(controller: Controller, verifier: Verifier) -> str:
    """Who plans and who judges, as one name."""
    return f"{controller.name}, {verifier.name}"


class History:
    """The file of past steps. Several processes may use it at once.

    Nothing here raises: an estimate is no reason for a run to fail."""

    def __init__(self, folder: Path | None = None) -> None:
        self.path = (folder or state_folder()) / FILE

    def add(self, steps: Iterable[Past]) -> None:
        """Append, and drop the oldest where the file has grown too large."""
        lines = "".join(json.dumps(dataclasses.asdict(step), separators=(",", ":")) + "\n" for step in steps)
        with contextlib.suppress(OSError), self._held() as held:
            if held:
                self._append(lines.encode())

    def read(self) -> tuple[list[Past], str]:
        """The steps, the oldest first, and a warning or ''. A damaged file is set aside, and goes on with what of
        it can be read; lines of a newer version are left alone."""
        try:
            steps, _, whole = self._load()
        except FileNotFoundError:
            return [], ""
        except OSError as error:
            return [], f"Past runs cannot be read ({self.path}: {error.strerror}): there is no estimate of the time."
        return steps, "" if whole else self._set_aside()

    def _load(self) -> tuple[list[Past], list[bytes], bool]:
        """The steps, the sound lines, and whether that is all. A file that no process of ours let grow so large
        is not read."""
        data = self.path.read_bytes() if self.path.stat().st_size <= 2 * LARGEST else b"?"
        steps, sound = _parse(data)
        return steps, sound, b"".join(line + b"\n" for line in sound) == data

    def _append(self, lines: bytes) -> None:
        with open(self.path, "a+b") as file:
            if file.tell() and _last_byte(file) != b"\n":  # a line that a crash cut off
                lines = b"\n" + lines
            file.write(lines)
            size = file.tell()
        if LARGEST < size <= 2 * LARGEST:
            kept = self.path.read_bytes()[-LARGEST // 2 :]
            write_atomic(self.path, kept[kept.find(b"\n") + 1 :])

    def _set_aside(self) -> str:
        """Mended under the lock, unless another process just did it."""
        damaged = self.path.with_name(f"{FILE}.damaged")
        try:
            with self._held() as held:
                _, sound, whole = self._load()
                if whole or not held:
                    return ""
                os.replace(self.path, damaged)
                write_atomic(self.path, b"".join(line + b"\n" for line in sound))
        except OSError as error:
            return f"{self.path} is damaged and cannot be replaced: {error.strerror or error}."
        return f"{self.path} was damaged: it is kept as {damaged.name}, and {len(sound)} lines of it are still used."

    @contextlib.contextmanager
    def _held(self) -> Iterator[bool]:
        """Whether the file is this process's own for a moment."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        end = time.monotonic() + PATIENCE
        with open(self.path.with_name(LOCK), "ab") as file:
            while not (mine := lock(file)) and time.monotonic() < end:
                time.sleep(0.005)
            yield mine


class Recorder:
    """A listener of the loop that remembers what each step cost. `vlm` is asked for when a step is done: by then
    a server has told its model's name."""

    def __init__(self, generator: str, vlm: Callable[[], str], history: History | None = None) -> None:
        self._generator = generator
        self._vlm = vlm
        self._history = history or History()

    def listen(self, event: Event) -> None:
        """Only a step that has just been drawn counts, not one that is settled again."""
        if not isinstance(event, Settled) or not event.images:
            return
        vlm, preparation = self._vlm(), event.trajectory.preparation
        found = [Past.of(event.step, event.images[0].size, self._generator, vlm)]
        if event.step.index == 0 and preparation.seconds:
            found.insert(0, Past.of_checklist(preparation, vlm))
        self._history.add(found)


def _parse(data: bytes) -> tuple[list[Past], list[bytes]]:
    """The steps of this version, and the lines that are sound, those of a newer version among them."""
    steps: list[Past] = []
    sound: list[bytes] = []
    for line in data.split(b"\n"):
        try:
            entry = json.loads(line)
            newer = isinstance(entry, dict) and isinstance(entry.get("format"), int) and entry["format"] > FORMAT
            steps += [] if newer else [decode(Past, entry).checked()]
            sound.append(line)
        except (ValueError, RecursionError):
            continue
    return steps, sound


def _last_byte(file: BinaryIO) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)
