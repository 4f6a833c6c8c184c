"""The closed loop with a real vision-language model: a tiny Qwen3-VL that has learned to plan and to judge
one colour, behind transformers' own OpenAI-compatible server."""

from __future__ import annotations

import dataclasses
import socket
import threading
import time
from dataclasses import dataclass

import pytest
from PIL import Image

from clvr import loop
from clvr.ports import Album, Drawing
from clvr.trajectory import Candidate, Check, Decision, Goal, Step, Trajectory, Verdict
from clvr.vlm import ClientSettings, OpenAIClient, Reply, VLMController, VLMVerifier, replies

RED = Check("red", "Is the picture red?", "color")
GOAL = Goal("a red picture")
FIRST = Decision("generate", "Nothing is there.", "paint a picture")
SECOND = Decision("edit", "It is not red.", "make it red", ("IMG_GEN_0",))


def picture(color):
    return Image.new("RGB", (64, 64), color)


def judged(answer):
    return f'{{"results": [{{"check": "red", "reason": "", "answer": "{answer}", "probability": null}}]}}'


class Recorder:
    """A client that keeps the conversation and gives the reply that the model is to learn."""

    name = "recorder"

    def __init__(self, reply):
        self.reply = reply

    def chat(self, messages, schema=None, logprobs=False):
        self.messages = messages
        return Reply(self.reply)


def lessons():
    """What is said in a run that draws blue, is told so, and draws red."""
    from .tiny_vlm import Lesson

    goal = dataclasses.replace(GOAL, checks=(RED,))
    verdict = Verdict(replies.parse_judgement(judged("no"), [RED], "any"))
    after = Trajectory(goal).append(Step(0, FIRST, (Candidate(1, None, verdict),), 0, True))
    album = Album({"IMG_GEN_0": picture("blue")})
    asked = [
        (replies.dump_checklist([RED]), lambda c: VLMController(c).checklist(GOAL, Album())),
        (replies.dump_decision(FIRST), lambda c: VLMController(c).decide(Trajectory(goal), Album())),
        (replies.dump_decision(SECOND), lambda c: VLMController(c).decide(after, album)),
        (judged("no"), lambda c: VLMVerifier(c).judge(picture("blue"), [RED])),
        (judged("yes"), lambda c: VLMVerifier(c).judge(picture("red"), [RED])),
    ]
    for reply, ask in asked:
        recorder = Recorder(reply)
        ask(recorder)
        yield Lesson(recorder.messages, reply)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address, and the model's name."""
    pytest.importorskip("fastapi", reason="transformers[serving] is not installed")
    pytest.importorskip("openai", reason="transformers[serving] is not installed")
    from transformers.cli.serve import Serve

    from .tiny_vlm import teach

    folder = tmp_path_factory.mktemp("tiny-qwen3-vl")
    assert teach(folder, list(lessons())) < 0.3
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = Serve(force_model=str(folder), port=port, host="127.0.0.1", device="cpu", non_blocking=True)
    end = time.monotonic() + 60
    while not serve.server.started and time.monotonic() < end:
        threading.Event().wait(0.05)
    yield f"http://127.0.0.1:{port}", str(folder)
    serve.kill_server()


@dataclass
class Painter:
    """Draws blue from text alone, and what the instruction says from an image."""

    name: str = "painter"
    default_size: tuple[int, int] = (64, 64)

    def nfe(self, images):
        return images

    def draw(self, context, size, seeds, on_step=None):
        color = "red" if context.images and "make it red" in context.text else "blue"
        return Drawing(tuple(picture(color) for _ in seeds), len(seeds))


@pytest.fixture
def client(server):
    return OpenAIClient(*server, settings=ClientSettings(max_tokens=8, retries=0))


@pytest.mark.slow
def test_a_real_vlm_judges_what_it_sees(client):
    verifier = VLMVerifier(client)
    seen = {c: verifier.judge(picture(c), [RED]).outcome("red") for c in ("red", "blue")}
    assert seen == {"red": "pass", "blue": "fail"}


@pytest.mark.slow
def test_a_real_vlm_plans_judges_and_corrects_until_the_goal_is_met(client):
    ports = loop.Ports(VLMController(client), Painter(), VLMVerifier(client))
    state = loop.run(GOAL, [], ports)
    run = state.trajectory
    assert run.goal.checks == (RED,)
    assert [(s.decision.action, run.score(s)) for s in run.steps] == [("generate", 0.0), ("edit", 1.0)]
    assert run.cost.usage.calls == 5
    assert run.cost.usage.tokens_in > 500
    assert state.best.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.slow
def test_a_real_vlm_that_was_never_taught_the_question_leaves_it_unjudged(client):
    other = [Check(f"c{i}", "Does the cat wear a hat?") for i in range(3)]
    verdict = VLMVerifier(client).judge(picture("green"), other)
    assert [r.outcome for r in verdict.results] == ["unjudged"] * 3
    assert verdict.results[0].raw
