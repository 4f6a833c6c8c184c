"""The OpenAI chat format and its dialects: addresses, keys, images, answers."""

from __future__ import annotations

import base64
import io
import ipaddress
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..errors import ReplyError, VLMError, VLMSetupError
from ..trajectory import Usage
from .chat import Message, Reply, TokenLogprob, joined

if TYPE_CHECKING:
    from PIL.Image import Image

_OPTIONAL = (
    "response_format",
    "top_logprobs",
    "logprobs",
    "seed",
    "temperature",
    "max_completion_tokens",
    "max_tokens",
)
"""Request fields that some servers refuse."""


@dataclass(frozen=True)
class Address:
    """`url` ends in the API's version, without a slash; `place` is host and port."""

    url: str
    place: str
    loopback: bool

    @classmethod
    def parse(cls, text: str) -> Address:
        """'localhost:8000', 'http://host/v1', 'https://host/api/v1/' … Raises VLMSetupError."""
        text = text.strip()
        try:
            parts = urlsplit(text if "://" in text else f"http://{text}")
            host, port = parts.hostname or "", parts.port
            host.encode("idna")
        except ValueError:
            raise VLMSetupError("The VLM's address cannot be read.", _EXAMPLE) from None
        if parts.username is not None or parts.password is not None or parts.query:
            raise VLMSetupError("The VLM's address holds a user name or a query.", "Give the key as the API key.")
        if parts.scheme not in ("http", "https") or not host or re.search(r"\s", text):
            raise VLMSetupError(f"'{text:.80}' is no address of a VLM server.", _EXAMPLE)
        place = (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
        path = parts.path.rstrip("/").removesuffix("/chat/completions")
        path = path if re.search(r"/v[0-9]+(beta|alpha)?(/openai)?$", path) else f"{path}/v1"
        return cls(f"{parts.scheme}://{place}{path}", place, _is_loopback(host))


_EXAMPLE = "Write for example http://127.0.0.1:8000."


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class Secret:
    """An API key that shows itself in a request's header only."""

    def __init__(self, value: str | None = None) -> None:
        """Raises VLMSetupError for a key that cannot stand in a header."""
        value = (value or "").strip()
        if not (value.isascii() and value.isprintable()) or " " in value:
            raise VLMSetupError("The API key holds characters that no key has.", "Copy it again.")
        self._value = value

    def __repr__(self) -> str:
        return "Secret(***)" if self._value else "Secret(none)"

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._value}"} if self._value else {}

    def hide(self, text: str, shortest: int = 4) -> str:
        """The text without the key. Shorter keys are placeholders ("x"), which occur in any text."""
        return text.replace(self._value, "***") if len(self._value) >= shortest else text


class Pictures:
    """Images as data URLs. The newest ones are remembered, because a history is sent again every round."""

    def __init__(self, side: int, remembered: int = 32) -> None:
        self._side = side
        self._remembered = remembered
        self._urls: OrderedDict[int, tuple[Image, str]] = OrderedDict()
        self._lock = threading.Lock()

    def url(self, image: Image) -> str:
        """A PNG whose longer side has at most `side` pixels."""
        with self._lock:
            known = self._urls.pop(id(image), None)
            known = known if known and known[0] is image else (image, self._encode(image))
            self._urls[id(image)] = known
            while len(self._urls) > self._remembered:
                self._urls.popitem(last=False)
        return known[1]

    def _encode(self, image: Image) -> str:
        buffer = io.BytesIO()
        shrunk(image, self._side).save(buffer, "PNG", compress_level=1)
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def shrunk(image: Image, side: int) -> Image:
    """In RGB, the longer side at most `side` pixels."""
    scale = side / max(image.size)
    small = image.convert("RGB")
    if scale < 1:
        small = small.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    return small


def message_body(message: Message, pictures: Pictures) -> dict[str, Any]:
    """Turns of text alone go as a plain string: some servers take nothing else for them."""
    parts = list(joined(message))
    texts = [plain(part) for part in parts if isinstance(part, str)]
    if len(texts) == len(parts):
        return {"role": message.role, "content": "".join(texts)}
    return {"role": message.role, "content": [_part(part, pictures) for part in parts]}


def _part(part: str | Image, pictures: Pictures) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": plain(part)}
    return {"type": "image_url", "image_url": {"url": pictures.url(part)}}


def response_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": schema}}


def without(body: Mapping[str, Any], refused: frozenset[str]) -> dict[str, Any]:
    """The request without the fields that the server refuses. Newer hosted models want the token limit under
    its new name."""
    kept = {k: v for k, v in body.items() if k not in refused}
    if "max_tokens" in refused and "max_completion_tokens" not in refused:
        kept["max_completion_tokens"] = body["max_tokens"]
    return kept


