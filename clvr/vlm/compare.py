"""A VLM that compares two images, asked in both orders (18 % of answers change with the order)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BeforeValidator

from ..errors import VLMConnectionError, VLMError, VLMSetupError
from ..ports import Preference, release
from ..trajectory import Evidence, Goal, Usage
from . import replies, templates
from .asking import ask
from .certainty import chosen
from .chat import ChatClient, Message, Reply

if TYPE_CHECKING:
    from PIL.Image import Image

Better = Literal["first", "second", "tie", "unknown"]


def _better(value: object) -> object:
    word = str(value).strip().lower().rstrip(".!")
    return {"1": "first", "2": "second", "equal": "tie", "both": "tie", "neither": "tie"}.get(
        word, word if word in get_args(Better) else "unknown"
    )


class ComparisonReply(replies.ReplyModel):
    reason: Annotated[str, BeforeValidator(lambda v: "" if v is None else v)] = ""
    better: Annotated[Better, BeforeValidator(_better)]
    probability: replies.Probability = None


@dataclass(frozen=True)
class _Said:
    """One order's answer: which image of this order is better, with P(the first of it)."""

    better: Better
    first: float
    reason: str


class VLMComparer:
    """`ports.Comparer`. Two calls a pair: where the better image changes with the order, it is a tie. `logprobs`
    asks the server for the certainty behind the answer.

    A failed call leaves the pair unjudged, with the reason. Only before the first call that succeeded does a
    wrong address, a refused key or an unknown model raise."""

    def __init__(self, client: ChatClient, logprobs: bool = False) -> None:
        self._client = client
        self._logprobs = logprobs
        self._reached = False

    @property
    def name(self) -> str:
        return f"{self._client.name} ({templates.identity('compare')})"

    def release(self) -> None:
        release(self._client)

    def prefer(self, first: Image, second: Image, goal: Goal, references: Sequence[Image] = ()) -> Preference:
        """Raises VLMSetupError or VLMConnectionError at first use."""
        forth, usage, raw, error = self._ask(first, second, goal, references)
        if forth is None:
            return Preference(None, usage, (Evidence(self._client.name, error),), raw)
        back, more, other, error = self._ask(second, first, goal, references)
        usage, raw = usage + more, f"{raw}\n\n{other}"
        if back is None:
            return Preference(None, usage, (Evidence(self._client.name, error),), raw)
        probability, note = _agreed(forth, back)
        return Preference(probability, usage, (Evidence(self._client.name, note),), raw)

    def _ask(
        self, first: Image, second: Image, goal: Goal, references: Sequence[Image]
    ) -> tuple[_Said | None, Usage, str, str]:
        """The answer, what it cost, the raw reply, and why there is no answer."""

        def parse(reply: Reply) -> _Said:
            self._reached = True
            return _read(reply)

        try:
            asked = ask(self._client, _talk(first, second, goal, references), _schema(), parse, self._logprobs)
        except VLMError as error:
            if not self._reached and isinstance(error, (VLMSetupError, VLMConnectionError)):
                raise
            return None, Usage(calls=1), "", str(error)
        return asked.value, asked.usage, asked.raw, asked.error


def _agreed(forth: _Said, back: _Said) -> tuple[float | None, str]:
    """P(the first image is better) over both orders, and the reason."""
    if "unknown" in (forth.better, back.better):
        return None, forth.reason if forth.better == "unknown" else back.reason
    turned = {"first": "second", "second": "first"}.get(back.better, back.better)
    if forth.better != turned:
        return 0.5, f"The answer changes with the order. {forth.reason}".strip()
    return (forth.first + 1 - back.first) / 2, forth.reason


def _talk(first: Image, second: Image, goal: Goal, references: Sequence[Image]) -> list[Message]:
    parts: list[str | Image] = []
    for number, reference in enumerate(references):
        parts += [f"Reference image {number}:", reference]
    checks = [f"- {check.question}" for check in goal.checks]
    asked = "\n".join([f"Goal: {goal.prompt}", *(["Its checks:", *checks] if checks else [])])
    parts += ["First image:", first, "Second image:", second, asked, "Which image satisfies the goal better?"]
    return [Message("system", (templates.text("compare"),)), Message("user", tuple(parts))]


def _schema() -> dict[str, Any]:
    return replies.object_schema(
        reason={"type": "string"},
        better={"type": "string", "enum": list(get_args(Better))},
        probability={"type": ["number", "null"]},
    )


def _read(reply: Reply) -> _Said:
    """A measured probability counts before a written one, and a written one only where it fits the answer. Raises
    ReplyError."""
    said = replies.read(reply.text, ComparisonReply)
    measured = chosen(reply.text, reply.logprobs, "better", "first", "second")
    first = measured if measured is not None else said.probability
    if said.better == "first":
        return _Said("first", first if first is not None and first >= 0.5 else 1.0, said.reason)
    if said.better == "second":
        return _Said("second", first if first is not None and first <= 0.5 else 0.0, said.reason)
    return _Said(said.better, 0.5, said.reason)
