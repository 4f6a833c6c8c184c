"""The journal of a run that goes from node to node: each writes what it adds, so that what is on disk can go on.

A run is a value, and ComfyUI keeps values: the same run may go on twice, along two ways or when it is queued again.
A journal only grows. So a run goes on in its folder where the folder is exactly as far as the run, and in a new
one, with all that came before, where it is not.
"""

from __future__ import annotations

import dataclasses
from types import TracebackType
from typing import TYPE_CHECKING

from ..clvr import events, journal
from ..clvr.errors import MissingFileError
from . import board, records
from .sockets import Kept, Run

if TYPE_CHECKING:
    from pathlib import Path

    from ..clvr.budget import Budget
    from .sockets import Cast

WRITTEN = (events.Planned, events.Judged, events.Settled, events.Answered, events.Amended, events.Stopped)
"""What a journal acts on."""
PREFIX = "clvr/run"


class Book:
    """The journal of a run while one node works on it. Use it as a context manager.

    `run` None is one that is about to start. Any other run has its folder opened by `open`, or as soon as there is
    something to write; without a folder and a prefix nothing is. A new folder is named after `prefix`, or as the
    run says."""

    def __init__(self, run: Run | None, prefix: str = "") -> None:
        self._run = run
        self._prefix = prefix or (run.prefix if run else "")
        self._journal: journal.Journal | None = None

    def __enter__(self) -> Book:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._journal:
            self._journal.close()

    def open(self) -> Path:
        """The folder, this run's from now on. Raises RunFolderError, RunLockedError, JournalError."""
        run = self._run
        self._journal = _continued(run) if run else None
        if self._journal is None:
            prefix = self._prefix or _prefix(run.kept if run else None)
            self._journal = journal.Journal.create(records.new_folder(prefix))
            if run:
                self.sign(run)
        return self._journal.folder

    def sign(self, run: Run) -> Run:
        """The run as it is now, and who plays in it, on the first pages of a new folder."""
        self._run = run
        if self._journal and not self._journal.lines:
            self._journal.copy(records.header(run), run.state.trajectory, run.images)
        return self.left(run)

    def begin(self, run: Run) -> Run:
        """A run of a graph that has just started, in its folder where it shall have one."""
        if run.prefix:
            board.kept(run.id, self.open())
        return self.left(run)

    def listen(self, event: events.Event) -> events.Answer | None:
        """Write; answer as the user did where a round is done again. Raises what `open` raises."""
        if not isinstance(event, WRITTEN):
            return None
        run = self._run
        if self._journal is None and run and (run.kept or run.prefix):
            board.kept(run.id, self.open())
        return self._journal.listen(event) if self._journal else None

    def then(self, live: events.Listener, ask: events.Listener = events.ignore) -> events.Listener:
        """A listener that writes, shows, and asks a person where none has answered yet."""

        def listen(event: events.Event) -> events.Answer | None:
            repeated, wanted = self.listen(event), live(event)
            return repeated or wanted or ask(event)

        return listen

    def left(self, run: Run) -> Run:
        """The run as the node leaves it, with the place where it lies now."""
        book = self._journal
        return dataclasses.replace(run, kept=Kept(book.folder, book.lines)) if book else run


def resumed(run: Run, budget: Budget | None, **roles: Cast) -> Run:
    """A run that shall go on, with what is left of its budget or with another one; `roles` say who plays in it from
    now on. A run that is over stays so unless it gets another budget, or ended for a reason that may be gone."""
    state, settings = run.state, run.state.settings
    another = budget is not None and budget != settings.budget
    if another:
        settings = dataclasses.replace(settings, budget=budget)
    if another or state.resumable:
        trajectory = dataclasses.replace(state.trajectory, stop_reason="")
        state = dataclasses.replace(state, trajectory=trajectory, settings=settings, stop="", resumable=False)
    if roles:
        run = dataclasses.replace(run, models={}, options={})
    return dataclasses.replace(run, settled=None, lap=0, entered=None).after(state, None, **roles)


def kept_under(run: Run, prefix: str) -> Path | None:
    """The folder of this name in which the run lies already, exactly as far as it is."""
    here = run.kept and records.numbered(run.kept.folder, prefix) and _record(run.kept)
    return run.kept.folder if run.kept and here else None


def _continued(run: Run) -> journal.Journal | None:
    """The run's own folder, opened again; None where it went on without this run, is gone, or is no output."""
    record = _record(run.kept) if run.kept else None
    if record is None:
        return None
    state, header = run.state, record.header
    reopened = bool(record.trajectory.stop_reason) and not state.trajectory.stop_reason
    changed = reopened or state.settings.budget != header.budget
    book, _ = journal.Journal.reopen(record.folder, state.settings.budget if changed else None)
    if (run.models, run.options) != (header.models, header.options):
        book.recast(run.models, run.options)
    return book


def _record(kept: Kept) -> journal.Record | None:
    """What is on disk where it is exactly as far as the run that lies there, and in the output folder."""
    if not kept.folder.is_relative_to(records.output_folder()):
        return None
    try:
        record = journal.read(kept.folder)
    except MissingFileError:
        return None
    return record if record.lines == kept.lines else None


def _prefix(kept: Kept | None) -> str:
    """The name of a copy: the original's, without its number."""
    if kept is None or not kept.folder.is_relative_to(records.output_folder()):
        return PREFIX
    name, _, number = kept.folder.name.rpartition("_")
    return board.folder_name(kept.folder.with_name(name) if name and number.isdecimal() else kept.folder)
