"""One question to a VLM: asked, read, and asked once more where the reply cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from .. import allowance
from ..errors import ReplyError, VLMError
from ..trajectory import Usage
from . import templates
from .chat import ChatClient, Message, Reply

T = TypeVar("T")
_QUOTED = 4000  # characters of a bad reply that its writer is shown again


@dataclass(frozen=True)
class Asked(Generic[T]):
    """The outcome of one question: a value, or the error of the last attempt."""

    value: T | None
    raw: str
    usage: Usage
    error: str = ""


def ask(
    client: ChatClient,
    messages: Sequence[Message],
    schema: Mapping[str, Any] | None,
    parse: Callable[[Reply], T],
    logprobs: bool = False,
) -> Asked[T]:
    """Ask, and ask once more with the error where the reply cannot be used and the run's budget allows it. Raises
    what the client raises at the first attempt."""
    usage, talk, raw, error = Usage(), list(messages), "", ""
    for attempt in range(2):
        if refused := allowance.refused():
            return Asked(None, raw, usage, f"{error} ({refused})".lstrip())
        try:
            reply = client.chat(talk, schema, logprobs)
        except ReplyError as empty:
            usage, error = usage + Usage(calls=1), str(empty)
            talk = _with_repair(messages, "", error)
            continue
        except VLMError as failed:
            if not attempt:
                raise
            return Asked(None, raw, usage + Usage(calls=1), f"{error} ({failed})")
        allowance.answered(reply.usage)
        usage, raw = usage + reply.usage, reply.text
        try:
            return Asked(parse(reply), raw, usage)
        except ReplyError as bad:
            error = f"{bad} (it was cut at the token limit)" if reply.truncated else str(bad)
            talk = _with_repair(messages, raw, error)
    return Asked(None, raw, usage, error)


def _with_repair(messages: Sequence[Message], raw: str, error: str) -> list[Message]:
    said = Message("assistant", (raw[:_QUOTED] or "(nothing)",))
    return [*messages, said, Message("user", (templates.repair(error),))]


def usable(asked: Asked[T], what: str) -> T:
    """The value. Raises ReplyError, saying what was asked for, where no reply could be used."""
    if asked.value is None:
        often = ", twice" if asked.usage.calls > 1 else ""
        raise ReplyError(
            f"The VLM gave no usable {what}{often}: {asked.error}",
            "Use a larger model, or one that follows instructions and sees images.",
        )
    return asked.value
