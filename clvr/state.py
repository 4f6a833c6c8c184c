"""What the loop goes by and what it hands from phase to phase."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .budget import Budget
from .ports import Album, Controller, Generator, Size, Verifier
from .trajectory import Candidate, Cost, Decision, Trajectory

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Settings:
    """`size` None is the generator's own."""

    budget: Budget = field(default_factory=Budget)
    policy: str = "clvr"
    size: Size | None = None


@dataclass(frozen=True)
class Ports:
    """Who plans, who draws, who judges."""

    controller: Controller
    generator: Generator
    verifier: Verifier


@dataclass(frozen=True)
class Pending:
    """A round in the making: the decision, then its pictures batch by batch, each batch judged before the next."""

    decision: Decision
    images: tuple[Image, ...] = ()
    seeds: tuple[int, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    cost: Cost = field(default_factory=Cost)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class State:
    """Everything the next phase needs. `stop` is set once something asked the run to end; `notes` are on the
    checklist, and go with the first step."""

    trajectory: Trajectory
    album: Album
    settings: Settings = field(default_factory=Settings)
    pending: Pending | None = None
    stop: str = ""
    resumable: bool = False
    notes: tuple[str, ...] = ()

    @property
    def spent(self) -> Cost:
        return self.trajectory.cost + (self.pending.cost if self.pending else Cost())

    @property
    def best(self) -> Image | None:
        """The run's result so far: the image of the best step, never merely the last."""
        step = self.trajectory.best
        return self.album[step.label] if step else None