def culprit(complaint: str, body: Mapping[str, Any]) -> str | None:
    """The optional field that a refusal names; the schema where it names none; None where nothing is left."""
    named = (name for name in _OPTIONAL if name in body and re.search(rf"\b{name}\b", complaint))
    return next(named, "response_format" if "response_format" in body else None)


def names_unknown_model(complaint: str) -> bool:
    return _UNKNOWN_MODEL.search(complaint) is not None


_UNKNOWN_MODEL = re.compile(
    r"model\b.{0,120}?(not found|not be found|not exist|not available)|(unknown|invalid|no such) model",
    re.I | re.S,
)


def complaint(text: str) -> str:
    """What a server says in an error's body, in one line of at most 300 characters."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        data = None
    for key in ("error", "message", "detail"):
        data = data[key] if isinstance(data, dict) and key in data else data
    if isinstance(data, str):
        text = data
    elif is_page(text):
        text = "a web page"
    return clean(" ".join(text.split())[:300]) or "nothing"


def is_page(text: str) -> bool:
    return text.lstrip()[:200].lower().startswith(("<!doctype html", "<html"))


def clean(text: str) -> str:
    """Without lone surrogates, which no file could hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def plain(text: str) -> str:
    """Clean, and without a chat format's own marks: one in a prompt would end the turn or ask for an image."""
    return _MARK.sub(r"< |\1|>", clean(text))


_MARK = re.compile(r"<\|(\w+)\|>")


def read_reply(data: object, max_tokens: int) -> Reply:
    """A chat completion as a reply. Raises ReplyError for an empty answer, VLMError for anything else that is
    no completion."""
    choices = data.get("choices") if isinstance(data, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(data, dict) or not isinstance(choice, dict) or not isinstance(message, dict):
        raise VLMError("The server's answer is no chat completion.", "Is this an OpenAI-compatible server?")
    truncated = choice.get("finish_reason") == "length"
    text = _text(message.get("content"))
    thoughts = _text(message.get("reasoning_content") or message.get("reasoning"))
    if not text.strip() and _looks_like_json(thoughts):
        # vLLM's reasoning parser files a guided answer under reasoning where no thought came before it.
        text = thoughts
    if not text.strip():
        raise empty(truncated, thoughts, _text(message.get("refusal")), max_tokens)
    return Reply(clean(text), _usage(data.get("usage")), truncated, _logprobs(choice.get("logprobs")))


def empty(truncated: bool, thoughts: str, refusal: str, max_tokens: int) -> ReplyError:
    """Why an answer holds no text."""
    if refusal:
        return ReplyError(f"The model refused: {clean(refusal)[:200]}", "Change the request or the model.")
    if truncated:
        doing = "thinking" if thoughts else "and answered nothing"
        return ReplyError(
            f"The model used all its {max_tokens} tokens {doing}.",
            "Raise max_tokens, or switch its thinking off.",
        )
    if thoughts:
        return ReplyError("The model's reply has thinking only and no answer.", "Switch its thinking off.")
    return ReplyError("The model's reply is empty.", "Look at the server's log; its chat template may be wrong.")


def _text(content: object) -> str:
    """Content as a string; some servers give a list of parts."""
    if isinstance(content, list):
        return "".join(_text(p.get("text")) for p in content if isinstance(p, dict))
    return content if isinstance(content, str) else ""


def _looks_like_json(text: str) -> bool:
    return text.strip().startswith("{") and text.strip().endswith("}")


def _usage(data: object) -> Usage:
    counts = data if isinstance(data, dict) else {}
    return Usage(1, _count(counts.get("prompt_tokens")), _count(counts.get("completion_tokens")))


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _logprobs(data: object) -> tuple[TokenLogprob, ...] | None:
    rows = data.get("content") if isinstance(data, dict) else None
    if not isinstance(rows, list) or not rows:
        return None
    return tuple(TokenLogprob(str(r.get("token", "")), _top(r)) for r in rows if isinstance(r, dict))


def _top(row: Mapping[str, Any]) -> dict[str, float]:
    """Log-probabilities by token, the generated one included."""
    others = row.get("top_logprobs")
    rows = [row, *(others if isinstance(others, list) else [])]
    return {
        str(r.get("token", "")): float(r["logprob"])
        for r in rows
        if isinstance(r, dict) and isinstance(r.get("logprob"), (int, float))
    }
