"""A VLM as the loop's controller and verifier (section 3.3; prompts in `prompts/`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..errors import VLMConnectionError, VLMError, VLMSetupError
from ..ports import NO_BRIEF, Album, Checklist, release
from ..trajectory import (
    Brief,
    Check,
    CheckVerdict,
    Decision,
    Evidence,
    Goal,
    Outcome,
    Step,
    Trajectory,
    Usage,
    Verdict,
)
from . import replies, templates
from .asking import ask, usable
from .certainty import probabilities
from .chat import ChatClient, Message, Reply
from .compare import VLMComparer
from .listing import make_checklist

if TYPE_CHECKING:
    from PIL.Image import Image


class VLMController:
    """Plans with a VLM: the checklist once, then one decision a round."""

    def __init__(self, client: ChatClient) -> None:
        self._client = client

    @property
    def name(self) -> str:
        return f"{self._client.name} ({templates.identity('checklist')}, {templates.identity('plan')})"

    def release(self) -> None:
        release(self._client)

    def checklist(self, goal: Goal, images: Album) -> Checklist:
        """Raises VLMError."""
        return make_checklist(self._client, tuple(_goal(goal, images)))

    def decide(self, trajectory: Trajectory, images: Album, brief: Brief = NO_BRIEF) -> Decision:
        """Raises VLMError."""
        asked = ask(
            self._client,
            history(trajectory, images, brief),
            replies.decision_schema(tuple(images), bool(trajectory.steps)),
            lambda reply: read_decision(reply.text, trajectory, images),
        )
        return dataclasses.replace(usable(asked, "decision"), usage=asked.usage, raw=asked.raw)


def history(trajectory: Trajectory, images: Album, brief: Brief = NO_BRIEF) -> list[Message]:
    """The planning conversation: goal and references, then each round's decision and its image with the
    verdict, in order; the last turn asks for the next decision."""
    goal = trajectory.goal
    questions = [f"- {c.id}: {c.question}" for c in goal.checks]
    opening = (*_goal(goal, images), "\n".join(["Checklist:", *questions]), _call_to_decide(trajectory, 0, brief))
    messages = [Message("system", (templates.text("plan"),)), Message("user", opening)]
    for step in trajectory.steps:
        messages.append(Message("assistant", (replies.dump_decision(step.decision),)))
        shown = (
            f"<{step.label}>:",
            images[step.label],
            _outcome(step, goal),
            _call_to_decide(trajectory, step.index + 1, brief),
        )
        messages.append(Message("user", shown))
    return messages


def read_decision(text: str, trajectory: Trajectory, images: Album) -> Decision:
    """A reply to `history`. Raises ReplyError, also for an image that there is not."""
    default = (trajectory.canvas.label,) if trajectory.canvas else trajectory.goal.labels()
    return replies.parse_decision(text, tuple(images), default, bool(trajectory.steps))


def _goal(goal: Goal, images: Album) -> Iterator[str | Image]:
    yield f"Goal: {goal.prompt}"
    for label in goal.labels():
        yield f"<{label}>:"
        yield images[label]


def _call_to_decide(trajectory: Trajectory, before: int, newest: Brief) -> str:
    """What ends the user's turn before step `before`: earlier turns stay as they were, so that a server can
    reuse what it computed for them."""
    brief = trajectory.steps[before].decision.brief if before < len(trajectory.steps) else newest
    accepted = [s.label for s in trajectory.steps[:before] if s.accepted]
    canvas = f"The canvas is <{accepted[-1]}>." if accepted else "There is no canvas yet."
    asked = [line for line in (templates.tactic(brief.tactic), _to_work_on(brief, trajectory.goal)) if line]
    return "\n".join([canvas, *asked, "Decide the next step."]) if asked else f"{canvas} Decide the next step."


def _to_work_on(brief: Brief, goal: Goal) -> str:
    """The checks of a brief, as they stand in the checklist."""
    questions = [f"- {c.id}: {c.question}" for c in goal.checks if c.id in brief.checks]
    return "\n".join(["Work on these checks now and leave the others for later:", *questions]) if questions else ""


def _outcome(step: Step, goal: Goal) -> str:
    winner = step.winner
    lines = [
        *_verdict("This step's own checks", winner.passive, step.decision.expects),
        *_verdict("The goal's checklist", winner.active, goal.checks),
    ]
    if not step.accepted:
        lines.append("This image was rolled back: it is not the canvas.")
    return "\n".join(lines) or "Nobody judged this image."


def _verdict(title: str, verdict: Verdict | None, checks: Sequence[Check]) -> Iterator[str]:
    if verdict is None or not checks:
        return
    effective = verdict.effective(checks)
    notes = {r.check: " ".join(e.note for e in r.evidence if e.note) for r in verdict.results}
    passed = sum(outcome == "pass" for _, outcome in effective)
    yield f"{title}: {passed} of {len(effective)} hold."
    for check, outcome in effective:
        if outcome != "pass":
            note = f" ({notes[check.id]})" if outcome != "skipped" and notes.get(check.id) else ""
            yield f"- {_SAID[outcome]}: {check.question}{note}"


_SAID: dict[Outcome, str] = {
    "fail": "no",
    "unjudged": "could not be judged",
    "skipped": "no, since what it needs is missing",
}


class VLMVerifier:
    """Judges with a VLM. `batch`: questions a call, None for all at once. `logprobs` asks the server for the
    certainty behind each answer. `at_once`: images that may be judged at the same time, for clients that several
    threads may use. `compare`: it also compares two images, where verdicts leave them even.

    A call that fails leaves its checks unjudged, with the reason. Only before the first call that succeeded
    does a wrong address, a refused key or an unknown model raise."""

    def __init__(
        self,
        client: ChatClient,
        batch: int | None = None,
        logprobs: bool = False,
        at_once: int = 1,
        compare: bool = False,
    ) -> None:
        self.comparer = VLMComparer(client, logprobs) if compare else None
        self._client = client
        self._batch = batch
        self._logprobs = logprobs
        self.at_once = at_once
        self._reached = False

    @property
    def name(self) -> str:
        return f"{self._client.name} ({templates.identity('judge')})"

    def release(self) -> None:
        release(self._client)

    def judge(self, image: Image, checks: Sequence[Check], references: Sequence[Image] = ()) -> Verdict:
        """Raises VLMSetupError or VLMConnectionError at first use."""
        size = self._batch or max(1, len(checks))
        results: list[CheckVerdict] = []
        usage = Usage()
        for start in range(0, len(checks), size):
            some, spent = self._judge(image, checks[start : start + size], references)
            results.extend(some)
            usage += spent
        return Verdict(tuple(results), usage)

    def _judge(
        self, image: Image, checks: Sequence[Check], references: Sequence[Image]
    ) -> tuple[Sequence[CheckVerdict], Usage]:
        def parse(reply: Reply) -> tuple[CheckVerdict, ...]:
            self._reached = True
            return _with_certainty(replies.parse_judgement(reply.text, checks, self._client.name), reply)

        messages = _judging(image, checks, references)
        try:
            asked = ask(self._client, messages, replies.judgement_schema(checks), parse, self._logprobs)
        except VLMError as error:
            if not self._reached and isinstance(error, (VLMSetupError, VLMConnectionError)):
                raise
            return self._unjudged(checks, str(error), ""), Usage(calls=1)
        if asked.value is None:
            return self._unjudged(checks, asked.error, asked.raw), asked.usage
        return asked.value, asked.usage

    def _unjudged(self, checks: Sequence[Check], reason: str, raw: str) -> list[CheckVerdict]:
        evidence = (Evidence(self._client.name, reason),)
        return [CheckVerdict(c.id, "unjudged", None, evidence, raw) for c in checks]


def _judging(image: Image, checks: Sequence[Check], references: Sequence[Image]) -> list[Message]:
    parts: list[str | Image] = []
    for number, reference in enumerate(references):
        parts += [f"Reference image {number}:", reference]
    questions = "\n".join(f"- {c.id}: {c.question}" for c in checks)
    parts += ["Image to judge:", image, f"Questions:\n{questions}"]
    return [Message("system", (templates.text("judge"),)), Message("user", tuple(parts))]


def _with_certainty(results: Sequence[CheckVerdict], reply: Reply) -> tuple[CheckVerdict, ...]:
    """A measured P(yes) replaces the one that the model wrote down."""
    measured = probabilities(reply.text, reply.logprobs)
    return tuple(
        dataclasses.replace(r, probability=measured[r.check]) if r.outcome != "unjudged" and r.check in measured else r
        for r in results
    )
