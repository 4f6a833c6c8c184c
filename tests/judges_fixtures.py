"""Judges that say what a test wants, for the tests of those that combine them."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFilter, ImageFont

from clvr.trajectory import Check, CheckVerdict, Evidence, Usage, Verdict

DOG = Check("dog", "Is there a dog?", "object")
TWO = Check("two", "Are there two dogs?", "count", "dog", 2.0)
SIGN = Check("sign", 'Does the sign say "OPEN"?', "text")
CHECKS = (DOG, TWO, SIGN)
OUTCOMES = {"y": "pass", "n": "fail", "?": "unjudged"}


def picture(color="blue", size=(16, 16)):
    return Image.new("RGB", size, color)


@dataclass
class Says:
    """Answers by check id: y, n, ? or a probability of yes; an exception is raised. What it does not list it does
    not mention."""

    name: str
    answers: object = field(default_factory=dict)
    note: bool = True
    usage: Usage = field(default_factory=lambda: Usage(1, 10, 2))
    asked: list = field(default_factory=list)
    threads: set = field(default_factory=set)

    def judge(self, image, checks, references=()):
        self.threads.add(threading.get_ident())
        self.asked.append([c.id for c in checks])
        if isinstance(self.answers, Exception):
            raise self.answers
        return Verdict(tuple(self._result(c) for c in checks if c.id in self.answers), self.usage)

    def _result(self, check):
        answer = self.answers[check.id]
        sure = answer if isinstance(answer, float) else None
        outcome = OUTCOMES[answer] if sure is None else "pass" if sure >= 0.5 else "fail"
        evidence = (Evidence(self.name, f"{self.name} looked", ((0.1, 0.1, 0.5, 0.5),)),) if self.note else ()
        return CheckVerdict(check.id, outcome, sure, evidence, f"{self.name} says {answer}")


def everything(answer):
    return {check.id: answer for check in CHECKS}


def sign(*lines, size=(512, 320), height=56, blur=0.0):
    """Lines of black text on white."""
    image = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(height)
    for row, line in enumerate(lines):
        pen.text((24, 40 + row * 1.6 * height), line, font=font, fill="black")
    return image.filter(ImageFilter.GaussianBlur(blur)) if blur else image
