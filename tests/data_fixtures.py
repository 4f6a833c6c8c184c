"""The data engine without weights: a painter that reads instructions and renders what they say."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
from dataclasses import dataclass
from pathlib import Path

from clvr.errors import GrammarError
from clvr.judges import ScoreComparer
from clvr.ports import Drawing
from clvr.shapes.controller import ShapesController
from clvr.shapes.edits import apply
from clvr.shapes.found import to_scene
from clvr.shapes.language import parse, parse_edit
from clvr.shapes.measure import measure
from clvr.shapes.render import render
from clvr.shapes.scene import Scene, realise
from clvr.shapes.verifier import MeasuringVerifier
from training.data.config import CastConfig, DedupConfig, EngineConfig, PromptConfig, RuleConfig
from training.data.judges import ObjectComparer
from training.data.machine import Cast
from training.data.narrative import LogNarrator
from training.data.work import Crew, Making

CONFIG = EngineConfig(
    prompts=PromptConfig(world=8),
    dedup=DedupConfig(against=()),
    cast=CastConfig(),
    rules=RuleConfig(attempts=2),
    shard=3,
)


@dataclass
class Painter:
    """Carries out every instruction; a whole prompt at once it draws with an object missing, unless it is `gifted`.
    `slips` are the drawings, counted from 0, in which it forgets what it was told."""

    gifted: bool = False
    slips: tuple[int, ...] = ()
    name: str = "painter"
    default_size: tuple[int, int] = (64, 64)
    drawn: int = 0

    def nfe(self, images):
        return images

    def draw(self, context, size, seeds, on_step=None):
        scene = Scene(()) if self.drawn in self.slips else self._scene(context)
        self.drawn += 1
        return Drawing(tuple(render(scene, seed % 2**31) for seed in seeds), len(seeds))

    def _scene(self, context):
        instruction = context.turns[-1].text.rsplit(". ", 1)[-1]
        if context.images:
            before = to_scene(measure(context.images[-1][1]))
            return apply(before, parse_edit(instruction))
        if instruction.startswith("draw "):
            return realise(parse(instruction.removeprefix("draw ")), random.Random(0))
        scene = realise(parse(context.goal), random.Random(0))
        return scene if self.gifted else Scene(scene.items[1:])


def crew(generator=None, controller=None, verifier=None, judges=None):
    judges = judges or (ScoreComparer(MeasuringVerifier()), ObjectComparer())
    controller, verifier = controller or ShapesController(), verifier or MeasuringVerifier()
    return Crew(Cast(controller, generator or Painter(), verifier, judges), LogNarrator())


class PaintingWorker:
    def __init__(self, config, device):
        self.config = config

    def make(self, prompt, shown):
        return Making(self.config, crew(), prompt, shown).made()


class DyingWorker(PaintingWorker):
    """Kills its own process in the middle of a prompt, the first time that it meets a certain one. `device` is the
    folder for its marks."""

    def __init__(self, config, device):
        super().__init__(config, device)
        self.marks = Path(device)

    def make(self, prompt, shown):
        (self.marks / f"{os.getpid()}.pid").touch()
        killed = self.marks / "killed"
        if prompt.source.endswith("complex") and not killed.exists():
            killed.write_text(prompt.id)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().make(prompt, shown)


class DeadlyWorker(PaintingWorker):
    def make(self, prompt, shown):
        os.kill(os.getpid(), signal.SIGKILL)


class FailingWorker(PaintingWorker):
    def make(self, prompt, shown):
        raise GrammarError("The second prompt is none.", "Write another.")


def on(config, *devices, **changes):
    return dataclasses.replace(config, run=dataclasses.replace(config.run, devices=devices, **changes))
