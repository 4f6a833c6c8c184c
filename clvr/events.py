"""What the loop tells a listener, and what a listener may answer.

An exception that a listener raises passes through the loop: that is how an interrupt works.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .budget import Budget
from .ports import Checklist, DrawProgress
from .ports import Drawing as Pictures
from .trajectory import Candidate, Check, Decision, Goal, Step, Trajectory

if TYPE_CHECKING:
    from PIL.Image import Image

Moment = Literal["planned", "judged"]
"""When a person may step in: before a round is drawn, and before it is settled."""


@dataclass(frozen=True)
class Started:
    goal: Goal
    budget: Budget
    seed: int


@dataclass(frozen=True)
class Checklisted:
    goal: Goal
    checklist: Checklist


@dataclass(frozen=True)
class Planned:
    """A decision, already mended where it named what does not exist. Answer with another to replace it."""

    step: int
    decision: Decision
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Drawing:
    """A denoising step is done. Answering stop gives up the drawing."""

    step: int
    progress: DrawProgress


@dataclass(frozen=True)
class Drawn:
    """A batch of candidates, `first` the index of its first one."""

    step: int
    seeds: tuple[int, ...]
    pictures: Pictures
    first: int = 0


@dataclass(frozen=True)
class Judged:
    """The candidates with their verdicts, and what the policy proposes. Answer `accept` or `choose` to overrule
    it. It comes again after an answer with `checks`, the candidates judged on those too."""

    step: int
    candidates: tuple[Candidate, ...]
    chosen: int
    accepted: bool


@dataclass(frozen=True)
class Settled:
    """A step is complete. `images` holds one image a candidate; `trajectory` ends with the step. It comes a
    second time for the same step, without images, when its image was judged late or it was changed by hand."""

    step: Step
    images: tuple[Image, ...]
    trajectory: Trajectory


@dataclass(frozen=True)
class RolledBack:
    """The step just settled did not become the canvas."""

    step: Step


@dataclass(frozen=True)
class Warned:
    message: str


@dataclass(frozen=True)
class Stopped:
    """`resumable`: the run ended for a reason that may be gone next time, such as a server that was down."""

    reason: str
    trajectory: Trajectory
    resumable: bool = False


@dataclass(frozen=True)
class Answer:
    """What a listener wants changed. To Planned: `decision`, draw this instead. To Judged: `accept`, approve or
    roll back; `choose`, take this candidate. To both: `checks` to add to the goal; `back_to`, a step to go on
    from, the round in the making and the steps after that one being rolled back. To any event: `stop`, end the
    run with this reason; a step that is already drawn is settled first."""

    decision: Decision | None = None
    accept: bool | None = None
    choose: int | None = None
    checks: tuple[Check, ...] = ()
    back_to: int | None = None
    stop: str = ""


@dataclass(frozen=True)
class Amended:
    """The user added checks to the goal."""

    goal: Goal


@dataclass(frozen=True)
class Answered:
    """Planned or Judged was answered: to be answered alike should the round be done again."""

    step: int
    moment: Moment
    answer: Answer


Event = (
    Started
    | Checklisted
    | Planned
    | Drawing
    | Drawn
    | Judged
    | Settled
    | RolledBack
    | Warned
    | Stopped
    | Amended
    | Answered
)


Listener = Callable[[Event], Answer | None]


def ignore(event: Event) -> None:
    """The listener that does not care."""
