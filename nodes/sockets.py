"""The types of the pack's own sockets, and what travels through the last two of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from comfy_api.latest import io

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..clvr.loop import State

Generator = io.Custom("CLVR_GENERATOR")
Controller = io.Custom("CLVR_CONTROLLER")
Verifier = io.Custom("CLVR_VERIFIER")
ThinkingBudget = io.Custom("CLVR_BUDGET")
LoopState = io.Custom("CLVR_STATE")
Trajectory = io.Custom("CLVR_TRAJECTORY")


@dataclass(frozen=True)
class Run:
    """A run under way or finished: the engine's state, the pictures of every candidate by their label in a
    report, and the names of the models by role."""

    state: State
    candidates: Mapping[str, Image] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)

    def after(self, state: State, candidates: Mapping[str, Image] | None = None, **models: str) -> Run:
        """The run one phase later."""
        return dataclasses.replace(
            self,
            state=state,
            candidates={**self.candidates, **(candidates or {})},
            models={**self.models, **models},
        )

    @property
    def images(self) -> dict[str, Image]:
        return {**self.state.album, **self.candidates}
