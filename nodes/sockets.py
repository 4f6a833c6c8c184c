"""The types of the pack's own sockets, and what travels through them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from comfy_api.latest import io

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..clvr import ports
    from ..clvr.loop import State

Generator = io.Custom("CLVR_GENERATOR")
Controller = io.Custom("CLVR_CONTROLLER")
Verifier = io.Custom("CLVR_VERIFIER")
ThinkingBudget = io.Custom("CLVR_BUDGET")
LoopState = io.Custom("CLVR_STATE")
Trajectory = io.Custom("CLVR_TRAJECTORY")
Loop = io.Custom("CLVR_LOOP")


Port = TypeVar("Port", bound="ports.Controller | ports.Generator | ports.Verifier")


@dataclass(frozen=True)
class Cast(Generic[Port]):
    """Who plays a role, and the options by which `clvr resume` finds it again."""

    port: Port
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Kept:
    """Where a run lies, and how many lines its journal had when the run was as far as this."""

    folder: Path
    lines: int


@dataclass(frozen=True)
class Run:
    """A run under way or finished: the engine's state, the pictures of every candidate by their label in a
    report, the names of the models by role, and the options to find them again. `id` is its name in the panel;
    `settled` is the pause that was answered last. Between Loop Start and Loop End, `lap` counts the passes from 0
    and `entered` is the state in which this one began. `kept` is where the run lies on disk; as long as it lies
    nowhere, `prefix` names the folder that it gets, '' none. `ports` are those who played in it."""

    state: State
    candidates: Mapping[str, Image] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    id: str = ""
    settled: tuple[int, bool] | None = None
    lap: int = 0
    entered: State | None = None
    kept: Kept | None = None
    prefix: str = ""
    ports: Mapping[str, Any] = field(default_factory=dict)

    def after(self, state: State, candidates: Mapping[str, Image] | None = None, **roles: Cast) -> Run:
        """The run one phase later, `roles` having played in it."""
        names = {role: cast.port.name for role, cast in roles.items()}
        options = {key: value for cast in roles.values() for key, value in cast.options.items()}
        return dataclasses.replace(
            self,
            state=state,
            candidates={**self.candidates, **(candidates or {})},
            models={**self.models, **names},
            ports={**self.ports, **{role: cast.port for role, cast in roles.items()}},
            options={**self.options, **options},
        )

    def over(self) -> Run:
        """The run after its end. Nobody who played in it keeps anything of it."""
        from ..clvr.ports import release

        release(*self.ports.values())
        return dataclasses.replace(self, ports={})

    def asked(self, state: State) -> Run:
        """The run after a pause, which is not asked about again as long as nothing happened."""
        from .pause import moment

        return dataclasses.replace(self, state=state, settled=moment(state))

    @property
    def images(self) -> dict[str, Image]:
        return {**self.state.album, **self.candidates}
