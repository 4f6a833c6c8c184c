"""The states of the data engine, and what each allows (A.3): generate_base_image -> inspect -> edit -> validate ->
finalize."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from clvr.errors import FormatError
from clvr.trajectory import Decision

State = Literal["generate_base_image", "inspect", "edit", "validate", "finalize"]
Tool = Literal[
    "INITIAL_GENERATION",
    "IMAGE_EDIT",
    "STATE_LEVEL_ACCEPTANCE",
    "RESULT_VALIDATION",
    "FINAL_ACCEPTANCE",
    "END_TRAJECTORY",
]
ALLOWED: Mapping[State, tuple[Tool, ...]] = {
    "generate_base_image": ("INITIAL_GENERATION", "END_TRAJECTORY"),
    "inspect": ("STATE_LEVEL_ACCEPTANCE", "INITIAL_GENERATION", "END_TRAJECTORY"),
    "edit": ("IMAGE_EDIT", "STATE_LEVEL_ACCEPTANCE", "END_TRAJECTORY"),
    "validate": ("RESULT_VALIDATION", "IMAGE_EDIT", "INITIAL_GENERATION", "END_TRAJECTORY"),
    "finalize": ("FINAL_ACCEPTANCE", "END_TRAJECTORY"),
}
"""IMAGE_EDIT and INITIAL_GENERATION in validate are the way back to an earlier state, with the gaps that were found."""


@dataclass(frozen=True)
class Entry:
    """A line of the execution log. `image` is the picture that the tool made or looked at, `text` what was asked
    of it, `note` what came of it."""

    state: State
    tool: Tool
    image: str = ""
    text: str = ""
    note: str = ""


def tool_of(state: State, decision: Decision) -> Tool:
    """The tool that a controller's decision calls in a state. Raises FormatError where the state does not allow it
    or the call lacks what its schema asks for."""
    tool = _meant(state, decision)
    if tool not in ALLOWED[state]:
        raise FormatError(f"{tool} is not allowed in {state}.", f"Allowed are {', '.join(ALLOWED[state])}.")
    if decision.action != "stop":
        check_drawing(decision)
    return tool


def _meant(state: State, decision: Decision) -> Tool:
    if decision.action == "generate":
        return "INITIAL_GENERATION"
    if state == "inspect" or (decision.action == "stop" and state != "validate"):
        return "STATE_LEVEL_ACCEPTANCE"
    return "IMAGE_EDIT" if decision.action == "edit" else "FINAL_ACCEPTANCE"


def check_drawing(decision: Decision) -> None:
    """The schema of the two drawing tools: an instruction, reasoning for a round that others build on, images to
    edit, and a checklist of its own. Raises FormatError."""
    lacks: Sequence[tuple[bool, str]] = (
        (not decision.instruction.strip(), "an instruction"),
        (decision.action == "edit" and not decision.references, "an image to edit"),
        (not decision.expects, "a checklist of its own"),
    )
    missing = [what for lacking, what in lacks if lacking]
    if missing:
        raise FormatError(
            f"The call to draw lacks {', '.join(missing)}.", "A drawing is verified by its own checklist."
        )
    if decision.action == "generate" and decision.references:
        raise FormatError("A first drawing refers to images.", "Ask for an edit instead.")
