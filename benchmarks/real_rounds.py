"""A run of the closed loop whose answers are written beforehand: everything is computed, only what the VLM says is
given, so that random weights go through the same rounds as trained ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass

import numpy as np
from PIL import Image

from benchmarks.real_models import Scripted
from clvr import loop
from clvr.budget import Budget
from clvr.context import Context
from clvr.flux2.generator import Flux2Generator
from clvr.ports import NO_BRIEF, Album, Checklist, Drawing, DrawProgress, Size
from clvr.trajectory import Brief, Check, CheckVerdict, Decision, Evidence, Goal, Trajectory, Verdict, generated
from clvr.vlm import VLMController, VLMVerifier, replies
from clvr.vlm.local import LocalClient

PROMPT = (
    "A quiet harbour at dawn seen from the quay: three fishing boats, the middle one blue and the other two red, an "
    "old lighthouse on the rocks to the right with its lamp lit, a grey cat asleep on a coil of rope in the "
    "foreground, and a wooden sign on the left that reads 'Low Tide 6:40', in the manner of a watercolour."
)
CHECKS = (
    Check("boats", "Are there exactly three fishing boats in the harbour?", "count"),
    Check("boat_blue", "Is the boat in the middle blue?", "color"),
    Check("boats_red", "Are the two boats beside the middle one red?", "color"),
    Check("lighthouse", "Is there a lighthouse on the rocks to the right?", "position"),
    Check("lamp", "Is the lamp of the lighthouse lit?", "other"),
    Check("cat", "Is a grey cat asleep on a coil of rope in the foreground?", "object"),
    Check("sign", "Does the wooden sign on the left read 'Low Tide 6:40'?", "text"),
    Check("style", "Is the image in the manner of a watercolour?", "style"),
)
MISSING = ("the colour of the middle boat", "the lamp of the lighthouse", "the grey cat on the rope", "the wooden sign")
REASON = "The canvas shows {missing} clearly, in the place that the question names, near the edge of the quay."
CHECKS_A_STEP = 3


def decision(step: int, references: int) -> Decision:
    """What the VLM decides before step `step`; an edit draws from the newest images, at most `references`."""
    missing = MISSING[step % len(MISSING)]
    expects = tuple(
        Check(f"step_{step}_{i}", f"Does the image show {missing} as the goal of round {step + 1} wants it?", "object")
        for i in range(CHECKS_A_STEP)
    )
    if not step:
        start = "There is no canvas yet. The layout comes first: the quay, the harbour, the boats and the rocks."
        return Decision("generate", start, PROMPT, (), expects)
    reasoning = (
        f"The canvas has the harbour and the boats where they belong. In round {step + 1} what is wrong is {missing}: "
        "it is not what the goal asks for. I change this alone and leave the light, the water and the rest as they are."
    )
    instruction = (
        f"Repaint {missing} so that it is exactly as the goal says, in the same light and the same watercolour manner. "
        "Keep the quay, the harbour, the other boats, the rocks and the sky as they are."
    )
    used = tuple(generated(i) for i in range(max(0, step - references), step))
    return Decision("edit", reasoning, instruction, used, expects)


def judgement(checks: Sequence[Check], step: int) -> list[CheckVerdict]:
    """A step does what it should, and one check more of the goal holds after each; never all of them."""
    goal = {check.id for check in CHECKS}
    holding = {check.id for check in CHECKS[: min(len(CHECKS) - 1, 2 + step)]}
    note = Evidence("", REASON.format(missing=MISSING[step % len(MISSING)]))
    return [
        CheckVerdict(c.id, "fail", 0.04, (note,))
        if c.id in goal - holding
        else CheckVerdict(c.id, "pass", 0.96, (note,))
        for c in checks
    ]


def texts(rounds: int) -> list[str]:
    """Everything that is said, for the tokenizer to learn."""
    said = [PROMPT, replies.dump_checklist(CHECKS), replies.dump_judgement(judgement(CHECKS, 0))]
    return [*said, *(replies.dump_decision(decision(step, 1)) for step in range(rounds))]


@dataclass
class Script:
    """What the VLM says next, and how many images an edit draws from."""

    qwen: Scripted
    references: int
    step: int = 0


class ScriptedController(VLMController):
    def __init__(self, client: LocalClient, script: Script) -> None:
        super().__init__(client)
        self._script = script

    def checklist(self, goal: Goal, images: Album) -> Checklist:
        self._script.qwen.say(replies.dump_checklist(CHECKS))
        return super().checklist(goal, images)

    def decide(self, trajectory: Trajectory, images: Album, brief: Brief = NO_BRIEF) -> Decision:
        self._script.step = len(trajectory.steps)
        self._script.qwen.say(replies.dump_decision(decision(self._script.step, self._script.references)))
        return super().decide(trajectory, images, brief)


class ScriptedVerifier(VLMVerifier):
    def __init__(self, client: LocalClient, script: Script) -> None:
        super().__init__(client)
        self._script = script

    def judge(self, image: Image.Image, checks: Sequence[Check], references: Sequence[Image.Image] = ()) -> Verdict:
        """Raises RuntimeError where the VLM did not say what it was told: nothing was measured then."""
        self._script.qwen.say(replies.dump_judgement(judgement(checks, self._script.step)))
        verdict = super().judge(image, checks, references)
        if any(r.outcome == "unjudged" for r in verdict.results):
            raise RuntimeError(f"the scripted reply was not understood: {verdict.results[0]}")
        return verdict


@dataclass
class NoiseGenerator:
    """Draws nothing, for what the VLM alone costs."""

    default_size: Size
    name: str = "noise"

    def nfe(self, images: int) -> int:
        return images

    def draw(
        self,
        context: Context,
        size: Size,
        seeds: Sequence[int],
        on_step: Callable[[DrawProgress], None] | None = None,
    ) -> Drawing:
        return Drawing(tuple(noise(size, seed) for seed in seeds), len(seeds))


def noise(size: Size, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


@dataclass
class Round:
    """Seconds of a round by phase; tokens and seconds of the VLM while it plans and while it verifies."""

    phases: dict[str, float]
    planning: dict[str, float]
    verifying: dict[str, float]

    @property
    def seconds(self) -> float:
        return sum(self.phases.values())


def simulate(
    script: Script, client: LocalClient, generator: Flux2Generator | NoiseGenerator, size: Size, rounds: int
) -> tuple[float, list[Round]]:
    """Seconds of writing the checklist, and the rounds. Nothing is kept from an earlier run."""
    client.release()
    if isinstance(generator, Flux2Generator):
        generator.release()
    controller, verifier, clock = (
        ScriptedController(client, script),
        ScriptedVerifier(client, script),
        script.qwen.place.clock,
    )
    settings = loop.Settings(Budget(steps=rounds, patience=rounds + 1), size=size)
    began = clock()
    state = loop.start(Goal(PROMPT), [], controller, settings)
    prepared = clock() - began
    found = []
    while not loop.stopped(state):
        times, counts = [clock()], [_counts(script.qwen)]
        moves = (
            lambda now: loop.plan(now, controller),
            lambda now: loop.draw(now, generator),
            lambda now: loop.verify(now, verifier),
        )
        for move in moves:
            state = move(state)
            times.append(clock())
            counts.append(_counts(script.qwen))
        spent = (after - before for before, after in itertools.pairwise(times))
        phases: dict[str, float] = dict(zip(("plan", "draw", "verify"), spent, strict=True))
        found.append(Round(phases, _less(counts[1], counts[0]), _less(counts[3], counts[2])))
    return prepared, found


def _counts(qwen: Scripted) -> dict[str, float]:
    prompt, prefilled, written, images = astuple(qwen.work)
    return {"prompt": prompt, "prefilled": prefilled, "written": written, "images": images, **qwen.seconds}


def _less(after: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    return {name: value - before[name] for name, value in after.items()}
