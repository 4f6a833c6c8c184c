"""The seam to a VLM: messages with text and images in, text out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ..trajectory import Usage

if TYPE_CHECKING:
    from PIL.Image import Image

ONE_CALL = Usage(calls=1)
Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One turn; text and RGB images in the order in which the model reads them."""

    role: Role
    parts: tuple[str | Image, ...]


def joined(message: Message) -> Iterator[str | Image]:
    """A message's parts, texts that follow each other as one, since chat templates join parts without a break."""
    for is_text, run in itertools.groupby(message.parts, lambda part: isinstance(part, str)):
        if is_text:
            yield "\n".join(part for part in run if isinstance(part, str))
        else:
            yield from run


@dataclass(frozen=True)
class TokenLogprob:
    """A generated token, and the log-probabilities of the likeliest tokens in its place."""

    token: str
    top: Mapping[str, float]


@dataclass(frozen=True)
class Reply:
    """`truncated`: the model stopped at its token limit. `logprobs` covers `text` token by token."""

    text: str
    usage: Usage = ONE_CALL
    truncated: bool = False
    logprobs: tuple[TokenLogprob, ...] | None = None


class ChatClient(Protocol):
    """Anything that answers a conversation. A schema is a wish: callers check the reply themselves."""

    @property
    def name(self) -> str: ...

    def chat(
        self, messages: Sequence[Message], schema: Mapping[str, Any] | None = None, logprobs: bool = False
    ) -> Reply:
        """Raises VLMSetupError where no call can succeed, VLMConnectionError, VLMTimeoutError, ReplyError
        where the answer holds no text, and VLMError for any other failure."""
        ...
