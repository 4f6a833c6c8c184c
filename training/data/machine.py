"""One trajectory by the state machine, with verification on two tracks (section 3.1).

Passive: every drawing is judged on its own checklist, and a failure discards the whole trajectory, so that no
generative error reaches the data. Active: when the controller holds the canvas for done, it is judged against the goal;
gaps go back to the controller, which may edit on, go back to an earlier picture, or start from a new base image.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TypeVar

from clvr import context
from clvr.errors import ContextLimitError, FormatError, GrammarError, VLMConnectionError, VLMError, VLMSetupError
from clvr.images import to_rgb
from clvr.loop import candidate_seed
from clvr.ports import Album, Comparer, Controller, Generator, Size, Verifier
from clvr.trajectory import Candidate, Check, Cost, Decision, Goal, Step, Trajectory, Usage, Verdict

from .blind import prefer
from .states import Entry, State, Tool, tool_of

T = TypeVar("T")


@dataclass(frozen=True)
class Retries:
    """How often each state may fail before its trajectory is given up: a call that failed or broke the schema, a
    base image that the controller rejected, a validation that found gaps."""

    generate_base_image: int = 1
    inspect: int = 1
    edit: int = 2
    validate: int = 3
    finalize: int = 0


@dataclass(frozen=True)
class Rules:
    """`rounds`: pictures of one trajectory, 8 as at inference (3.3). `size` None is the generator's own. `guard`:
    the judges compare each edit with the canvas before, and one that all find worse ends the trajectory (A.3)."""

    rounds: int = 8
    retries: Retries = Retries()
    size: Size | None = None
    guard: bool = True


@dataclass(frozen=True)
class Cast:
    """Who plans, draws and verifies; the judges compare two pictures, each on its own."""

    controller: Controller
    generator: Generator
    verifier: Verifier
    judges: tuple[Comparer, ...] = ()


@dataclass(frozen=True)
class Attempt:
    """One trajectory, finalised (`gate` is '') or given up at a gate, for a reason."""

    trajectory: Trajectory
    album: Album
    log: tuple[Entry, ...]
    gate: str = ""
    reason: str = ""


class _GivenUpError(Exception):
    def __init__(self, gate: str, reason: str) -> None:
        super().__init__(reason)
        self.gate = gate
        self.reason = reason


@dataclass
class Machine:
    """A run for a goal that has its checklist. A controller or verifier that fails is asked again within its state's
    budget; one that was named wrongly or does not answer at all raises, for it would fail every prompt."""

    goal: Goal
    cast: Cast
    rules: Rules
    seed: int
    log: list[Entry] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.trajectory = Trajectory(self.goal, seed=self.seed)
        self.album = Album()
        self.state: State = "generate_base_image"
        self.decision = Decision("stop")
        self.failures: dict[State, int] = {}
        self.allowed = dataclasses.asdict(self.rules.retries)
        self.orders = random.Random(f"{self.seed}/guard")
        self.cost = Cost()

    def run(self) -> Attempt:
        """Raises VLMSetupError, VLMConnectionError, and what the generator raises."""
        states: Mapping[State, Callable[[], State | None]] = {
            "generate_base_image": self._generate_base_image,
            "inspect": self._inspect,
            "edit": self._edit,
            "validate": self._validate,
            "finalize": self._finalize,
        }
        following: State | None = self.state
        try:
            self.decision = self._decide()
            while following is not None:
                self.state = following
                following = states[self.state]()
        except _GivenUpError as end:
            self._note("END_TRAJECTORY", note=end.reason)
            return Attempt(self._closed(), self.album, tuple(self.log), end.gate, end.reason)
        return Attempt(self._closed(), self.album, tuple(self.log))

    def _generate_base_image(self) -> State:
        self._drop(range(len(self.trajectory.steps)), "a new base image was asked for")
        self._draw("INITIAL_GENERATION")
        return "inspect"

    def _inspect(self) -> State:
        self.decision = self._decide()
        if self.decision.action == "generate":
            self._fail("generate_base_image", "the controller rejected the base image")
            return "generate_base_image"
        return self._accept()

    def _edit(self) -> State:
        self._return_to_base()
        before = self._canvas
        self._draw("IMAGE_EDIT")
        self._guard(before, self._canvas)
        self.decision = self._decide()
        return self._accept() if self.decision.action == "stop" else "edit"

    def _accept(self) -> State:
        """What the state made holds: on to the next edit, or to validation."""
        self._note("STATE_LEVEL_ACCEPTANCE", self._canvas.label, note=self.decision.reasoning)
        return "validate" if self.decision.action == "stop" else "edit"

    def _validate(self) -> State:
        """Active verification. What it finds stands in the canvas' verdict, where the controller sees it."""
        canvas, checks = self._canvas, self.goal.checks
        verdict = self._judged(lambda: self._judge(canvas, checks, ()), checks)
        candidates = (dataclasses.replace(canvas.winner, active=verdict),)
        self.trajectory = self.trajectory.with_step(dataclasses.replace(canvas, candidates=candidates))
        gaps = _failing(verdict, checks)
        self._note("RESULT_VALIDATION", canvas.label, note="; ".join(gaps) or "every check of the goal holds")
        if not gaps:
            return "finalize"
        self._fail("validate", f"the goal is not met: {'; '.join(gaps)}")
        self._return_to_best()
        self.decision = self._decide()
        return "edit" if self.decision.action == "edit" else "generate_base_image"

    def _finalize(self) -> None:
        reason = self.decision.reasoning or "The picture satisfies the goal."
        self._note("FINAL_ACCEPTANCE", self._canvas.label, note=reason)
        self.trajectory = dataclasses.replace(self.trajectory, stop_reason=reason)

    def _decide(self) -> Decision:
        """The controller's next call, one that the state allows."""

        def ask() -> Decision:
            decision = self.cast.controller.decide(self.trajectory, self.album)
            tool_of(self.state, decision)
            return decision

        decision = self._patiently("plan", ask)
        self.cost += Cost(usage=decision.usage)
        return decision

    def _draw(self, tool: Tool) -> None:
        """A step of the decision, passed by its own checklist. Gives up where it failed."""
        index, decision = len(self.trajectory.steps), self.decision
        if index >= self.rules.rounds:
            raise _GivenUpError("rounds", f"{index} pictures were drawn")
        seed = candidate_seed(self.seed, index, 0)
        size = self.rules.size or self.cast.generator.default_size
        began = perf_counter()
        try:
            conditions = context.build(self.trajectory, decision, self.album)
            drawing = self.cast.generator.draw(conditions, size, (seed,))
        except (ContextLimitError, FormatError) as error:
            raise _GivenUpError("context", str(error)) from error
        self.cost += Cost(drawing.nfe, {"draw": perf_counter() - began})
        step = Step(index, decision, (Candidate(seed),), 0, True, notes=drawing.notes)
        self.trajectory = self.trajectory.append(step)
        self.album = self.album.with_image(step.label, to_rgb(drawing.images[0]))
        verdict = self._judged(lambda: self._judge(step, decision.expects, decision.references), decision.expects)
        step = dataclasses.replace(step, candidates=(Candidate(seed, verdict),), cost=self.cost)
        self.cost = Cost()
        self.trajectory = self.trajectory.with_step(step)
        failed = _failing(verdict, decision.expects)
        self._note(tool, step.label, decision.instruction, "; ".join(failed) or "carried out")
        if failed:
            raise _GivenUpError("passive", f"not carried out: {'; '.join(failed)}")

    def _judge(self, step: Step, checks: Sequence[Check], references: Sequence[str]) -> Verdict:
        given = [self.album[label] for label in references]
        verdict = self.cast.verifier.judge(self.album[step.label], checks, given)
        self.cost += Cost(usage=verdict.usage)
        return verdict

    def _judged(self, ask: Callable[[], Verdict], checks: Sequence[Check]) -> Verdict:
        """A verdict that leaves nothing open: what could not be judged is asked again."""
        while True:
            verdict = self._patiently("verify", ask)
            open_ = [check.question for check, outcome in verdict.effective(checks) if outcome == "unjudged"]
            if not open_:
                return verdict
            self._fail(self.state, f"could not be judged: {'; '.join(open_)}")

    def _guard(self, before: Step, after: Step) -> None:
        """Gives up where every judge finds the edit worse than what it was made from."""
        judges = self.cast.judges if self.rules.guard else ()
        one, other = self.album[before.label], self.album[after.label]
        began = perf_counter()
        votes = [prefer(judge, one, other, self.goal, self.orders) for judge in judges]
        spent = sum((vote.usage for vote in votes), Usage())
        self.cost += Cost(seconds={"verify": perf_counter() - began}, usage=spent)
        if votes and all(vote.preferred > 0.5 for vote in votes):
            raise _GivenUpError("degraded", f"every judge finds {before.label} better than {after.label}")

    def _patiently(self, phase: str, ask: Callable[[], T]) -> T:
        """An answer, asked for again within the state's budget where a call failed or broke its schema."""
        while True:
            began = perf_counter()
            try:
                return ask()
            except (VLMSetupError, VLMConnectionError):
                raise
            except (FormatError, GrammarError, VLMError) as error:
                self._fail(self.state, str(error))
            finally:
                self.cost += Cost(seconds={phase: perf_counter() - began})

    def _fail(self, state: State, reason: str) -> None:
        self.failures[state] = self.failures.get(state, 0) + 1
        if self.failures[state] > self.allowed[state]:
            raise _GivenUpError(f"retries in {state}", reason)

    @property
    def _canvas(self) -> Step:
        canvas = self.trajectory.canvas
        if canvas is None:
            raise _GivenUpError("context", "there is no picture to go on from")
        return canvas

    def _return_to_base(self) -> None:
        """An edit of earlier pictures alone takes back what was drawn since the newest of them."""
        canvas, references = self._canvas, self.decision.references
        steps = {step.label: step for step in self.trajectory.steps if step.accepted}
        named = [steps[label].index for label in references if label in steps]
        if named and canvas.label not in references:
            self._drop(range(max(named) + 1, len(self.trajectory.steps)), f"back to <IMG_GEN_{max(named)}>")

    def _return_to_best(self) -> None:
        """The earlier picture that was validated with the highest score, where the canvas has a lower one."""
        validated = [s for s in self.trajectory.steps if s.accepted and s.winner.active]
        best = max(validated, key=lambda s: (self.trajectory.score(s) or 0.0, s.index))
        if best.index < self._canvas.index:
            self._drop(range(best.index + 1, len(self.trajectory.steps)), f"back to <{best.label}>")

    def _drop(self, indices: Sequence[int], note: str) -> None:
        """Steps that lead nowhere: kept in the log, no part of what later rounds are drawn from."""
        for index in indices:
            step = self.trajectory.steps[index]
            if step.accepted:
                dropped = dataclasses.replace(step, accepted=False, notes=(*step.notes, note))
                self.trajectory = self.trajectory.with_step(dropped)

    def _note(self, tool: Tool, image: str = "", text: str = "", note: str = "") -> None:
        self.log.append(Entry(self.state, tool, image, text, note))

    def _closed(self) -> Trajectory:
        """With what was spent after the last drawing."""
        return dataclasses.replace(self.trajectory, closing=self.trajectory.closing + self.cost)


def _failing(verdict: Verdict, checks: Sequence[Check]) -> list[str]:
    return [check.question for check, outcome in verdict.effective(checks) if outcome in ("fail", "skipped")]
