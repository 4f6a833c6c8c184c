"""What a person at a terminal sees of a run: a line for each thing that happened, a bar while it draws."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

from tqdm import tqdm

from . import events
from .trajectory import Check, Trajectory


class Progress:
    """A listener of the loop that writes to `stream`. Close it when the run is over or broke off."""

    def __init__(self, rounds: int, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._rounds = rounds
        self._checks: tuple[Check, ...] = ()
        self._bar: tqdm | None = None

    def show(self, trajectory: Trajectory) -> None:
        """Take up a trajectory that is there already."""
        self._checks = trajectory.goal.checks
        for step in trajectory.steps:
            self._say(f"round {step.index + 1}/{self._rounds}: done before ({self._passing(step)})")

    def listen(self, event: events.Event) -> None:
        match event:
            case events.Started(goal) if goal.checks:
                self._checks = goal.checks
                self._say(f"checklist: {_counted(goal.checks)}, as given")
            case events.Checklisted(goal):
                self._checks = goal.checks
                self._say(f"checklist: {_counted(goal.checks)}")
            case events.Planned(step, decision):
                self._say(f"round {step + 1}/{self._rounds}: {decision.action} – {_short(decision.instruction)}")
            case events.Drawing(_, progress):
                self._advance(progress.step, progress.steps)
            case events.Drawn():
                self.close()
            case events.Settled(step, images) if images:
                verb = "kept" if step.accepted else "rolled back"
                self._say(f"  {self._passing(step)}, {verb}")
            case events.Warned(message):
                self._say(f"  note: {_short(message, 300)}")
            case events.Stopped(reason):
                self.close()
                self._say(f"stopped: {_short(reason, 300)}")
            case _:
                pass

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _advance(self, step: int, steps: int) -> None:
        if self._bar is None:
            self._bar = tqdm(total=steps, desc="  drawing", unit="step", leave=False, file=self._stream)
        self._bar.update(step - self._bar.n)

    def _passing(self, step: events.Step) -> str:
        verdict = step.winner.active
        if verdict is None:
            return "not judged against the goal"
        outcomes = [outcome for _, outcome in verdict.effective(self._checks)]
        unjudged = outcomes.count("unjudged")
        rest = f" ({unjudged} unjudged)" if unjudged else ""
        return f"{outcomes.count('pass')}/{len(outcomes)} checks passing{rest}"

    def _say(self, line: str) -> None:
        tqdm.write(line, file=self._stream)


def _counted(checks: Sequence[Check]) -> str:
    return f"{len(checks)} check{'' if len(checks) == 1 else 's'}"


def _short(text: str, limit: int = 100) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
