"""How fast this machine is, and from that how long each stage takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from clvr.context import Context
from clvr.flux2.generator import Flux2Generator

from ..klein import CHANNELS, Klein, Latents, TextContext
from .config import LabConfig
from .rows import Row, held_back

PICTURES, TRIES, TRIED, KEPT = 3.6, 1.7, 3.2, 0.76
"""In the built-in world, on average: the pictures of a closed loop and of a kept trajectory; the data engine's
attempts at a prompt, the pictures of an attempt, and the share of prompts that it keeps."""
_ROUND = "a red circle, a blue square and two green crosses\nA red circle is missing. Add a red circle. <IMG_GEN_0>\n"
_SECONDS = 1.0
"""Of each measurement."""


@dataclass(frozen=True)
class Speeds:
    """Seconds. forward, learn: a sample through the transformer in a batch of the given size, without and with its
    gradient, at a context of a few rounds and one reference. single: an evaluation of the generator's, alone.
    planning: of a round beside the drawing. All are of the machine without other work, which slowed it about `slowed`
    times while it was measured; on a busy machine they are those of one processor."""

    forward: float
    learn: float
    single: float
    slowed: float = 1.0
    planning: float = 0.02

    def distill(self, config: LabConfig) -> float:
        told, teacher = config.distill, config.distill.teacher
        drawn = (teacher.trajectories + told.held) * teacher.steps * _rows(teacher.guidance)
        return drawn * self.forward + told.epochs * teacher.trajectories * self.learn

    def data(self, config: LabConfig) -> float:
        cast, rules = config.data.cast, config.data.rules
        prompts = min(config.data.prompts.world, config.data.prompts.limit or config.data.prompts.world)
        steps, guidance = cast.steps or config.evaluation.steps, cast.guidance or config.evaluation.guidance
        pictures = 1 + min(TRIED, rules.rounds) * min(TRIES, rules.attempts)
        evaluation = self.forward if cast.batch else self.single
        return prompts * pictures * (steps * _rows(guidance) * evaluation + self.planning)

    def sft(self, config: LabConfig) -> float:
        kept = KEPT * config.data.prompts.world * min(PICTURES, config.data.rules.rounds)
        seen = config.sft.epochs * kept if config.sft.steps is None else config.sft.steps * config.sft.batch
        return seen * self.learn

    def rl(self, config: LabConfig) -> float:
        told, drawing = config.rl, config.rl.drawing
        drawn = drawing.steps * _rows(drawing.guidance) * self.forward
        # the new policy with its gradient, the old one and the reference without
        learned = told.nft.times * _rows(drawing.guidance if told.nft.guided else 1.0) * (self.learn + 2 * self.forward)
        return told.epochs * told.groups * told.group * (drawn + learned + self.planning)

    def row(self, config: LabConfig, row: Row) -> float:
        told = config.evaluation
        pictures = min(PICTURES, told.rounds) if row.looped else 1
        nfe = config.distill.steps if row.few else told.steps * _rows(told.guidance)
        return len(held_back(told)) * pictures * (nfe * self.forward + self.planning)

    def clock(self, config: LabConfig, few: bool) -> float:
        told = config.evaluation
        nfe = config.distill.steps if few else told.steps * _rows(told.guidance)
        return told.timed * min(PICTURES, told.rounds) * (nfe * self.single + self.planning)


UNKNOWN = Speeds(0.0, 0.0, 0.0)


def _rows(guidance: float) -> int:
    return 2 if guidance > 1 else 1


def measure(model: Path, device: torch.device, batch: int) -> Speeds:
    """About ten seconds. `batch`: of a forward while learning."""
    klein = Klein.open(model, device)
    context = klein.encoders.encode_text([_ROUND])
    side = klein.sampling.width // 16

    def step(rows: int) -> torch.Tensor:
        tokens = torch.zeros(rows, side * side, CHANNELS, device=device)
        drawn = Latents(tokens, side, side)
        told = TextContext(context.states.expand(rows, -1, -1), context.mask.expand(rows, -1))
        return klein.velocity(drawn, torch.full((rows,), 0.5, device=device), told, (drawn,)).sum()

    def forward() -> None:
        with torch.no_grad():
            step(64)

    def learn() -> None:
        step(batch).backward()
        klein.transformer.zero_grad(set_to_none=True)

    generator = Flux2Generator.load(model, device=str(device), steps=4, guidance=1.0)

    def single() -> None:
        generator.draw(Context(_ROUND), generator.default_size, (0,))

    clock, own = zip(*(_timed(work) for work in (forward, learn, single)), strict=True)
    return Speeds(own[0] / 64, own[1] / batch, own[2] / generator.nfe(1), sum(clock) / sum(own))


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of a call: on the clock, and of one processor where that is less, for other work holds up the clock."""
    passed = _seconds(work, time.perf_counter)
    if torch.cuda.is_available():
        return passed, passed
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return passed, min(passed, _seconds(work, time.process_time))
    finally:
        torch.set_num_threads(threads)


def _seconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    """The first call is left out."""
    work()
    calls, began, start = 0, time.perf_counter(), clock()
    while calls == 0 or time.perf_counter() - began < _SECONDS:
        work()
        calls += 1
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (clock() - start) / calls
