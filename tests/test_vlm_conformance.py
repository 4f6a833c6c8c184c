"""One table of behaviours for the three ways to a VLM: a real server, transformers in this process, and ComfyUI's
CLIP. All three run the same tiny Qwen3-VL, which has learned to plan and to judge one colour."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from clvr import errors, loop
from clvr.ports import Album
from clvr.trajectory import Candidate, Step, Trajectory, Usage, Verdict
from clvr.vlm import ClientSettings, Message, OpenAIClient, Reply, VLMController, VLMVerifier, replies
from clvr.vlm.wire import Pictures, message_body
from scripts.comfy import ComfyError, find

from .tiny_vlm import Lesson, teach
from .vlm_fixtures import completion, serving
from .vlm_lessons import FIRST, GOAL, RED, Painter, Recorder, judged, lessons, picture

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("vlm_conformance")]

SILENT = [Message("user", ("Say nothing.",))]
THINKING = [Message("user", ("Think about it first.",))]
ANSWER = '{"red": "so"}'


class Interrupted(Exception):
    """What a listener raises."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("taught")
    more = [Lesson(SILENT, ""), Lesson(THINKING, f"<think>hm</think>{ANSWER}")]
    assert teach(folder, [*lessons(), *more], steps=400) < 0.4
    return folder


class ServerSubject:
    """transformers' own OpenAI-compatible server; it ignores response_format and logprobs."""

    measures = False

    def __init__(self, folder):
        pytest.importorskip("fastapi", reason="transformers[serving] is not installed")
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
        self._qwen = LocalClient.load(folder).qwen

    def client(self, max_tokens=12, waiting=None):
        from clvr.vlm.local import LocalClient, LocalSettings

        return LocalClient(self._qwen, None, LocalSettings(max_tokens=max_tokens), waiting)

    def interrupting(self):
        return self.client(waiting=_interrupt)

    def silent(self):
        return contextlib.nullcontext(self.client())

    def close(self):
        self._qwen.forget()


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
    try:
        comfy = find()
    except ComfyError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"NO COMFYUI: {error}")
    if not (comfy / "comfy" / "text_encoders" / "qwen3vl.py").is_file():
        pytest.skip("THIS COMFYUI KNOWS NO QWEN3-VL: name one >= 0.29 by COMFYUI_PATH")
    return comfy


KINDS = {"server": ServerSubject, "transformers": LocalSubject, "clip": ClipSubject}


@pytest.fixture(scope="module", params=[pytest.param(k, marks=[pytest.mark.comfy] * (k == "clip")) for k in KINDS])
def subject(request, folder):
    made = KINDS[request.param](folder)
    yield made
    made.close()


def test_a_history_with_images_in_order_gives_the_decision_that_fits_it(subject):
    goal = dataclasses.replace(GOAL, checks=(RED,))
    assert VLMController(subject.client()).decide(Trajectory(goal), Album()).instruction == FIRST.instruction
    verdict = Verdict(replies.parse_judgement(judged("no"), [RED], "any"))
    after = Trajectory(goal).append(Step(0, FIRST, (Candidate(1, None, verdict),), 0, True))
    decision = VLMController(subject.client()).decide(after, Album({"IMG_GEN_0": picture("blue")}))
    assert (decision.action, decision.instruction, decision.references) == ("edit", "make it red", ("IMG_GEN_0",))
    assert decision.usage.calls == 1
    assert decision.usage.tokens_in > 100
    assert decision.usage.tokens_out <= 2


def test_what_it_sees_decides_the_verdict(subject):
    verifier = VLMVerifier(subject.client())
    seen = [verifier.judge(picture(color), [RED]).outcome("red") for color in ("red", "blue", "red")]
    assert seen == ["pass", "fail", "pass"]


