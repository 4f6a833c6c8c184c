"""From a prompt to its outcome: attempts, the baseline, the blind comparison, the narrative, the record."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

from clvr import __version__, context
from clvr.bench.running import PerWorker, Shared
from clvr.errors import ContextLimitError, GrammarError, VLMConnectionError, VLMError, VLMSetupError
from clvr.images import png_bytes, to_rgb
from clvr.models import BUILTIN, Choice, load_client, load_generator, load_judges
from clvr.ports import Album, Controller, Generator, release
from clvr.shapes.controller import ShapesController
from clvr.trajectory import Cost, Decision, Goal, Trajectory, Usage

from .blind import ballot, unanimous
from .candidates import Prompt
from .config import CastConfig, EngineConfig
from .export import record
from .judges import open_judge
from .machine import Attempt, Cast, Machine
from .narrative import LogNarrator, Narrator, VLMNarrator, narrated, straighten
from .records import Provenance, Vote
from .states import Entry


@dataclass(frozen=True)
class Try:
    """One attempt: where it ended, why, its execution log, how many pictures it drew and what it cost."""

    seed: int
    gate: str
    reason: str
    log: tuple[Entry, ...]
    pictures: int
    cost: Cost


@dataclass(frozen=True)
class Outcome:
    """What became of a prompt: `gate` is where it was left out, '' where it was kept. `images` are paths within the
    dataset's folder: the trajectory's, or the last attempt's newest; `baseline` the one-shot picture's, '' for none."""

    id: str
    prompt: str
    source: str
    tag: str
    gate: str = ""
    reason: str = ""
    tries: tuple[Try, ...] = ()
    votes: tuple[Vote, ...] = ()
    images: tuple[str, ...] = ()
    baseline: str = ""
    spent: Cost = field(default_factory=Cost)


@dataclass(frozen=True)
class Made:
    """An outcome with what is to be written beside it: the shard's line where it was kept, and files by path."""

    outcome: Outcome
    line: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)


class Worker(Protocol):
    """What makes outcomes; may be called by several threads at once."""

    def make(self, prompt: Prompt, shown: bool) -> Made: ...


@dataclass(frozen=True)
class Crew:
    """One thread's players. `others` plan the later attempts, in turn with the cast's controller."""

    cast: Cast
    narrator: Narrator
    others: tuple[Controller, ...] = ()

    def of(self, attempt: int) -> Cast:
        planners = (self.cast.controller, *self.others)
        return dataclasses.replace(self.cast, controller=planners[attempt % len(planners)])


def open_crew(config: CastConfig, device: str, generator: Generator) -> Crew:
    """Raises what `load_judges` and `open_judge` raise."""
    choice = choice_of(config, device)
    client = None if choice.vlm == BUILTIN else load_client(choice)
    controller, verifier = load_judges(choice, client)
    judges = tuple(open_judge(name, choice) for name in config.judges)
    if client is None:
        first, *others = (ShapesController(where=where) for where in config.words)
        return Crew(Cast(first, generator, verifier, judges), LogNarrator(), tuple(others))
    narrator = VLMNarrator(client) if config.narrator == "vlm" else LogNarrator()
    return Crew(Cast(controller, generator, verifier, judges), narrator)


def open_generator(config: CastConfig, device: str) -> Generator:
    """Without the loaders' own progress bars between ours. Raises what `load_generator` raises."""
    from clvr.flux2.loading import silence

    silence()
    return load_generator(choice_of(config, device))


def choice_of(config: CastConfig, device: str) -> Choice:
    names = ("model", "vlm", "vlm_model", "steps", "guidance", "dtype", "offload", "agreement")
    given = {name: getattr(config, name) for name in names}
    return Choice(**given, device=device, judges=config.verifiers)


class EngineWorker:
    """`Worker` of a configuration, on a device. Models are loaded with the first prompt; `painter` is a generator that
    may be shared by threads."""

    def __init__(self, config: EngineConfig, device: str, painter: Generator | None = None) -> None:
        self._config = config
        generator = painter or Shared(lambda: open_generator(config.cast, device))
        self._crew = PerWorker(lambda: open_crew(config.cast, device, generator))

    def make(self, prompt: Prompt, shown: bool) -> Made:
        crew = self._crew()
        try:
            return Making(self._config, crew, prompt, shown).made()
        finally:
            release(crew.cast.controller, crew.cast.generator, crew.cast.verifier, *crew.cast.judges)


