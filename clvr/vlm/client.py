"""A client for any OpenAI-compatible server: vLLM, llama.cpp, Ollama, LM Studio, or a hosted one."""

from __future__ import annotations

import contextlib
import json
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from ..errors import VLMConnectionError, VLMError, VLMSetupError, VLMTimeoutError
from ..together import grouped, look
from . import wire
from .chat import Message, Reply


@dataclass(frozen=True)
class ClientSettings:
    """connect, read: seconds, `read` for the whole answer. retries: further attempts after a connection
    error, 429 or 5xx, after backoff · 2^n seconds with jitter or what Retry-After asks, at most
    `longest_wait`. image_side: pixels of the longer side of a sent image. max_body: bytes of an answer.
    extra: further request fields, for example {"chat_template_kwargs": {"enable_thinking": False}}."""

    connect: float = 5.0
    read: float = 300.0
    retries: int = 3
    backoff: float = 0.5
    longest_wait: float = 30.0
    max_tokens: int = 4096
    temperature: float = 0.0
    seed: int | None = None
    image_side: int = 1024
    max_body: int = 8 << 20
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: httpx.Headers
    text: str


class _Line:
    """The connection of one call. Another thread may cut it: the server then stops generating for nobody."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._is_cut = False

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Called by httpcore; a line that was cut before it stood is cut as soon as it stands."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            with self._lock:
                self._socket = info["return_value"].get_extra_info("socket")
                already = self._is_cut
            if already:
                self.cut()

    def cut(self) -> None:
        with self._lock:
            self._is_cut = True
            if self._socket is not None:
                with contextlib.suppress(OSError):  # it may have ended by itself
                    self._socket.shutdown(socket.SHUT_RDWR)


class _RefusedError(VLMError):
    """The server understood the request and will not take it as it is."""


_RETRIED = {408, 425, 429, 500, 502, 503, 504, 529}
_POLL = 0.1  # seconds between two looks at an interrupt
_START_ONE = (
    "Start one, for example `vllm serve Qwen/Qwen3-VL-8B-Instruct` (port 8000), `llama-server -m MODEL.gguf "
    "--mmproj MMPROJ.gguf` (8080), `ollama serve` (11434) or LM Studio (1234), or correct the address."
)


class OpenAIClient:
    """A model behind an OpenAI-compatible address, given with or without its /v1.

    Without `model` the server's only model is taken. The key goes to that address and nowhere else: no
    redirect is followed, and it stands in no message, log or repr. `waiting` is called about ten times a
    second while an answer is awaited; what it raises passes through, and the connection is closed. Several threads
    may call it."""

    def __init__(
        self,
        url: str,
        model: str | None = None,
        api_key: str | None = None,
        settings: ClientSettings | None = None,
        waiting: Callable[[], None] | None = None,
    ) -> None:
        self.settings = settings or ClientSettings()
        self._address = wire.Address.parse(url)
        self._secret = wire.Secret(api_key)
        self._model = model
        self._waiting = waiting
        self._pictures = wire.Pictures(self.settings.image_side)
        self._refused: frozenset[str] = frozenset()
        self._http = httpx.Client(
            timeout=httpx.Timeout(self.settings.read, connect=self.settings.connect),
            # A proxy from the environment must not see what is meant for this machine.
            trust_env=not self._address.loopback,
            follow_redirects=False,
            # A fresh connection a call: a model takes seconds, and idle connections die between calls.
            limits=httpx.Limits(max_keepalive_connections=0),
            headers={"Accept-Encoding": "identity", **self._secret.headers()},
        )

    def __repr__(self) -> str:
        return f"OpenAIClient({self._address.url!r}, model={self._model!r})"

    @property
    def name(self) -> str:
        return f"{self._model or 'model'}@{self._address.place}"

    def close(self) -> None:
        self._http.close()

    def models(self) -> tuple[str, ...]:
        """Names that the server lists. Raises as `chat` does."""
        data = self._request("GET", "models")
        rows = data.get("data") if isinstance(data, dict) else None
        return tuple(str(r["id"]) for r in rows or () if isinstance(r, dict) and "id" in r)

    def chat(
        self, messages: Sequence[Message], schema: Mapping[str, Any] | None = None, logprobs: bool = False
    ) -> Reply:
        body: dict[str, Any] = {
            "model": self._chosen_model(),
            "messages": [wire.message_body(m, self._pictures) for m in messages],
            "temperature": self.settings.temperature,
            "max_tokens": self.settings.max_tokens,
            "stream": False,
        }
        if self.settings.seed is not None:
            body["seed"] = self.settings.seed
        if schema is not None:
            body["response_format"] = wire.response_format(schema)
        if logprobs:
            body |= {"logprobs": True, "top_logprobs": 10}
        return wire.read_reply(self._complete({**body, **self.settings.extra}), self.settings.max_tokens)

    def _chosen_model(self) -> str:
        if self._model is None:
            names = self.models()
            if len(names) != 1:
                raise VLMSetupError(
                    f"The server at {self._address.url} has {len(names)} models{_listed(names)}.",
                    "Name the one to use.",
                )
            self._model = names[0]
        return self._model

    def _complete(self, body: Mapping[str, Any]) -> object:
        """Post, without the optional fields that the server refuses; those are remembered once it worked."""
        refused = self._refused
        while True:
            sent = wire.without(body, refused)
            try:
                data = self._request("POST", "chat/completions", sent)
            except _RefusedError as error:
                name = wire.culprit(error.thing, sent)
                if name is None:
                    raise VLMError(error.thing, error.remedy) from None
                refused |= {name}
            else:
                self._refused = refused
                return data

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401
        """The server's JSON, after as many attempts as the settings allow."""
        attempt = 0
        while True:
            retry_after = None
            try:
                answer = self._interruptible(lambda line: self._exchange(method, path, body, line))
                if answer.status not in _RETRIED or attempt == self.settings.retries:
                    return self._content(answer)
                retry_after = answer.headers.get("retry-after")
            except VLMConnectionError:
                if attempt == self.settings.retries:
                    raise
            self._sleep(self._pause(attempt, retry_after))
            attempt += 1

    def _pause(self, attempt: int, retry_after: str | None) -> float:
        """Seconds before the next attempt. Retry-After counts where it is a number of seconds."""
        if retry_after is not None and re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", retry_after.strip()):
            wait = float(retry_after)
        else:
            wait = self.settings.backoff * 2**attempt * random.uniform(0.5, 1.5)
        return min(wait, self.settings.longest_wait)

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._look()
            time.sleep(min(left, _POLL))

    def _look(self) -> None:
        """Raises what ends the call."""
        look()
        if self._waiting is not None:
            self._waiting()

    def _interruptible(self, work: Callable[[_Line], _Answer]) -> _Answer:
        """`work` in a thread of its own where someone wants to look in meanwhile."""
        if self._waiting is None and not grouped():
            return work(_Line())
        line = _Line()
        outcome: list[_Answer | BaseException] = []

        def run() -> None:
            try:
                outcome.append(work(line))
            except BaseException as error:  # handed over to the caller's thread
                outcome.append(error)

        thread = threading.Thread(target=run, name="vlm-request", daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                self._look()
                thread.join(_POLL)
        except BaseException:
            line.cut()
            raise
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0]

    def _exchange(self, method: str, path: str, body: Mapping[str, Any] | None, line: _Line) -> _Answer:
        """One request. Raises VLMConnectionError, VLMTimeoutError, and VLMError for an answer too long."""
        url = self._address.url
        try:
            return self._stream(method, f"{url}/{path}", body, line)
        except httpx.ConnectTimeout:
            raise VLMConnectionError(
                f"No VLM server answers at {url} within {self.settings.connect:g} seconds.", _START_ONE
            ) from None
        except httpx.ConnectError:
            raise VLMConnectionError(f"No VLM server answers at {url}.", _START_ONE) from None
        except httpx.TimeoutException:
            raise VLMTimeoutError(
                f"{url} did not answer within {self.settings.read:g} seconds.",
                "Raise the time limit, or use a smaller model or fewer tokens.",
            ) from None
        except httpx.HTTPError as error:
            raise VLMConnectionError(
                f"The connection to {url} broke ({type(error).__name__}).", "Look at the server's log."
            ) from None

    def _stream(self, method: str, url: str, body: Mapping[str, Any] | None, line: _Line) -> _Answer:
        end = time.monotonic() + self.settings.read
        content = bytearray()
        with self._http.stream(method, url, json=body, extensions={"trace": line.trace}) as response:
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > self.settings.max_body:
                    raise VLMError(
                        f"The answer of {url} is larger than {self.settings.max_body} bytes.",
                        "Is this the address of a VLM server?",
                    )
                if time.monotonic() > end:
                    raise httpx.ReadTimeout("")
        text = content.decode("utf-8", "replace")
        # A server that echoes the key does so in its errors; "EMPTY" and the like may well stand in a reply.
        hidden = self._secret.hide(text, shortest=16 if response.status_code == 200 else 4)
        return _Answer(response.status_code, response.headers, hidden)

    def _content(self, answer: _Answer) -> object:
        """The answer's JSON, or the error that its status stands for."""
        url, status, said = self._address.url, answer.status, wire.complaint(answer.text)
        if status == 200:
            return self._json(answer.text)
        if 300 <= status < 400:
            where = self._secret.hide(answer.headers.get("location", "elsewhere"))[:200]
            raise VLMSetupError(f"{url} redirects to {where}.", "Give that address, if you trust it.")
        if status in (401, 403):
            raise self._unauthorised(status, said)
        if status == 404 or (status in (400, 422) and wire.names_unknown_model(said)):
            raise self._not_found(status, said)
        if status in (400, 422, 501):
            raise _RefusedError(f"{url} refused the request ({status}): {said}.", "Look at the server's log.")
        raise VLMError(f"{url} failed ({status}): {said}.", "Look at the server's log.")

    def _unauthorised(self, status: int, said: str) -> VLMSetupError:
        url = self._address.url
        if self._secret.headers():
            return VLMSetupError(f"{url} refused the API key ({status}): {said}.", "Give a key that is valid there.")
        return VLMSetupError(
            f"{url} asks for an API key ({status}): {said}.",
            f"Put it into the environment as CLVR_VLM_API_KEY; for a workflow, with CLVR_VLM_URL={url} beside it, "
            "and start ComfyUI again, or put both into ComfyUI's settings under CLVR.",
        )

    def _json(self, text: str) -> object:
        url = self._address.url
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            what = "a web page" if wire.is_page(text) else "something other than JSON"
            raise VLMSetupError(f"{url} answers with {what}.", "Give the address of the API itself.") from None
        if isinstance(data, dict) and data.get("error"):
            raise VLMError(f"{url} failed: {wire.complaint(text)}.", "Look at the server's log.")
        return data

    def _not_found(self, status: int, said: str) -> VLMSetupError:
        """Which of both is missing, the model or the API, as far as the server tells."""
        url = self._address.url
        answer = self._interruptible(lambda line: self._exchange("GET", "models", None, line))
        try:
            data = json.loads(answer.text) if answer.status == 200 else None
        except (ValueError, RecursionError):
            data = None
        if not isinstance(data, dict):
            return VLMSetupError(f"There is no OpenAI-compatible API at {url} ({status}): {said}.", _START_ONE)
        rows = data.get("data")
        names = [str(r["id"]) for r in rows if isinstance(r, dict) and "id" in r] if isinstance(rows, list) else []
        return VLMSetupError(f"{url} has no model '{self._model}' ({said}).", f"It has {len(names)}{_listed(names)}.")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:20])
    return f": {shown}{' …' if len(names) > 20 else ''}" if names else ""
