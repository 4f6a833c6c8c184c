"""What a person answers to a run that waits, as JSON: from the panel, or from a script."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import FormatError
from .events import Answer, Judged, Moment, Planned
from .trajectory import Check, Decision, Trajectory

FIELDS: Mapping[str, tuple[str, ...]] = {
    "approve": (),
    "edit": ("instruction",),
    "choose": ("candidate",),
    "keep": (),
    "reject": (),
    "check": ("question",),
    "back": ("step",),
    "stop": (),
}
"""Each action with what it needs besides its name."""

ACTIONS: Mapping[Moment, tuple[str, ...]] = {
    "planned": ("approve", "edit", "check", "back", "stop"),
    "judged": ("approve", "choose", "keep", "reject", "check", "back", "stop"),
}
STOPPED = "stopped by hand"
LONGEST = 4000
"""Characters of an instruction or a question."""


@dataclass(frozen=True)
class Question:
    """What a run waits for an answer to, and the run so far."""

    event: Planned | Judged
    trajectory: Trajectory

    @property
    def moment(self) -> Moment:
        return "planned" if isinstance(self.event, Planned) else "judged"

    @property
    def actions(self) -> tuple[str, ...]:
        """What can be answered. There is nothing to go back to in the first round."""
        return tuple(a for a in ACTIONS[self.moment] if a != "back" or self.trajectory.steps)

    def with_checks(self, checks: Iterable[Check]) -> Question:
        """The same question of a goal that has these checks too."""
        goal = self.trajectory.goal.with_checks(checks)
        return dataclasses.replace(self, trajectory=dataclasses.replace(self.trajectory, goal=goal))


def read(data: Mapping[str, Any], question: Question) -> Answer:
    """The answer in `data`: {"action": …} with the fields that the action needs. Raises FormatError."""
    action = data.get("action")
    if not isinstance(action, str) or action not in question.actions:
        raise FormatError(f"{action!r:.40} cannot be answered here.", f"Possible are {', '.join(question.actions)}.")
    wanted = FIELDS[action]
    surplus = sorted(str(name) for name in data if name not in ("action", *wanted))
    if surplus:
        raise FormatError(
            f"'{action}' takes no {', '.join(surplus):.80}.", f"It takes {', '.join(wanted) or 'nothing'}."
        )
    match action:
        case "edit":
            return Answer(decision=_edited(question, _text(data, "instruction")))
        case "choose":
            return Answer(choose=_choice(data, question))
        case "keep" | "reject":
            return Answer(accept=action == "keep")
        case "check":
            return Answer(checks=(_check(question.trajectory, _text(data, "question")),))
        case "back":
            return Answer(back_to=_number(data, "step", len(question.trajectory.steps)))
        case "stop":
            return Answer(stop=STOPPED)
        case _:
            return Answer()


def merged(first: Answer, second: Answer) -> Answer:
    """Two answers to one question; what the second one says counts where both say something."""
    silent = Answer()
    said = {f.name: getattr(second, f.name) for f in dataclasses.fields(Answer)}
    said = {name: value for name, value in said.items() if value != getattr(silent, name)}
    return dataclasses.replace(first, **{**said, "checks": (*first.checks, *second.checks)})


def _edited(question: Question, instruction: str) -> Decision:
    """The decision with another instruction. Its reasoning and its checks spoke for the old one."""
    event = question.event
    decision = event.decision if isinstance(event, Planned) else Decision("edit")
    if instruction == decision.instruction:
        return decision
    action = decision.action
    if action == "stop":
        action = "edit" if question.trajectory.canvas else "generate"
    check = Check("hand", f"Does the picture show that this was carried out: {instruction}")
    return dataclasses.replace(decision, action=action, instruction=instruction, reasoning="", expects=(check,), raw="")


def _check(trajectory: Trajectory, question: str) -> Check:
    known = {check.id for check in trajectory.goal.checks}
    number = next(n for n in range(1, len(known) + 2) if f"hand{n}" not in known)
    return Check(f"hand{number}", question)


def _choice(data: Mapping[str, Any], question: Question) -> int:
    event = question.event
    return _number(data, "candidate", len(event.candidates) if isinstance(event, Judged) else 0)


def _text(data: Mapping[str, Any], name: str) -> str:
    value = data.get(name)
    if not isinstance(value, str) or not value.strip() or len(value) > LONGEST:
        raise FormatError(f"'{name}' should be text of 1 to {LONGEST} characters.")
    return value.strip()


def _number(data: Mapping[str, Any], name: str, count: int) -> int:
    value = data.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count:
        raise FormatError(f"'{name}' should be a whole number from 0 to {count - 1}, not {value!r:.40}.")
    return value
