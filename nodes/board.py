"""The runs of this session, kept in memory for whoever looks at them: the panel, or a script."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import folder_paths
from comfy_execution.progress import get_progress_state
from server import PromptServer

from ..clvr.answers import Question, merged, read
from ..clvr.events import Answer
from ..clvr.report.watch import Watch, brief

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..clvr.loop import State

KEPT = 8
"""Runs that are remembered; older ones are read from their folders."""
ILLUSTRATED = 2
"""Of these, how many keep pictures that lie in no folder."""


@dataclass
class Asked:
    """A question that a run waits with. `deadline` in seconds of the monotonic clock, None is for ever."""

    question: Question
    deadline: float | None
    answer: Answer | None = None
    given: threading.Event = field(default_factory=threading.Event)
    _so_far: Answer = field(default_factory=Answer)

    def give(self, data: Mapping[str, Any]) -> None:
        """Take an answer. A check that is added to a plan leaves the question open. Raises FormatError."""
        answer = merged(self._so_far, read(data, self.question))
        if data["action"] == "check" and self.question.moment == "planned":
            self._so_far = answer
            self.question = self.question.with_checks(answer.checks)
            return
        self.answer = answer
        self.given.set()

    def json(self) -> dict[str, Any]:
        left = None if self.deadline is None else max(0.0, round(self.deadline - time.monotonic(), 1))
        added = [check.question for check in self._so_far.checks]
        question = self.question
        told = {"step": question.event.step, "moment": question.moment, "actions": list(question.actions)}
        return {**told, "left": left, "added": added}


@dataclass(eq=False)
class Entry:
    """A run that happens or happened in this session. `folder` is None as long as it is not kept on disk."""

    id: str
    watch: Watch
    folder: Path | None = None
    prompt: str = ""
    node: str = ""
    asked: Asked | None = None
    stopping: bool = False
    began: float = field(default_factory=time.time)

    @property
    def waiting(self) -> Asked | None:
        """What it waits for an answer to."""
        asked = self.asked
        return asked if asked and not asked.given.is_set() else None

    @property
    def running(self) -> bool:
        """Whether the prompt that it belongs to is being executed."""
        if self.watch.trajectory.stop_reason:
            return False
        executing, _ = PromptServer.instance.prompt_queue.get_current_queue_volatile()
        return any(item[1] == self.prompt for item in executing)

    def json(self) -> dict[str, Any]:
        asked, running = self.waiting, self.running
        where = {"id": self.id, "node": self.node, "prompt_id": self.prompt, "running": running}
        return {**where, **self.watch.json(), "paused": asked.json() if asked else None}

    def brief(self) -> dict[str, Any]:
        state = {"running": self.running, "paused": self.waiting is not None}
        return {"id": self.id, "when": self.began, **brief(self.watch.trajectory), **state}


_entries: OrderedDict[str, Entry] = OrderedDict()
_lock = threading.Lock()


def entries() -> list[Entry]:
    """Those that are remembered, the newest first."""
    with _lock:
        return list(reversed(_entries.values()))


def find(run: str) -> Entry | None:
    with _lock:
        return _entries.get(run)


def opened(run: str, folder: Path | None = None) -> Entry:
    """A new entry for a run that starts."""
    entry = Entry(run, Watch(), folder)
    _put(entry)
    return entry


def taken_up(run: str, state: State) -> Entry:
    """The entry of a run that goes on in a further node, as far as it has come there."""
    entry = find(run) or Entry(run, Watch())
    entry.watch.trajectory, entry.watch.budget = state.trajectory, state.settings.budget
    if state.pending is None:
        entry.watch.round = None
    _put(entry)
    return entry


def kept(run: str, folder: Path) -> None:
    """A run of a graph now lies in a folder, too."""
    entry = find(run)
    if entry:
        entry.folder = folder


def new_name(node: str) -> str:
    """The name of a run that lies in no folder yet."""
    return f"graph:{get_progress_state().prompt_id[:8]}:{display(node)}"


def folder_name(folder: Path) -> str:
    """A run's folder as its name: the path within ComfyUI's output folder."""
    return folder.relative_to(Path(folder_paths.get_output_directory()).resolve()).as_posix()


def display(node: str) -> str:
    """The node of the user's own graph that a node, of an expansion perhaps, stands for."""
    return get_progress_state().dynprompt.get_display_node_id(node)


def _put(entry: Entry) -> None:
    with _lock:
        _entries[entry.id] = entry
        _entries.move_to_end(entry.id)
        while len(_entries) > KEPT:
            _entries.popitem(last=False)
        loose = [e for e in _entries.values() if e.folder is None]
        for old in loose[:-ILLUSTRATED]:
            old.watch.images.clear()
