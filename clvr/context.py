"""The context c_t that a drawing is conditioned on (eq. 1), and trajectories as ShareGPT conversations (A.3).

c_t is the goal, then every turn's reasoning with a mark for the image that it produced, then the newest
reasoning r_t: `goal\\nr_0 <IMG_GEN_0>\\n…\\nr_t`, next to the chosen reference images in order.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import ContextLimitError, FormatError
from .trajectory import Decision, Step, Trajectory, generated

if TYPE_CHECKING:
    from PIL.Image import Image

    from .ports import Album

PLACEHOLDER = "<image>"
EXTRA = "clvr"


@dataclass(frozen=True)
class Turn:
    """One line of the context. `label` names the image that the turn produced, '' for the newest turn."""

    step: int
    text: str
    label: str = ""

    @property
    def line(self) -> str:
        return f"{self.text} <{self.label}>".strip() if self.label else self.text


@dataclass(frozen=True)
class Context:
    """Goal, turns (the last one is r_t), and the chosen references in the order in which they were chosen."""

    goal: str
    turns: tuple[Turn, ...] = ()
    images: tuple[tuple[str, Image], ...] = ()

    @property
    def text(self) -> str:
        return "\n".join([self.goal, *(turn.line for turn in self.turns if turn.line)])


def build(trajectory: Trajectory, decision: Decision, album: Album) -> Context:
    """c_t for a decision. Steps that were rolled back are no part of how the canvas came to be, and failed
    steps never occur in training contexts (3.1): they are left out unless the decision refers to them.

    Raises FormatError for a reference that is not in the album."""
    missing = [label for label in decision.references if label not in album]
    if missing:
        raise FormatError(
            f"The decision refers to {', '.join(missing)}, which the album lacks.",
            f"It holds {', '.join(album) or 'no image'}.",
        )
    told = [s for s in trajectory.steps if s.accepted or s.label in decision.references]
    goal = trajectory.goal.prompt.strip()
    turns = [Turn(s.index, _beyond(goal, narrate(s.decision)), s.label) for s in told]
    newest = Turn(len(trajectory.steps), _beyond(goal, narrate(decision)))
    images = tuple((label, album[label]) for label in decision.references)
    return Context(goal, (*turns, newest), images)


def _beyond(goal: str, told: str) -> str:
    """What a turn says, '' where that is the goal once more."""
    return "" if told == _one_line(goal) else told


def narrate(decision: Decision) -> str:
    """r_t on one line: the reasoning, then the instruction where the reasoning does not already say it."""
    reasoning, instruction = _one_line(decision.reasoning), _one_line(decision.instruction)
    if instruction.lower() in reasoning.lower():
        return reasoning
    return f"{reasoning} {instruction}".strip()


def fit(context: Context, count_tokens: Callable[[str], int], limit: int) -> tuple[Context, tuple[str, ...]]:
    """The context within `limit` tokens, and what was left out to get there.

    Earlier turns go first, the oldest first; then the words of the turns whose images were chosen, leaving
    their marks. Raises ContextLimitError where goal, r_t and those marks alone are too long."""
    left_out: list[str] = []
    while count_tokens(context.text) > limit:
        shorter = _shorten(context)
        if shorter is None:
            raise ContextLimitError(
                f"The goal, the newest reasoning and the chosen references take {count_tokens(context.text)} "
                f"tokens; the text encoder reads {limit}.",
                "Shorten the prompt.",
            )
        context, gone = shorter
        left_out.append(gone)
    return context, tuple(left_out)


def _shorten(context: Context) -> tuple[Context, str] | None:
    """The context without its least important part, and the name of that part."""
    chosen = {label for label, _ in context.images}
    *earlier, newest = context.turns or (Turn(0, ""),)
    for i, turn in enumerate(earlier):
        if turn.label not in chosen:
            turns = (*earlier[:i], *earlier[i + 1 :], newest)
            return dataclasses.replace(context, turns=turns), f"r_{turn.step}"
    for i, turn in enumerate(earlier):
        if turn.text:
            turns = (*earlier[:i], dataclasses.replace(turn, text=""), *earlier[i + 1 :], newest)
            return dataclasses.replace(context, turns=turns), f"the words of r_{turn.step}"
    return None


def _one_line(text: str) -> str:
    return " ".join(text.split())


def to_sharegpt(trajectory: Trajectory, image_paths: Mapping[str, str]) -> dict[str, Any]:
    """A trajectory as one record for multimodal SFT tools that read ShareGPT conversations.

    Turns alternate human, gpt, tool, gpt, …; each <image> stands for the next path in `images`. A drawing is
    shown in the tool turn after its decision, for chat templates drop images from assistant turns. The last
    turn is always gpt: a drawing without a decision after it appears only under the key `clvr`, which holds
    what the exact round trip needs besides. `image_paths`: path by label.

    Raises FormatError where a path lacks."""
    labels = [*trajectory.goal.labels(), *(s.label for s in trajectory.steps)]
    missing = [label for label in labels if label not in image_paths]
    if missing:
        raise FormatError(f"There is no path for {', '.join(missing)}.", "Name a path for each image.")
    closing = closing_decision(trajectory)
    marks = "".join(f"<{label}> {PLACEHOLDER}\n" for label in trajectory.goal.labels())
    turns = [_turn("human", marks + _words(trajectory.goal.prompt))]
    shown = list(trajectory.goal.labels())
    for step in trajectory.steps:
        turns.append(_turn("gpt", _reply(step.decision)))
        if step.index < len(trajectory.steps) - 1 or closing:
            turns.append(_turn("tool", _observation(trajectory, step)))
            shown.append(step.label)
    if closing:
        turns.append(_turn("gpt", _reply(closing)))
    extra = {"trajectory": trajectory.to_dict(), "images": {label: image_paths[label] for label in labels}}
    return {"conversations": turns, "images": [image_paths[label] for label in shown], EXTRA: extra}


def from_sharegpt(data: Mapping[str, Any]) -> tuple[Trajectory, dict[str, str]]:
    """The trajectory and image paths of an exported record. Raises FormatError where the record is not one of
    ours, or where its conversation was changed and no longer tells what its trajectory says."""
    extra = data.get(EXTRA)
    if not isinstance(extra, Mapping) or not isinstance(extra.get("trajectory"), Mapping):
        raise FormatError(f"The record has no key '{EXTRA}' with a trajectory.", "Export it with clvr export.")
    paths = extra.get("images")
    if not isinstance(paths, Mapping):
        raise FormatError(f"The record's '{EXTRA}' has no image paths.", "Export it with clvr export.")
    trajectory = Trajectory.from_dict(extra["trajectory"])
    paths = {str(label): str(path) for label, path in paths.items()}
    if to_sharegpt(trajectory, paths)["conversations"] != data.get("conversations"):
        raise FormatError(
            "The record's conversation differs from its trajectory.", "Import the export as it was written."
        )
    return trajectory, paths


def _turn(role: str, value: str) -> dict[str, str]:
    return {"from": role, "value": value}


def _words(text: str) -> str:
    """Text in which no one counts an image placeholder."""
    return text.replace(PLACEHOLDER, "< image >")


def _reply(decision: Decision) -> str:
    """A decision in the controllers' reply schema."""
    reply = {
        "reasoning": decision.reasoning,
        "action": decision.action,
        "instruction": decision.instruction,
        "references": list(decision.references),
    }
    return _words(json.dumps(reply, ensure_ascii=False))


def _observation(trajectory: Trajectory, step: Step) -> str:
    """What the controller is shown of a drawing: the image, and each check of the goal that was judged."""
    lines = [f"<{generated(step.index)}> {PLACEHOLDER}"]
    if not step.accepted:
        lines.append("This drawing was rolled back.")
    if step.winner.active:
        effective = step.winner.active.effective(trajectory.goal.checks)
        lines += [f"{outcome}: {_words(check.question)}" for check, outcome in effective]
    return "\n".join(lines)


def closing_decision(trajectory: Trajectory) -> Decision | None:
    """The decision to stop, where stopping is worth learning: every check of the goal holds on the last canvas."""
    verdict = trajectory.canvas.winner.active if trajectory.canvas else None
    if not (trajectory.stop_reason and verdict and verdict.satisfied(trajectory.goal.checks)):
        return None
    return Decision("stop", trajectory.stop_reason)
