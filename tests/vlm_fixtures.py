"""Loopback servers that answer, or misbehave, to order."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from clvr.vlm import ClientSettings, OpenAIClient

FAST = ClientSettings(connect=1.0, read=5.0, retries=2, backoff=0.001, longest_wait=0.05)


@dataclass(frozen=True)
class Sent:
    """What a server answers: a status, a body, further headers, and how long it waits first."""

    status: int = 200
    body: str | bytes = ""
    headers: dict[str, str] = field(default_factory=dict)
    after: float = 0.0
    trickle: float = 0.0
    """Seconds between the body's bytes."""


@dataclass
class Server:
    """`answers` are sent in order, the last one for ever; `requests` holds (path, headers, body)."""

    url: str
    answers: list[Sent | Callable[[dict[str, Any]], Sent]]
    models: Sent
    requests: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)
    """Set when a client hung up before its answer."""

    @property
    def chats(self) -> list[dict[str, Any]]:
        return [body for path, _, body in self.requests if path.endswith("/chat/completions")]

    def client(self, **settings: Any) -> OpenAIClient:
        return OpenAIClient(self.url, "tiny", settings=FAST, **settings)


def completion(text: str | None, finish: str = "stop", **message: Any) -> Sent:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, **message},
        "finish_reason": finish,
    }
    return Sent(body=json.dumps({"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}))


def complaint(status: int, message: str, **headers: str) -> Sent:
    return Sent(status, json.dumps({"error": {"message": message}}), headers)


def listing(*names: str) -> Sent:
    return Sent(body=json.dumps({"object": "list", "data": [{"id": n} for n in names]}))


@contextlib.contextmanager
def serving(*answers: Sent | Callable[[dict[str, Any]], Sent], models: Sent | None = None) -> Iterator[Server]:
    listener = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server = Server(f"http://127.0.0.1:{listener.server_port}", list(answers), models or listing("tiny"))
    listener.script = server  # type: ignore[attr-defined]
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        script = self._note({})
        self._send(script.models)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        script = self._note(body)
        answer = script.answers.pop(0) if len(script.answers) > 1 else script.answers[0]
        self._send(answer(body) if callable(answer) else answer)

    def _note(self, body: dict[str, Any]) -> Server:
        script: Server = self.server.script  # type: ignore[attr-defined]
        script.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        return script

    def _send(self, answer: Sent) -> None:
        script: Server = self.server.script  # type: ignore[attr-defined]
        if answer.after:
            self.connection.settimeout(answer.after)
            with contextlib.suppress(TimeoutError):
                if not self.rfile.read(1):
                    script.gone.set()
                    return
        content = answer.body.encode() if isinstance(answer.body, str) else answer.body
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.send_response(answer.status)
            headers = {
                "Content-Type": "application/json",
                "Content-Length": str(len(content)),
                **answer.headers,
            }
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self._write(content, answer.trickle)

    def _write(self, content: bytes, trickle: float) -> None:
        if not trickle:
            self.wfile.write(content)
            return
        for byte in content:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            threading.Event().wait(trickle)