def test_a_verdict_has_a_measured_probability_where_the_client_can_measure(subject):
    verifier = VLMVerifier(subject.client(), logprobs=True)
    certain = [verifier.judge(picture(color), [RED]).results[0].probability for color in ("red", "blue")]
    if subject.measures:
        assert 0.5 < certain[0] <= 1
        assert 0 <= certain[1] < 0.5
    else:
        assert certain == [None, None]


@pytest.mark.parametrize("mark", ["<|image_pad|>", "<|im_end|>", "<|vision_start|><|image_pad|><|vision_end|>"])
def test_a_mark_of_the_chat_format_in_a_text_shifts_no_image(subject, mark):
    messages = [Message("user", (f"Is {mark} red?", picture("red")))]
    with contextlib.suppress(errors.ReplyError):  # it was never taught what to say
        assert subject.client(max_tokens=4).chat(messages).usage.calls == 1


def test_an_answer_at_its_limit_is_told_as_cut(subject):
    goal = dataclasses.replace(GOAL, checks=(RED,))
    recorder = Recorder("")
    with contextlib.suppress(errors.ReplyError):
        VLMController(recorder).decide(Trajectory(goal), Album())
    cut, whole = (subject.client(max_tokens=n).chat(recorder.messages) for n in (1, 12))
    assert (cut.truncated, whole.truncated) == (True, False)
    assert cut.usage.tokens_out == 1


def test_an_empty_answer_is_an_error(subject):
    with subject.silent() as client, pytest.raises(errors.ReplyError, match="empty"):
        client.chat(SILENT)


def test_thinking_comes_before_the_answer_or_not_at_all(subject):
    text = subject.client().chat(THINKING).text
    assert text.split("</think>")[-1] == ANSWER


def test_nonsense_leaves_the_check_unjudged_with_what_was_said(subject):
    other = dataclasses.replace(RED, question="Does the cat wear a hat?", id="cat")
    verdict = VLMVerifier(subject.client()).judge(picture("green"), [other])
    assert verdict.outcome("cat") == "unjudged"
    assert verdict.usage.calls == 2


def test_an_interrupt_ends_the_call_within_a_second_and_the_next_one_is_right(subject):
    VLMVerifier(subject.client()).judge(picture("red"), [RED])  # whatever is slow at first has happened
    started = time.monotonic()
    with pytest.raises(Interrupted):
        subject.interrupting().chat(SILENT)
    assert time.monotonic() - started < 1
    assert VLMVerifier(subject.client()).judge(picture("red"), [RED]).outcome("red") == "pass"


def test_two_runs_in_a_row_are_the_same(subject):
    client = subject.client()
    states = [loop.run(GOAL, [], loop.Ports(VLMController(client), Painter(), VLMVerifier(client))) for _ in range(2)]
    runs = [state.trajectory for state in states]
    told = [[(s.decision.action, s.decision.references, run.score(s)) for s in run.steps] for run in runs]
    assert told[0] == told[1] == [("generate", (), 0.0), ("edit", ("IMG_GEN_0",), 1.0)]
    assert runs[0].goal.checks == (RED,)
    assert runs[0].cost.usage == runs[1].cost.usage
    assert runs[0].cost.usage.calls == 5
    assert states[0].best.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.comfy
def test_a_clip_that_is_no_qwen3_vl_is_named(folder):
    subject = ClipSubject(folder)
    said = subject.ask({"op": "refusals"})
    subject.close()
    assert said.keys() == {"klein tokenizer", "no vision"}
    assert all("no Qwen3-VL that sees" in text and "flux2" in text for text in said.values())
    assert "KleinTokenizer" in said["klein tokenizer"]


def test_the_taught_folder_is_asked_as_the_template_renders(folder):
    """The CLIP's rendering is that of the model's own chat template."""
    from clvr.vlm.encoder import rendered
    from clvr.vlm.local import LocalClient

    qwen = LocalClient.load(folder).qwen
    recorded = [lesson.messages for lesson in lessons()]
    for messages in recorded:
        turns = [message_body(m, Pictures(64)) for m in messages]
        own = qwen.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        assert rendered(messages)[0] == own
