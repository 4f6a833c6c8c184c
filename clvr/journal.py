"""A run's folder on disk, as a listener of the loop: append-only, checksummed, resumable after `kill -9`.

    journal.jsonl       one line an event: run, cast, step, answer, goal, stop, reopen; each with its number and SHA-256
    trajectory.json     the trajectory so far, replaced as a whole after each step
    references/N.png    the images that the user gave
    steps/NN/K.png      candidate K of step NN

Images are on disk before the line that names them, and a line is on disk before the loop goes on. So whatever
a line says is there, and at most the round in the making is lost.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from .budget import Budget
from .errors import (
    ClvrError,
    FormatError,
    ImageError,
    JournalError,
    MissingFileError,
    RunFolderError,
)
from .events import Amended, Answer, Answered, Event, Judged, Planned, Settled, Stopped
from .files import cannot_write, hold, sync_folder, write_atomic
from .images import load_image, png_bytes
from .ports import Album, Size
from .trajectory import Cost, Goal, Step, Trajectory, decode, encode, referenced

if TYPE_CHECKING:
    from PIL.Image import Image

    from .state import State

FORMAT = 1
JOURNAL, TRAJECTORY, LOCK = "journal.jsonl", "trajectory.json", ".lock"
_SEAL = '{"sha256":"'


@dataclass(frozen=True)
class Header:
    """What a run was asked for. `size` (0, 0) is the generator's own; `models` names who plans, draws and judges;
    `options` holds what is needed to find them again (addresses and folders, never keys); `digests` are the
    reference images' SHA-256."""

    goal: Goal
    seed: int
    size: Size
    budget: Budget = field(default_factory=Budget)
    policy: str = "clvr"
    preparation: Cost = field(default_factory=Cost)
    models: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    digests: tuple[str, ...] = ()
    format: int = FORMAT

    @classmethod
    def of(
        cls,
        state: State,
        size: Size,
        models: Mapping[str, str] | None = None,
        options: Mapping[str, str] | None = None,
    ) -> Header:
        """The header of a run that has just been started."""
        trajectory, settings = state.trajectory, state.settings
        return cls(
            trajectory.goal,
            trajectory.seed,
            size,
            settings.budget,
            settings.policy,
            trajectory.preparation,
            models or {},
            options or {},
        )

    @property
    def asked_size(self) -> Size | None:
        """As the loop's settings take it: None is the generator's own."""
        return self.size if all(self.size) else None


@dataclass(frozen=True)
class Record:
    """What a run's folder holds. `header` is the one in force; `warnings` tell what was repaired;
    `digests` are the SHA-256 of the images by path within the folder; `length` is the sound part in bytes;
    `answers` are the user's in the round that was not completed."""

    folder: Path
    header: Header
    trajectory: Trajectory
    resumable: bool = False
    lines: int = 0
    length: int = 0
    digests: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    answers: tuple[Answered, ...] = ()

    def album(self) -> Album:
        """References and chosen images. Raises JournalError for one that is missing or was changed."""
        goal = self.trajectory.goal
        paths = {referenced(i): _reference_path(i) for i in range(goal.references)}
        paths |= {s.label: _image_path(s.index, s.chosen) for s in self.trajectory.steps}
        return Album({label: self._image(path) for label, path in paths.items()})

    def paths(self) -> dict[str, str]:
        """Paths within the folder by label: references, chosen images, each candidate as `IMG_GEN_n/k`."""
        goal = self.trajectory.goal
        paths = {referenced(i): _reference_path(i) for i in range(goal.references)}
        for step in self.trajectory.steps:
            paths[step.label] = _image_path(step.index, step.chosen)
            for k in range(len(step.candidates)):
                if _image_path(step.index, k) in self.digests:
                    paths[f"{step.label}/{k}"] = _image_path(step.index, k)
        return paths

    def pictures(self) -> dict[str, Image]:
        """Every image that is there and sound, by the labels of `paths`."""
        found: dict[str, Image] = {}
        for label, path in self.paths().items():
            try:
                found[label] = self._image(path)
            except JournalError:
                continue
        return found

    def _image(self, path: str) -> Image:
        remedy = "Restore the file from a backup; without it the run cannot go on."
        try:
            digest = hashlib.sha256((self.folder / path).read_bytes()).hexdigest()
            if digest != self.digests.get(path):
                raise JournalError(f"{self.folder / path} is not the image that the journal names.", remedy)
            return load_image(self.folder / path)
        except (ImageError, OSError) as error:
            raise JournalError(f"{self.folder / path} cannot be read: {error}.", remedy) from error


