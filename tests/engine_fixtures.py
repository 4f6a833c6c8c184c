"""A world without weights for the engine's tests: the picture is a grey, the goal is the brightest grey.

Run as a script it is the child process of the journal's kill test.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

from PIL import Image

from clvr.errors import VLMError
from clvr.ports import Checklist, Drawing, DrawProgress
from clvr.trajectory import Check, CheckVerdict, Decision, Usage, Verdict

SIZE = (16, 16)
CHECKS = tuple(Check(f"c{i}", f"Is the picture brighter than {i * 50}?") for i in range(1, 5))
STEP_CHECK = Check("e1", "Is the picture not black?")


@dataclass
class FakeGenerator:
    """Brightness comes from the seed, so that two runs agree only when their seeds do."""

    greys: list[int] = field(default_factory=list)
    pause: float = 0.0
    steps: int = 2
    name: str = "fake generator"
    default_size: tuple[int, int] = SIZE
    contexts: list = field(default_factory=list)
    sizes: list = field(default_factory=list)

    def nfe(self, images):
        return images * self.steps

    def draw(self, context, size, seeds, on_step=None):
        self.contexts.append(context)
        self.sizes.append(size)
        for step in range(self.steps):
            time.sleep(self.pause)
            if on_step:
                on_step(DrawProgress(step + 1, self.steps))
        images = tuple(Image.new("RGB", size, (self._grey(seed),) * 3) for seed in seeds)
        return Drawing(images, self.nfe(len(seeds)), {"draw": 0.0})

    def _grey(self, seed):
        return self.greys.pop(0) if self.greys else seed % 256


@dataclass
class FakeController:
    """Follows a script of decisions, the last one for ever; an error in the script is raised."""

    script: list = field(default_factory=list)
    checks: tuple[Check, ...] = CHECKS
    name: str = "fake controller"
    usage: Usage = field(default_factory=Usage)
    asked: int = 0

    def checklist(self, goal, images):
        return Checklist(self.checks, self.usage)

    def decide(self, trajectory, images, brief=None):
        script = self.script or [Decision("generate", "Something grey.", "a grey", expects=(STEP_CHECK,))]
        decision = script[min(self.asked, len(script) - 1)]
        self.asked += 1
        if isinstance(decision, Exception):
            raise decision
        return decision


@dataclass
class FakeVerifier:
    """Judges brightness; `broken` makes each call fail, `blind` names checks that it cannot judge."""

    name: str = "fake verifier"
    usage: Usage = field(default_factory=Usage)
    broken: bool = False
    blind: tuple[str, ...] = ()
    judged: list = field(default_factory=list)

    def judge(self, image, checks, references=()):
        self.judged.append((image, tuple(c.id for c in checks), len(references)))
        if self.broken:
            raise VLMError("The judge is down.", "Start it.")
        return Verdict(tuple(CheckVerdict(c.id, self._outcome(image, c)) for c in checks), self.usage)

    def _outcome(self, image, check):
        if check.id in self.blind:
            return "unjudged"
        level = int(check.id[1:]) * 50 if check.id.startswith("c") else 1
        return "pass" if image.getpixel((0, 0))[0] >= level else "fail"


def draw(text="a grey", action="generate", references=(), expects=(STEP_CHECK,)):
    return Decision(action, f"I want {text}.", text, tuple(references), expects)


def stop(text="It is done."):
    return Decision("stop", text)


def kill_test_parts():
    """Ports, settings, goal and a reference for the kill test: eight steps with two candidates each."""
    from clvr.budget import Budget
    from clvr.loop import Ports, Settings
    from clvr.trajectory import Goal

    script = [draw("a first grey"), *(draw(f"grey {i}", "edit") for i in range(1, 9))]

    class Patient(FakeController):
        def decide(self, trajectory, images, brief=None):
            return script[len(trajectory.steps)]

    ports = Ports(Patient(), FakeGenerator(pause=0.005), FakeVerifier(blind=("c4",)))
    settings = Settings(Budget(steps=8, candidates=2, patience=8), size=SIZE)
    return ports, settings, Goal("the brightest grey"), Image.new("RGB", SIZE, (9, 9, 9))


def main(folder):
    """Start the run in `folder`, or continue it. A line on stdout for each moment worth a kill."""
    import pathlib

    from clvr import journal, loop

    ports, settings, goal, reference = kill_test_parts()
    print("ready", flush=True)
    if (pathlib.Path(folder) / journal.JOURNAL).exists():
        log, record = journal.Journal.reopen(folder)
        state = loop.State(record.trajectory, record.album(), settings)
    else:
        log = journal.Journal.create(folder)
        state = loop.start(goal, [reference], ports.controller, settings, seed=7)
        log.begin(journal.Header.of(state, SIZE), [reference])

    def listen(event):
        print(event.__class__.__name__, flush=True)
        log.listen(event)
        print("written", flush=True)

    with log:
        loop.proceed(state, ports, listen)


if __name__ == "__main__":
    main(sys.argv[1])
