"""What a tiny VLM learns by heart: a run that draws blue, is told so, and draws red."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from PIL import Image

from clvr.ports import Album, Drawing
from clvr.trajectory import Candidate, Check, Decision, Goal, Step, Trajectory, Verdict
from clvr.vlm import Reply, VLMController, VLMVerifier, replies

from .tiny_vlm import Lesson

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