def read(folder: str | Path) -> Record:
    """A run's folder, without touching it. Raises MissingFileError where there is no run, JournalError for
    damage that dropping the last line does not mend."""
    folder = Path(folder)
    path = folder / JOURNAL
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFileError(
            f"{folder} holds no run (no {JOURNAL}).", "Start one with: clvr generate PROMPT --out DIR"
        ) from None
    except OSError as error:
        raise JournalError(f"Cannot read {path}: {error.strerror}.", "Check the file's rights.") from error
    record: Record | None = None
    warnings: list[str] = []
    for number, line, last in _lines(data):
        try:
            kind, entry = _unseal(line, number)
        except FormatError as error:
            if not last or record is None:
                raise _damaged(path, number, error) from error
            warnings.append(f"{path} line {number + 1} is incomplete and is dropped: its round is done again.")
            break
        try:
            record = _replay(folder, record, kind, entry)
        except FormatError as error:
            raise _damaged(path, number, error) from error
        record = dataclasses.replace(record, lines=number + 1, length=record.length + len(line) + 1)
    if record is None:
        raise JournalError(f"{path} is empty.", "Delete the folder and start the run again.")
    return dataclasses.replace(record, warnings=tuple(warnings))


class Journal:
    """The only writer of a run's folder; `listen` is what the loop calls. Use it as a context manager.

    A folder that was merely reserved, and got no run, is removed again on closing."""

    def __init__(self, folder: Path, held: BinaryIO, lines: int = 0, answers: Sequence[Answered] = ()) -> None:
        self.folder = folder
        self._held = held
        self._lines = lines
        self._answers = list(answers)

    @classmethod
    def create(cls, folder: str | Path) -> Journal:
        """Reserve a folder for a new run. Raises RunLockedError, and RunFolderError where the folder cannot
        be written or already holds a run."""
        folder = Path(folder)
        held = hold(folder, LOCK)
        taken = [name for name in (JOURNAL, TRAJECTORY, "steps", "final.png") if (folder / name).exists()]
        if taken:
            held.close()
            raise RunFolderError(
                f"{folder} already holds a run ({taken[0]}).",
                f"Continue it with: clvr resume {folder}, or give another --out.",
            )
        return cls(folder, held)

    @classmethod
    def reopen(cls, folder: str | Path, budget: Budget | None = None) -> tuple[Journal, Record]:
        """Continue a run. A last line that was cut off is removed. A run that had ended goes on where a new
        budget allows it, or where it ended for a reason that may be gone by now.

        Raises what `read` raises, RunLockedError, and RunFolderError where the folder cannot be written."""
        folder = Path(folder)
        read(folder)
        held = hold(folder, LOCK)
        try:
            record = read(folder)
            journal = cls(folder, held, record.lines, record.answers)
            if record.warnings:
                journal._truncate(record.length)
            if budget is not None or record.resumable:
                data = {"budget": encode(budget or record.header.budget)}
                journal._append("reopen", data)
                record = dataclasses.replace(_replay(folder, record, "reopen", data), warnings=record.warnings)
        except BaseException:
            held.close()
            raise
        return journal, record

    @property
    def lines(self) -> int:
        """Lines that the journal has; they are never taken back."""
        return self._lines

    def begin(self, header: Header, references: Sequence[Image] = ()) -> None:
        """The first line. Raises RunFolderError."""
        digests = [self._image(_reference_path(i), image) for i, image in enumerate(references)]
        header = dataclasses.replace(header, digests=tuple(digests))
        write_atomic(self.folder / JOURNAL, _seal(0, "run", encode(header)))
        self._lines = 1
        self._snapshot(Trajectory(header.goal, seed=header.seed, preparation=header.preparation))

    def recast(self, models: Mapping[str, str], options: Mapping[str, str]) -> None:
        """Who plans, draws and judges from here on, as in the header."""
        self._append("cast", {"models": dict(models), "options": dict(options)})

    def copy(self, header: Header, trajectory: Trajectory, images: Mapping[str, Image]) -> None:
        """A run so far, from memory. `images` by label; candidates that were not chosen under `IMG_GEN_n/k`, where
        they were kept."""
        self.begin(header, [images[label] for label in trajectory.goal.labels()])
        for step in trajectory.steps:
            kept = {k: images[f"{step.label}/{k}"] for k in range(len(step.candidates))
                    if f"{step.label}/{k}" in images}  # fmt: skip
            self.add(step, {**kept, step.chosen: images[step.label]}, trajectory)
        if trajectory.stop_reason:
            self.listen(Stopped(trajectory.stop_reason, trajectory))

    def listen(self, event: Event) -> Answer | None:
        """Write what a completed step, the user, or the end of the run adds. In a round that is done again,
        answer as the user did. Raises RunFolderError."""
        if isinstance(event, (Planned, Judged)):
            return self._repeated(event)
        if isinstance(event, Settled):
            self.add(event.step, dict(enumerate(event.images)), event.trajectory)
        elif isinstance(event, Answered):
            self._remember(event)
        elif isinstance(event, Amended):
            self._append("goal", {"goal": encode(event.goal)})
        elif isinstance(event, Stopped):
            closing = encode(event.trajectory.closing)
            data = {"reason": event.reason, "closing": closing, "resumable": event.resumable}
            self._append("stop", data)
            self._snapshot(event.trajectory)
        return None

    def _repeated(self, event: Planned | Judged) -> Answer | None:
        moment = "planned" if isinstance(event, Planned) else "judged"
        first = self._answers[0] if self._answers else None
        return first.answer if first and (first.step, first.moment) == (event.step, moment) else None

    def _remember(self, event: Answered) -> None:
        if self._answers and self._answers[0] == event:
            self._answers.pop(0)
        else:
            self._append("answer", encode(event))

    def add(self, step: Step, images: Mapping[int, Image], trajectory: Trajectory) -> None:
        """A completed step; `images` by candidate. Without images: a step that was judged anew."""
        digests = {str(k): self._image(_image_path(step.index, k), image) for k, image in images.items()}
        self._append("step", {"step": encode(step), "images": digests})
        self._snapshot(trajectory)

    def close(self) -> None:
        """Let go of the folder."""
        if self._held.closed:
            return
        self._held.close()
        if self._lines:
            return
        with contextlib.suppress(OSError):
            (self.folder / LOCK).unlink()
            shutil.rmtree(self.folder / "references", ignore_errors=True)
            self.folder.rmdir()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _image(self, path: str, image: Image) -> str:
        data = png_bytes(image)
        write_atomic(self.folder / path, data)
        return hashlib.sha256(data).hexdigest()

    def _append(self, kind: str, data: Mapping[str, Any]) -> None:
        path = self.folder / JOURNAL
        try:
            with open(path, "ab") as file:
                file.write(_seal(self._lines, kind, data))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(path, error) from error
        self._lines += 1

    def _truncate(self, length: int) -> None:
        path = self.folder / JOURNAL
        try:
            with open(path, "r+b") as file:
                file.truncate(length)
                os.fsync(file.fileno())
            sync_folder(self.folder)
        except OSError as error:
            raise cannot_write(path, error) from error

    def _snapshot(self, trajectory: Trajectory) -> None:
        text = json.dumps(trajectory.to_dict(), indent=1)
        write_atomic(self.folder / TRAJECTORY, text.encode())


