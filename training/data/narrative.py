"""From the execution log to a chain of thought in sentences (3.1), and from the way that led there to what is learned.

What was taken back is no part of the result: steps that were dropped are left out and the rest renumbered, so that a
trajectory tells the shortest way that was verified at every step.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from clvr.errors import ReplyError
from clvr.ports import Album
from clvr.trajectory import Check, Step, Trajectory, generated
from clvr.vlm.asking import ask, usable
from clvr.vlm.chat import ChatClient, Message, Reply
from clvr.vlm.replies import ReplyModel, array_schema, object_schema, read

from .. import templates
from .states import Entry

PROMPT = "narrate.v1"
_LABEL = re.compile(r"IMG_GEN_(\d+)")
_MARK = re.compile(r"<?(IMG_GEN_\d+)>?")


class Narrator(Protocol):
    """Tells why each round of a straightened trajectory was made, and why it ended: a text for each, in order."""

    @property
    def name(self) -> str: ...

    def tell(self, trajectory: Trajectory, log: Sequence[Entry]) -> tuple[str, ...]:
        """Raises VLMError where there is nothing to use."""
        ...


def straighten(trajectory: Trajectory, album: Album) -> tuple[Trajectory, Album]:
    """The trajectory without what was dropped, and its pictures. A dropped step stays where a kept one was drawn from
    its picture."""
    kept: set[int] = set()
    for step in reversed(trajectory.steps):
        if step.accepted or step.index in kept:
            kept.add(step.index)
            kept |= {int(match[1]) for label in step.decision.references if (match := _LABEL.fullmatch(label))}
    order = sorted(kept)
    names = {generated(old): generated(new) for new, old in enumerate(order)}
    steps = tuple(_renamed(trajectory.steps[old], new, names) for new, old in enumerate(order))
    pictures = {label: album[label] for label in trajectory.goal.labels()}
    pictures |= {names[label]: album[label] for label in names}
    return dataclasses.replace(trajectory, steps=steps), Album(pictures)


def narrated(trajectory: Trajectory, texts: Sequence[str]) -> Trajectory:
    """With the reasoning of every round, and of the end, replaced. Raises ReplyError for another number of texts."""
    if len(texts) != len(trajectory.steps) + 1:
        wanted = len(trajectory.steps) + 1
        raise ReplyError(f"{len(texts)} thoughts were told for {wanted} decisions.", "Tell one for each.")
    steps = (
        dataclasses.replace(step, decision=dataclasses.replace(step.decision, reasoning=text, raw=""))
        for step, text in zip(trajectory.steps, texts, strict=False)
    )
    return dataclasses.replace(trajectory, steps=tuple(steps), stop_reason=texts[-1])


class LogNarrator:
    """By rule: the gaps that an active verification found, then what the controller itself thought."""

    name = "the execution log, by rule"

    def tell(self, trajectory: Trajectory, log: Sequence[Entry]) -> tuple[str, ...]:
        checks = trajectory.goal.checks
        thoughts: list[str] = []
        for index, step in enumerate(trajectory.steps):
            gaps = _gaps(trajectory.steps[index - 1], checks) if index else []
            thoughts.append(" ".join([*_observed(gaps, index), _sentence(step.decision.reasoning)]).strip())
        return (*thoughts, _sentence(trajectory.stop_reason))


def _observed(gaps: Sequence[str], index: int) -> list[str]:
    if not gaps:
        return []
    told = " ".join(f"{gap} No." for gap in gaps)
    return [f"Checked against the goal, <{generated(index - 1)}> does not hold up. {told}"]


class NarrationReply(ReplyModel):
    thoughts: list[str]


class VLMNarrator:
    """A VLM rewrites the log (prompts/narrate.v1.md). It is shown no picture: what is not in the log is not told."""

    def __init__(self, client: ChatClient) -> None:
        self._client = client

    @property
    def name(self) -> str:
        return f"{self._client.name} ({PROMPT})"

    def tell(self, trajectory: Trajectory, log: Sequence[Entry]) -> tuple[str, ...]:
        """Raises ReplyError where a thought lacks, is empty, or speaks of a picture that is not drawn yet."""
        number = len(trajectory.steps) + 1
        schema = object_schema(thoughts=array_schema({"type": "string"}, minItems=number, maxItems=number))
        talk = [Message("system", (templates.text(PROMPT),)), Message("user", (_account(trajectory, log),))]
        asked = ask(self._client, talk, schema, lambda reply: _checked(reply, number))
        return usable(asked, "chain of thought")


def _checked(reply: Reply, number: int) -> tuple[str, ...]:
    thoughts = [" ".join(thought.split()) for thought in read(reply.text, NarrationReply).thoughts]
    if len(thoughts) != number:
        raise ReplyError(f"There are {len(thoughts)} thoughts for {number} decisions.", "Write one for each.")
    for index, thought in enumerate(thoughts):
        if not thought:
            raise ReplyError(f"Thought {index} is empty.", "Write one to five sentences.")
        ahead = [match[0] for match in _LABEL.finditer(thought) if int(match[1]) >= index]
        if ahead:
            raise ReplyError(f"Thought {index} speaks of {ahead[0]}, which is drawn after it.", "Tell only what was.")
    return tuple(thoughts)


def _account(trajectory: Trajectory, log: Sequence[Entry]) -> str:
    """The log of what led to the result, as JSON lines, decision by decision."""
    lines = [f"Goal: {trajectory.goal.prompt}"]
    for index, step in enumerate(trajectory.steps):
        gaps = _gaps(trajectory.steps[index - 1], trajectory.goal.checks) if index else []
        decision = step.decision
        told = {
            "decision": index,
            "thought": decision.reasoning,
            "action": decision.action,
            "instruction": decision.instruction,
            "from": list(decision.references),
            "gaps found before": gaps,
            "draws": step.label,
            "verified": [check.question for check in decision.expects],
        }
        lines.append(json.dumps(told, ensure_ascii=False))
    stop = {"decision": len(trajectory.steps), "thought": trajectory.stop_reason, "action": "stop"}
    ended = [entry.note for entry in log if entry.tool == "RESULT_VALIDATION"][-1:]
    return "\n".join([*lines, json.dumps({**stop, "validation": ended}, ensure_ascii=False)])


def _gaps(step: Step, checks: Sequence[Check]) -> list[str]:
    """What an active verification of this step's picture found wrong; nothing where there was none."""
    verdict = step.winner.active
    return [c.question for c, outcome in verdict.effective(checks) if outcome == "fail"] if verdict else []


def _renamed(step: Step, index: int, names: Mapping[str, str]) -> Step:
    def renamed(text: str) -> str:
        return _MARK.sub(lambda match: f"<{names[match[1]]}>" if match[1] in names else "an earlier try", text)

    decision = step.decision
    decision = dataclasses.replace(
        decision,
        references=tuple(names.get(label, label) for label in decision.references),
        reasoning=renamed(decision.reasoning),
        instruction=renamed(decision.instruction),
    )
    return dataclasses.replace(step, index=index, decision=decision)


def _sentence(text: str) -> str:
    return " ".join(text.split())