class Making:
    """One prompt's way through the gates. Raises what goes wrong with every prompt: a VLM that was named wrongly or
    does not answer, a model that does not load."""

    def __init__(self, config: EngineConfig, crew: Crew, prompt: Prompt, shown: bool) -> None:
        self._config = config
        self._crew, self._cast, self._narrator = crew, crew.cast, crew.narrator
        self._prompt = prompt
        self._shown = shown
        self._outcome = Outcome(prompt.id, prompt.text, prompt.source, prompt.tag)
        self._files: dict[str, bytes] = {}

    def made(self) -> Made:
        try:
            goal = self._goal()
        except (VLMSetupError, VLMConnectionError):
            raise
        except (GrammarError, VLMError) as error:
            return self._left_out("checklist", str(error))
        if not goal.checks:
            return self._left_out("checklist", "the controller made no checks")
        attempts = [self._attempt(goal, 0)]
        while attempts[-1].gate and len(attempts) < self._config.rules.attempts:
            attempts.append(self._attempt(goal, len(attempts)))
        last = attempts[-1]
        if last.gate:
            self._show(last)
            return self._left_out(last.gate, last.reason)
        return self._against_baseline(last)

    def _goal(self) -> Goal:
        began = perf_counter()
        goal = Goal(self._prompt.text)
        made = self._cast.controller.checklist(goal, Album())
        self._spend(Cost(seconds={"plan": perf_counter() - began}, usage=made.usage))
        return goal.with_checks(made.checks)

    def _attempt(self, goal: Goal, number: int) -> Attempt:
        seed = attempt_seed(self._config.seed, self._prompt, number)
        attempt = Machine(goal, self._crew.of(number), self._config.rules.machine, seed).run()
        trajectory = attempt.trajectory
        tried = Try(seed, attempt.gate, attempt.reason, attempt.log, len(trajectory.steps), trajectory.cost)
        self._outcome = dataclasses.replace(self._outcome, tries=(*self._outcome.tries, tried))
        self._spend(trajectory.cost)
        return attempt

    def _against_baseline(self, attempt: Attempt) -> Made:
        """The one-shot picture of the same prompt, and the judges' votes."""
        goal, seed = attempt.trajectory.goal, attempt.trajectory.seed
        decision = Decision("generate", "", goal.prompt)
        size = self._config.rules.size or self._cast.generator.default_size
        began = perf_counter()
        try:
            conditions = context.build(Trajectory(goal), decision, Album())
            drawing = self._cast.generator.draw(conditions, size, (attempt_seed(seed, self._prompt, -1),))
        except ContextLimitError as error:
            return self._left_out("context", str(error))
        self._spend(Cost(drawing.nfe, {"draw": perf_counter() - began}))
        straight, album = straighten(attempt.trajectory, attempt.album)
        mine, baseline = album[straight.steps[-1].label], to_rgb(drawing.images[0])
        began = perf_counter()
        votes = ballot(self._cast.judges, mine, baseline, goal, seed)
        asked = sum((vote.usage for vote in votes), Usage())
        self._spend(Cost(seconds={"verify": perf_counter() - began}, usage=asked))
        self._outcome = dataclasses.replace(self._outcome, votes=votes)
        self._keep_baseline(png_bytes(baseline), unanimous(votes))
        if not unanimous(votes):
            self._show(attempt)
            return self._left_out("baseline", "; ".join(f"{vote.judge}: {vote.word}" for vote in votes))
        return self._told(straight, album, attempt)

    def _told(self, trajectory: Trajectory, album: Album, attempt: Attempt) -> Made:
        began = perf_counter()
        try:
            texts = self._narrator.tell(trajectory, attempt.log)
            trajectory = narrated(trajectory, texts)
        except (VLMSetupError, VLMConnectionError):
            raise
        except VLMError as error:
            self._show(attempt)
            return self._left_out("narrative", str(error))
        self._spend(Cost(seconds={"narrate": perf_counter() - began}))
        data, files = record(self._prompt, trajectory, album, self._provenance(attempt))
        outcome = dataclasses.replace(self._outcome, images=tuple(data["images"]))
        return Made(outcome, json.dumps(data, ensure_ascii=False), {**self._files, **files})

    def _provenance(self, attempt: Attempt) -> Provenance:
        cast, config = self._cast, self._config
        told = {"model": config.cast.model, "rounds": config.rules.rounds, "attempts": config.rules.attempts}
        return Provenance(
            prompt=self._prompt.source,
            engine=f"comfyui-clvr {__version__}",
            controller=cast.controller.name,
            generator=cast.generator.name,
            verifier=cast.verifier.name,
            narrator=self._narrator.name,
            seed=attempt.trajectory.seed,
            attempt=len(self._outcome.tries) - 1,
            votes=self._outcome.votes,
            settings={name: str(value) for name, value in told.items()},
        )

    def _left_out(self, gate: str, reason: str) -> Made:
        return Made(dataclasses.replace(self._outcome, gate=gate, reason=reason), files=self._files)

    def _show(self, attempt: Attempt) -> None:
        """Keep a given-up attempt's newest picture, for the sheet."""
        if not (self._shown and attempt.trajectory.steps):
            return
        path = f"discarded/{self._prompt.id[:2]}/{self._prompt.id}.png"
        self._files[path] = png_bytes(attempt.album[attempt.trajectory.steps[-1].label])
        self._outcome = dataclasses.replace(self._outcome, images=(path,))

    def _keep_baseline(self, png: bytes, kept: bool) -> None:
        if kept or self._shown:
            path = f"baselines/{self._prompt.id[:2]}/{self._prompt.id}.png"
            self._files[path] = png
            self._outcome = dataclasses.replace(self._outcome, baseline=path)

    def _spend(self, cost: Cost) -> None:
        self._outcome = dataclasses.replace(self._outcome, spent=self._outcome.spent + cost)


def attempt_seed(seed: int, prompt: Prompt, number: int) -> int:
    """32 bits, different for every prompt and attempt."""
    digest = hashlib.sha256(f"{seed}/{prompt.id}/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