def save(folder: str | Path, header: Header, trajectory: Trajectory, images: Mapping[str, Image]) -> None:
    """A trajectory that lives in memory as a run's folder; `images` as in `Journal.copy`. Raises RunLockedError,
    RunFolderError."""
    with Journal.create(folder) as journal:
        journal.copy(header, trajectory, images)


def _image_path(step: int, candidate: int) -> str:
    return f"steps/{step:02d}/{candidate}.png"


def _reference_path(index: int) -> str:
    return f"references/{index}.png"


def _seal(number: int, kind: str, data: Mapping[str, Any]) -> bytes:
    """A line: the SHA-256 of the object without it, then the object."""
    body = json.dumps({"n": number, "kind": kind, "data": data}, separators=(",", ":"))
    digest = hashlib.sha256(body.encode()).hexdigest()
    return f'{_SEAL}{digest}",{body[1:]}\n'.encode()


def _unseal(line: bytes, number: int) -> tuple[str, Mapping[str, Any]]:
    """Kind and data of a line. Raises FormatError where a byte differs from what was written."""
    start = len(_SEAL)
    body = b"{" + line[start + 66 :]
    if line[:start] != _SEAL.encode() or hashlib.sha256(body).hexdigest().encode() != line[start : start + 64]:
        raise FormatError("its checksum does not match")
    entry = json.loads(body)
    if entry["n"] != number:
        raise FormatError(f"it has the number {entry['n']} instead of {number}")
    return entry["kind"], entry["data"]


