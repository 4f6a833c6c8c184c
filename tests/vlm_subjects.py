"""The three ways to a VLM around one model folder: a real server, transformers in this process, ComfyUI's CLIP."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch

from clvr import errors
from clvr.trajectory import Usage
from clvr.vlm import ClientSettings, OpenAIClient, Reply
from clvr.vlm.wire import Pictures
from scripts.comfy import ComfyError, find

from .vlm_fixtures import completion, serving


class Interrupted(Exception):
    """What a listener raises."""


class ServerSubject:
    """transformers' own OpenAI-compatible server; it ignores response_format and logprobs."""

    measures = False

    def __init__(self, folder):
        from transformers.cli.serve import Serve

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.model = f"http://127.0.0.1:{port}", str(folder)
        self._serve = Serve(force_model=self.model, port=port, host="127.0.0.1", device="cpu", non_blocking=True)
        end = time.monotonic() + 60
        while not self._serve.server.started and time.monotonic() < end:
            threading.Event().wait(0.05)

    def client(self, max_tokens=12, waiting=None):
        settings = ClientSettings(max_tokens=max_tokens, retries=0)
        return OpenAIClient(self.url, self.model, settings=settings, waiting=waiting)

    def interrupting(self):
        return self.client(waiting=_interrupt)

    @contextlib.contextmanager
    def silent(self):
        """A scripted server: transformers' repeats the prompt's end where the model said nothing."""
        with serving(completion("")) as server:
            yield server.client()

    def close(self):
        self._serve.kill_server()


class LocalSubject:
    measures = True

    def __init__(self, folder):
        from clvr.vlm.local import LocalClient

        torch.set_num_threads(1)
        self.qwen = LocalClient.load(folder).qwen

    def client(self, max_tokens=12, waiting=None, keep_prefix=True):
        from clvr.vlm.local import LocalClient, LocalSettings

        settings = LocalSettings(max_tokens=max_tokens, keep_prefix=keep_prefix)
        return LocalClient(self.qwen, None, settings, waiting)

    def interrupting(self):
        return self.client(waiting=_interrupt)

    def silent(self):
        return contextlib.nullcontext(self.client())

    def close(self):
        self.qwen.forget()


class ClipSubject:
    """ComfyUI's own Qwen3-VL in a process of its own."""

    measures = False

    def __init__(self, folder):
        comfy = _comfy_with_qwen()
        worker = Path(__file__).with_name("vlm_comfy_worker.py")
        self._log = open(folder / "comfy.log", "w+b")  # noqa: SIM115
        command = [sys.executable, str(worker), str(comfy), str(folder)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )

    def client(self, max_tokens=12, interrupt_after=None):
        return Remote(self, max_tokens, interrupt_after)

    def interrupting(self):
        return self.client(interrupt_after=0)

    def silent(self):
        return contextlib.nullcontext(self.client())

    def ask(self, request):
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(request), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        self._log.seek(0)
        assert line, self._log.read().decode(errors="replace")[-3000:]
        return json.loads(line)

    def close(self):
        self._process.kill()
        self._process.wait()
        self._log.close()


class Remote:
    """The worker's client, as a client."""

    name = "tiny@ComfyUI"

    def __init__(self, subject, max_tokens, interrupt_after):
        self._subject = subject
        self._settings = {"max_tokens": max_tokens}
        self._interrupt_after = interrupt_after

    def chat(self, messages, schema=None, logprobs=False):
        pictures = Pictures(1024)
        told = self._subject.ask(
            {
                "op": "chat",
                "messages": [[m.role, [_sent(p, pictures) for p in m.parts]] for m in messages],
                "settings": self._settings,
                "interrupt_after": self._interrupt_after,
            }
        )
        if "interrupted" in told:
            raise Interrupted
        if "error" in told:
            raise getattr(errors, told["error"])(told["thing"], told["remedy"])
        return Reply(told["text"], Usage(*told["usage"]), told["truncated"])


def _sent(part, pictures):
    return part if isinstance(part, str) else {"png": pictures.url(part).split(",", 1)[1]}


def _interrupt():
    raise Interrupted


def _comfy_with_qwen():
    comfy = find()
    if not (comfy / "comfy" / "text_encoders" / "qwen3vl.py").is_file():
        raise NoQwenError("THIS COMFYUI KNOWS NO QWEN3-VL: name one >= 0.29 by COMFYUI_PATH")
    return comfy


class NoQwenError(ComfyError):
    """ComfyUI is older than its Qwen3-VL."""


KINDS = {"server": ServerSubject, "transformers": LocalSubject, "clip": ClipSubject}
