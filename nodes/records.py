"""Runs in ComfyUI's output and input folders, and what is shown of them."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import folder_paths
from comfy.model_management import InterruptProcessingException

from ..clvr import journal
from ..clvr.answers import STOPPED
from ..clvr.context import to_sharegpt
from ..clvr.errors import ClvrError, MissingFileError, RunFolderError
from ..clvr.files import write_atomic
from ..clvr.images import save_png
from ..clvr.loop import Settings, State
from ..clvr.report import RunInfo, contact_sheet, save_final, write_report
from ..clvr.trajectory import Trajectory
from .pixels import to_tensor
from .sockets import Kept, Run

if TYPE_CHECKING:
    from torch import Tensor

VISITED, DEPTH = 4000, 4
"""Folders looked into for runs, and how deep."""
RECENT = 20
FINAL, SHEET, REPORT = "final.png", "sheet.png", "report.html"
CONVERSATION, IMAGES = "sharegpt.json", "images"


def new_folder(prefix: str) -> Path:
    """A new numbered folder in ComfyUI's output folder: 'clvr/run' makes clvr/run_00001.

    Raises RunFolderError for a prefix that leads out of it, or where nothing can be written."""
    wanted = _within_output(prefix)
    for number in itertools.count(1):
        folder = wanted.with_name(f"{wanted.name}_{number:05}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise RunFolderError(f"Cannot make {folder}: {error.strerror}.", "Make it writable.") from error
    raise AssertionError("unreachable")


def numbered(folder: Path, prefix: str) -> bool:
    """Whether `new_folder` may have made this folder for this prefix. Raises RunFolderError."""
    wanted = _within_output(prefix)
    name, _, number = folder.name.rpartition("_")
    return folder.parent == wanted.parent and name == wanted.name and number.isdecimal()


def _within_output(prefix: str) -> Path:
    output = output_folder()
    wanted = (output / prefix).resolve()
    if not wanted.is_relative_to(output) or wanted == output:
        raise RunFolderError(f"'{prefix}' lies outside of ComfyUI's output folder.", "Give a name like clvr/run.")
    return wanted


def output_folder() -> Path:
    return Path(folder_paths.get_output_directory()).resolve()


def known_folder(name: str) -> Path:
    """A run's folder in ComfyUI's output or input folder. Raises MissingFileError for anything else."""
    for place in (folder_paths.get_output_directory(), folder_paths.get_input_directory()):
        root = Path(place).resolve()
        folder = (root / name).resolve()
        if folder.is_relative_to(root) and (folder / journal.JOURNAL).is_file():
            return folder
    raise MissingFileError(
        f"'{name}' is no run in ComfyUI's output or input folder.", "Give a folder like clvr/run_00001."
    )


def unfinished() -> list[str]:
    """Runs in the output folder that were cut short, the newest first; only the newest are looked at."""
    found = []
    for _, folder in newest()[:RECENT]:
        with contextlib.suppress(ClvrError):
            record = journal.read(folder)
            if record.resumable or not record.trajectory.stop_reason:
                found.append(folder.relative_to(output_folder()).as_posix())
    return found


def newest() -> list[tuple[float, Path]]:
    """Each run in the output folder, and when its journal was last written, the newest first."""
    return sorted(((path.stat().st_mtime, path.parent) for path in _journals(output_folder())), reverse=True)


def _journals(root: Path) -> Iterator[Path]:
    """Journals below `root`, without following links, from a bounded number of folders."""
    for place, folders, files in itertools.islice(os.walk(root), VISITED):
        if journal.JOURNAL in files:
            yield Path(place) / journal.JOURNAL
            folders.clear()
        if len(Path(place).relative_to(root).parts) >= DEPTH:
            folders.clear()


def header(run: Run) -> journal.Header:
    """The first line of a run's journal."""
    size = run.state.settings.size or (run.state.best.size if run.state.best else (0, 0))
    return journal.Header.of(run.state, size, run.models, run.options)


def load(name: str) -> Run:
    """A run as its folder holds it. Raises MissingFileError, JournalError."""
    folder = known_folder(name)
    record = journal.read(folder)
    asked, reason = record.header, record.trajectory.stop_reason
    settings = Settings(asked.budget, asked.policy, asked.asked_size)
    state = State(record.trajectory, record.album(), settings, stop=reason, resumable=record.resumable)
    return Run(state, record.pictures(), asked.models, asked.options, kept=Kept(folder, record.lines))


def present(run: Run, folder: Path, metadata: Mapping[str, str]) -> Path:
    """Write the final picture, the contact sheet and the report beside the journal; the report's path."""
    trajectory, images = run.state.trajectory, run.images
    if run.state.best:
        save_final(
            run.state.best,
            folder / FINAL,
            prompt_metadata=metadata,
            trajectory=trajectory,
            models=run.models,
        )
    contact_sheet(trajectory, images).save(folder / SHEET)
    return report(run, folder)


def report(run: Run, folder: Path) -> Path:
    """Write the run as one page; its path."""
    trajectory = run.state.trajectory
    asked = run.state.settings
    info = RunInfo(asked.budget, run.models, trajectory.cost.total_seconds, asked.policy)
    write_report(trajectory, run.images, folder / REPORT, settings=info)
    return folder / REPORT


def export_conversation(run: Run, folder: Path) -> Path:
    """Write the run as a file of one ShareGPT record, its images beside it; the file's path."""
    album = run.state.album
    paths = {label: f"{IMAGES}/{label}.png" for label in album}
    for label, path in paths.items():
        save_png(album[label], folder / path)
    record = to_sharegpt(run.state.trajectory, paths)
    write_atomic(folder / CONVERSATION, json.dumps([record], indent=1).encode())
    return folder / CONVERSATION


def pictures_of(run: Run) -> tuple[Tensor, Tensor]:
    """The best image and the contact sheet. Raises RunFolderError for a run that drew nothing; where a person
    stopped it before it drew, ComfyUI's own interruption."""
    if run.state.best is None:
        reason = run.state.trajectory.stop_reason
        if reason == STOPPED:
            raise InterruptProcessingException
        if reason:
            raise RunFolderError(f"The run drew nothing: {reason}.", "Raise the budget, or start it again.")
        raise RunFolderError("The run drew nothing.", "Connect Plan, Generate and Verify before Finish.")
    sheet = contact_sheet(run.state.trajectory, run.images)
    return to_tensor([run.state.best]), to_tensor([sheet])


def story(trajectory: Trajectory) -> str:
    """A run in words, a paragraph a round."""
    told = [trajectory.goal.prompt]
    for step in trajectory.steps:
        score = trajectory.score(step)
        outcome = "kept" if step.accepted else "rolled back"
        measured = "not scored" if score is None else f"score {score:.2f}"
        decision = step.decision
        told.append(f"{step.index + 1}. {decision.action}: {decision.instruction} ({outcome}, {measured})")
    return "\n".join([*told, f"Stopped: {trajectory.stop_reason or 'not yet'}"])


def metadata(prompt: Mapping[str, Mapping[str, Any]] | None, extra: Mapping[str, Any] | None) -> dict[str, str]:
    """ComfyUI's usual text chunks for a PNG, none where the user turned them off. The fingerprints that ComfyUI
    writes into the prompt are left out: NaN is no JSON."""
    from comfy.cli_args import args

    if args.disable_metadata:
        return {}
    queued = {key: {k: v for k, v in node.items() if k != "is_changed"} for key, node in (prompt or {}).items()}
    chunks = {"prompt": queued, **(extra or {})}
    return {key: json.dumps(value) for key, value in chunks.items() if value}