def _lines(data: bytes) -> Iterator[tuple[int, bytes, bool]]:
    """Number, bytes without the newline, whether it is the last. A last line without newline was cut off."""
    lines = data.split(b"\n")
    complete = lines[:-1]
    for number, line in enumerate(complete):
        yield number, line, number == len(complete) - 1 and not lines[-1]
    if lines[-1]:
        yield len(complete), b"", True


def _replay(folder: Path, record: Record | None, kind: str, data: Mapping[str, Any]) -> Record:
    """The record after one more line. Raises FormatError."""
    if record is None:
        if kind != "run":
            raise FormatError(f"it starts with '{kind}' instead of the run's header")
        return _open_record(folder, data)
    trajectory = record.trajectory
    if kind == "step":
        step = decode(Step, data["step"], "step")
        digests = {_image_path(step.index, int(k)): digest for k, digest in data["images"].items()}
        answers = () if step.index == len(trajectory.steps) else record.answers
        trajectory, digests = _with_step(trajectory, step), {**record.digests, **digests}
        return dataclasses.replace(record, trajectory=trajectory, digests=digests, answers=answers)
    if kind == "cast":
        named = {name: decode(Mapping[str, str], data[name], name) for name in ("models", "options")}
        return dataclasses.replace(record, header=dataclasses.replace(record.header, **named))
    if kind == "answer":
        return dataclasses.replace(record, answers=(*record.answers, decode(Answered, data, "answer")))
    if kind == "goal":
        goal = decode(Goal, data["goal"], "goal")
        return dataclasses.replace(record, trajectory=dataclasses.replace(trajectory, goal=goal))
    if kind == "stop":
        closing = decode(Cost, data["closing"], "closing")
        trajectory = dataclasses.replace(trajectory, stop_reason=data["reason"], closing=closing)
        return dataclasses.replace(record, trajectory=trajectory, resumable=data["resumable"], answers=())
    if kind == "reopen":
        header = dataclasses.replace(record.header, budget=decode(Budget, data["budget"], "budget"))
        trajectory = dataclasses.replace(trajectory, stop_reason="")
        return dataclasses.replace(record, header=header, trajectory=trajectory, resumable=False)
    raise FormatError(f"it has the unknown kind '{kind}'")


def _open_record(folder: Path, data: Mapping[str, Any]) -> Record:
    if data.get("format") != FORMAT:
        raise FormatError(f"it has format {data.get('format')!r}, this pack reads {FORMAT}")
    header = decode(Header, data, "header")
    trajectory = Trajectory(header.goal, seed=header.seed, preparation=header.preparation)
    digests = {_reference_path(i): digest for i, digest in enumerate(header.digests)}
    return Record(folder, header, trajectory, digests=digests)


def _with_step(trajectory: Trajectory, step: Step) -> Trajectory:
    """Append a step, or put one that was judged anew in its place."""
    held = step.index < len(trajectory.steps)
    return trajectory.with_step(step) if held else trajectory.append(step)


def _damaged(path: Path, number: int, error: ClvrError) -> JournalError:
    if number == 0:
        remedy = "Restore the file from a backup, or start the run again in another folder."
    else:
        remedy = f"Restore the file from a backup, or keep its first {number} lines and resume from there."
    return JournalError(f"{path} is damaged in line {number + 1}: {error}.", remedy)
