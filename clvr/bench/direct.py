"""The prompt as it is, drawn at once: the baseline that asks no VLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..judging import unjudged
from ..ports import NO_BRIEF, Album, Checklist
from ..trajectory import Brief, Check, Decision, Goal, Trajectory, Verdict

if TYPE_CHECKING:
    from PIL.Image import Image


class Direct:
    """A controller without a plan and without a checklist, so that nothing is judged in the loop either."""

    name = "the prompt itself"

    def checklist(self, goal: Goal, images: Album) -> Checklist:
        return Checklist(())

    def decide(self, trajectory: Trajectory, images: Album, brief: Brief = NO_BRIEF) -> Decision:
        return Decision("generate", instruction=trajectory.goal.prompt)


class Nobody:
    """The verifier of a loop that has nothing to verify."""

    name = "nobody"

    def judge(self, image: Image, checks: Sequence[Check], references: Sequence[Image] = ()) -> Verdict:
        return unjudged(checks, self.name, "Nobody was asked.")
