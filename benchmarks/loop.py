"""What the loop costs over the drawing itself, what a later round costs, and how soon the pack and `clvr` are up.

    python -m benchmarks.loop                    with the built-in model
    python -m benchmarks.loop --model FOLDER --rounds 8 --repeat 3

A script decides, so that every round edits the picture before it and the text grows by one turn; everything is
real besides: the generator, the measuring verifier, the journal. All figures are of one run on one machine.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from PIL.Image import Image

from clvr import builtin, loop
from clvr.budget import Budget
from clvr.context import Context
from clvr.flux2.generator import Flux2Generator
from clvr.journal import Header, Journal
from clvr.ports import NO_BRIEF, Album, Checklist, Drawing, DrawProgress, Size
from clvr.shapes.controller import ShapesController
from clvr.shapes.verifier import MeasuringVerifier
from clvr.trajectory import Brief, Check, CheckVerdict, Decision, Goal, Trajectory, Verdict, generated
from scripts.comfy import ROOT, ComfyError, find

PROMPT = "a red circle to the left of a blue square"
HEAVY = ("diffusers", "transformers", "peft", "accelerate", "pydantic", "httpx")

IMPORT_PACK = """
import asyncio, importlib.util, sys, time
root, comfy = sys.argv[1:3]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, comfy)
import comfy.options
comfy.options.enable_args_parsing()
import nodes, comfy_api.latest
before, start = set(sys.modules), time.perf_counter()
spec = importlib.util.spec_from_file_location("pack", root + "/__init__.py", submodule_search_locations=[root])
pack = importlib.util.module_from_spec(spec)
sys.modules["pack"] = pack
spec.loader.exec_module(pack)
asyncio.run(pack.comfy_entrypoint().get_node_list())
seconds = time.perf_counter() - start
new = {name.split(".")[0] for name in set(sys.modules) - before}
print("pack", seconds, *sorted(new & set(HEAVY)))
""".replace("HEAVY", repr(HEAVY))


@dataclass
class ScriptedController:
    """Edits the last picture, round after round."""

    name: str = "script"

    def checklist(self, goal: Goal, images: Album) -> Checklist:
        return ShapesController().checklist(goal, images)

    def decide(self, trajectory: Trajectory, images: Album, brief: Brief = NO_BRIEF) -> Decision:
        step = len(trajectory.steps)
        if not step:
            return Decision("generate", "Start with one object.", "a red circle")
        return Decision("edit", "The square is not there yet.", "add a blue square", (generated(step - 1),))


@dataclass
class UndecidedVerifier:
    """Measures as the built-in verifier does and then says nothing, so that no run ends early."""

    measure: MeasuringVerifier = field(default_factory=MeasuringVerifier)
    seconds: float = 0.0
    name: str = "undecided"

    def judge(self, image: Image, checks: Sequence[Check], references: Sequence[Image] = ()) -> Verdict:
        began = perf_counter()
        self.measure.judge(image, checks, references)
        self.seconds += perf_counter() - began
        return Verdict(tuple(CheckVerdict(check.id, "unjudged") for check in checks))


@dataclass
class TimedGenerator:
    """A generator that notes each call and how long it took."""

    inner: Flux2Generator
    calls: list[tuple[Context, Size, tuple[int, ...]]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    phases: list[dict[str, float]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def default_size(self) -> Size:
        return self.inner.default_size

    def nfe(self, images: int) -> int:
        return self.inner.nfe(images)

    def draw(
        self,
        context: Context,
        size: Size,
        seeds: Sequence[int],
        on_step: Callable[[DrawProgress], None] | None = None,
    ) -> Drawing:
        began = perf_counter()
        drawing = self.inner.draw(context, size, seeds, on_step)
        self.seconds.append(perf_counter() - began)
        self.calls.append((context, size, tuple(seeds)))
        self.phases.append(dict(drawing.seconds))
        return drawing


@dataclass(frozen=True)
class Run:
    """One run in seconds: the whole, the verifier; by round the drawings, the same calls made without a loop,
    the encoding in them, and the whole."""

    wall: float
    verifying: float
    drawing: list[float]
    bare: list[float]
    encoding: list[float]
    rounds: list[float]


def measure(generator: Flux2Generator, rounds: int, seed: int) -> Run:
    generator.release()
    timed = TimedGenerator(generator)
    verifier = UndecidedVerifier()
    ports = loop.Ports(ScriptedController(), timed, verifier)
    settings = loop.Settings(Budget(steps=rounds, patience=rounds))
    ends = []
    with tempfile.TemporaryDirectory() as folder, Journal.create(Path(folder) / "run") as journal:
        began = perf_counter()
        state = loop.start(Goal(PROMPT), [], ports.controller, settings, seed)
        journal.begin(Header.of(state, generator.default_size, {}))
        while not loop.stopped(state):
            state = loop.plan(state, ports.controller, journal.listen)
            state = loop.draw(state, timed, journal.listen)
            state = loop.verify(state, verifier, journal.listen)
            ends.append(perf_counter())
        loop.finish(state, listen=journal.listen)
        wall = perf_counter() - began
    generator.release()
    bare = []
    for call in timed.calls:
        start = perf_counter()
        generator.draw(*call)
        bare.append(perf_counter() - start)
    spans = [end - start for start, end in zip([began, *ends], ends, strict=False)]
    return Run(wall, verifier.seconds, timed.seconds, bare, [p["encode"] for p in timed.phases], spans)


def report_loop(runs: list[Run]) -> None:
    def median(values: Sequence[float]) -> float:
        return statistics.median(values)

    own = median([(run.wall - run.verifying) / sum(run.drawing) - 1 for run in runs])
    verifying = median([run.verifying / sum(run.drawing) for run in runs])
    whole = median([run.wall / sum(run.bare) - 1 for run in runs])
    print(f"loop and journal over the drawing in the same run      {own:+.2%}   (aim: at most 3 %)")
    print(f"measuring verifier over the drawing in the same run    {verifying:+.2%}")
    print(f"the whole run over the same drawing calls made bare    {whole:+.2%}")
    print("\nround   seconds   / round 1   of it drawing   of it encoding")
    first = median([run.rounds[0] for run in runs])
    for i in range(len(runs[0].rounds)):
        spent, drawn, encoded = (
            median([getattr(run, name)[i] for run in runs]) for name in ("rounds", "drawing", "encoding")
        )
        print(f"{i + 1:5}   {spent:7.3f}   {spent / first:9.2f}   {drawn / spent:13.1%}   {encoded / spent:14.1%}")


def report_start(repeat: int) -> None:
    print(f"\nclvr --help            {fastest([sys.executable, '-m', 'clvr', '--help'], repeat):.3f} s   (aim: 0.3 s)")
    print(f"python alone           {fastest([sys.executable, '-c', ''], repeat):.3f} s")
    try:
        command = [sys.executable, "-c", IMPORT_PACK, str(ROOT), str(find())]
    except ComfyError as error:
        print(f"import of the pack     not measured: {error}")
        return
    told = [
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("pack ")[-1].split()
        for _ in range(repeat)
    ]
    heavy = ", ".join(told[0][1:]) or "none"
    print(f"import of the pack     {min(float(t[0]) for t in told):.3f} s   (aim: 0.3 s)   heavy modules: {heavy}")


def fastest(command: list[str], repeat: int) -> float:
    """Seconds of wall time of the fastest of some runs."""
    seconds = []
    for _ in range(repeat):
        began = perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        seconds.append(perf_counter() - began)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(builtin.PATH), help="a FLUX.2 [klein] folder")
    parser.add_argument("--steps", type=int, help="denoising steps; the model's own when not given")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    generator = Flux2Generator.load(options.model, steps=options.steps)
    print(generator.name)
    measure(generator, 2, 0)
    report_loop([measure(generator, options.rounds, seed) for seed in range(options.repeat)])
    report_start(options.repeat)


if __name__ == "__main__":
    main()
