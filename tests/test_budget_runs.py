"""No run passes a limit by more than the call in flight, whatever its ports do, and each ends with its best image.

A world with a clock of its own: every call takes seconds, and so many requests and tokens. The books are kept here,
beside the engine's: when a request begins, what had been spent by then is written down."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from clvr import allowance, judging, loop
from clvr.budget import Budget
from clvr.errors import ReplyError, VLMError, VLMTimeoutError
from clvr.journal import Header, Journal, read
from clvr.loop import Ports, Settings, State
from clvr.ports import Checklist, Drawing, Preference
from clvr.trajectory import Decision, Goal, Usage, Verdict
from clvr.vlm.asking import ask
from clvr.vlm.chat import Message, Reply

from .engine_fixtures import CHECKS, SIZE, STEP_CHECK, FakeGenerator, FakeVerifier

GOAL = Goal("a bright grey")
LIMITS = ("nfe", "seconds", "vlm_calls", "tokens")


@dataclass
class World:
    """What was really spent, and what had been spent as each request and drawing began. `script` says of each
    request whether its reply can be used: 0 yes, 1 no, 2 the server fails."""

    script: list[int]
    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(LIMITS, 0.0))
    begun: list[tuple[str, dict[str, float]]] = field(default_factory=list)
    name: str = "scripted"

    def clock(self):
        return self.spent["seconds"]

    def begin(self, what):
        self.begun.append((what, dict(self.spent)))

    def chat(self, messages, schema=None, logprobs=False):
        self.begin("request")
        kind = self.script[(len(self.begun) - 1) % len(self.script)]
        self.spent["vlm_calls"] += 1
        self.spent["seconds"] += 1.5
        if kind == 2:
            raise VLMTimeoutError("It hangs.")
        self.spent["tokens"] += 10
        return Reply("good" if kind == 0 else "bad", Usage(1, 7, 3))

    def ask(self):
        """Whether a question got an answer, and what it took."""
        return ask(self, [Message("user", ("?",))], {}, _read)


def _read(reply):
    if reply.text != "good":
        raise ReplyError("It is bad.")
    return True


@dataclass
class Planner:
    world: World
    stops: bool = False
    name: str = "planner"

    def checklist(self, goal, images):
        asked = self.world.ask()
        return Checklist(CHECKS if asked.value else CHECKS[:2], asked.usage)

    def decide(self, trajectory, images, brief=None):
        asked = self.world.ask()
        if asked.value is None:
            raise VLMError(asked.error)
        if self.stops:
            return Decision("stop", "Done.", usage=asked.usage)
        return Decision("generate", "More.", "a grey", expects=(STEP_CHECK,), usage=asked.usage)


@dataclass
class Painter(FakeGenerator):
    world: World | None = None

    def draw(self, context, size, seeds, on_step=None):
        assert self.world
        self.world.begin("drawing")
        drawing = super().draw(context, size, seeds, on_step)
        self.world.spent["nfe"] += drawing.nfe
        self.world.spent["seconds"] += 4.0
        return Drawing(drawing.images, drawing.nfe, {})


@dataclass
class Judge(FakeVerifier):
    """Asks for each check by itself."""

    world: World | None = None

    def judge(self, image, checks, references=()):
        assert self.world
        results, usage = [], Usage()
        for check in checks:
            asked = self.world.ask()
            usage += asked.usage
            outcome = self._outcome(image, check) if asked.value else "unjudged"
            results += [dataclasses.replace(r, outcome=outcome) for r in super().judge(image, [check]).results]
        return Verdict(tuple(results), usage)


@dataclass
class Comparer:
    world: World
    name: str = "comparer"

    def prefer(self, first, second, goal, references=()):
        """In both orders."""
        one, two = self.world.ask(), self.world.ask()
        return Preference(0.5 if one.value and two.value else None, one.usage + two.usage)


budgets = st.builds(
    Budget,
    steps=st.integers(1, 5),
    candidates=st.integers(1, 4),
    batch=st.none() | st.integers(1, 4),
    nfe=st.none() | st.integers(1, 30),
    seconds=st.none() | st.floats(0.1, 60),
    vlm_calls=st.none() | st.integers(1, 60),
    tokens=st.none() | st.integers(1, 600),
    verify_every=st.integers(1, 3),
    patience=st.integers(1, 5),
)
scripts = st.lists(st.sampled_from([0, 0, 0, 1, 2]), min_size=1, max_size=7).filter(lambda s: 0 in s)


@pytest.fixture(scope="module", autouse=True)
def clocks():
    """The engine's three clocks are the world's."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def cast(world, stops=False, compares=False, greys=()):
    judge = Judge(world=world)
    judge.comparer = Comparer(world) if compares else None
    return Ports(Planner(world, stops), Painter(list(greys), world=world), judge)


def run(patch, world, budget, policy="clvr", seed=0, listen=lambda event: None, **ports):
    for module in (loop, judging, allowance):
        patch.setattr(module, "perf_counter", world.clock)
    state = loop.start(GOAL, [], Planner(world), Settings(budget, policy), seed, listen)
    return loop.proceed(state, cast(world, **ports), listen)


def over(budget, spent, names=LIMITS):
    return [n for n in names if getattr(budget, n) is not None and spent[n] >= getattr(budget, n)]


def check_limits(budget, world):
    """The very first drawing may begin whatever the requests before it took."""
    first = next(index for index, (what, _) in enumerate(world.begun) if what == "drawing")
    for index, (what, spent) in enumerate(world.begun):
        relevant = LIMITS if what == "drawing" else LIMITS[1:]
        assert index == first or not over(budget, spent, relevant), (index, what, spent)


def score_of_best(state):
    best = state.trajectory.best
    assert best
    assert state.best is state.album[best.label]
    return state.trajectory.score(best)


@settings(max_examples=200, deadline=None)
@given(budgets, scripts, st.integers(0, 99), st.sampled_from(["clvr", "director", "auto"]), st.booleans())
def test_no_call_begins_once_a_limit_is_reached(clocks, budget, script, seed, policy, compares):
    world = World(script)
    try:
        state = run(clocks, world, budget, policy, seed, compares=compares)
    except VLMError:
        assume(False)  # the server failed before there was an image
        return
    trajectory = state.trajectory
    check_limits(budget, world)
    assert len(trajectory.steps) <= budget.steps
    assert trajectory.stop_reason
    assert state.best is not None
    judged = [score for step in trajectory.steps if (score := trajectory.score(step)) is not None]
    assert not judged or score_of_best(state) == max(judged)
    assert trajectory.cost.nfe == world.spent["nfe"]
    assert trajectory.cost.usage.calls == world.spent["vlm_calls"]
    assert trajectory.cost.usage.tokens == world.spent["tokens"]
    assert trajectory.cost.total_seconds == pytest.approx(world.spent["seconds"])
    assert sum(len(step.candidates) for step in trajectory.steps) * 2 == trajectory.cost.nfe


@pytest.mark.parametrize(
    ("limits", "reason"),
    [("steps=2", "2 steps"), ("nfe=5", "5 function evaluations"), ("seconds=40", "budget of 40 seconds"),
     ("vlm_calls=9", "9 VLM calls"), ("tokens=90", "90 tokens"), ("patience=1", "did not raise")],
)  # fmt: skip
@pytest.mark.parametrize("batch", ["none", 1])
def test_when_a_limit_ends_a_run_its_best_image_is_the_result_and_the_reason_is_told(clocks, limits, reason, batch):
    world, told = World([0]), []
    budget = Budget.parse(f"{limits},candidates=2,batch={batch}")
    state = run(clocks, world, budget, listen=told.append, greys=[110, 60, *[100] * 99])
    check_limits(Budget.parse(limits), world)
    assert reason in state.trajectory.stop_reason
    assert told[-1].reason == state.trajectory.stop_reason
    assert score_of_best(state) is not None
    assert not state.resumable


def test_a_run_that_may_ask_but_once_draws_the_prompt(clocks):
    world = World([0])
    state = run(clocks, world, Budget(vlm_calls=1))
    assert [what for what, _ in world.begun] == ["request", "drawing"]
    (step,) = state.trajectory.steps
    assert step.decision.instruction == GOAL.prompt
    assert any("without a plan: the budget of 1 VLM calls is used" in note for note in step.notes)


@pytest.mark.parametrize("script", [[0, 1, 1, 1], [0, 1, 2]])
def test_a_plan_that_cannot_be_repaired_within_the_budget_is_the_prompt(clocks, script):
    world = World(script)
    state = run(clocks, world, Budget(vlm_calls=len(script) - (script[-1] == 1 and 2)))
    assert state.trajectory.steps[0].decision.instruction == GOAL.prompt
    assert state.trajectory.cost.usage.calls == world.spent["vlm_calls"]


def test_a_controller_that_stops_at_once_is_not_asked_again_beyond_the_budget(clocks):
    world = World([0])
    state = run(clocks, world, Budget(vlm_calls=2), stops=True)
    assert [what for what, _ in world.begun] == ["request", "request", "drawing"]
    assert state.trajectory.cost.usage.calls == 2


def test_no_round_begins_that_had_no_time_for_an_image(clocks):
    world = World([0])
    state = run(clocks, world, Budget(seconds=18, steps=9, patience=9), greys=[100] * 99)
    assert len(state.trajectory.steps) == 1
    assert world.spent["seconds"] < 18
    assert "the quickest image took 4.0" in state.trajectory.stop_reason


def test_a_round_whose_judging_uses_the_budget_up_is_kept(clocks):
    """In batches: the next one is not drawn any more, and what the first drew stays."""
    world = World([0])
    state = run(clocks, world, Budget(vlm_calls=20, candidates=3, batch=1), greys=[0] * 99)
    assert [len(step.candidates) for step in state.trajectory.steps] == [3, 1]
    assert state.trajectory.cost.nfe == world.spent["nfe"] == 8


def test_what_a_resumed_run_spent_before_counts(clocks, tmp_path):
    budget, world = Budget(vlm_calls=25, patience=9), World([0])
    with Journal.create(tmp_path / "run") as journal:
        for module in (loop, judging, allowance):
            clocks.setattr(module, "perf_counter", world.clock)
        state = loop.start(GOAL, [], Planner(world), Settings(budget))
        journal.begin(Header.of(state, SIZE), [])

        def listen(event):
            journal.listen(event)
            if len(world.begun) > 10:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            loop.proceed(state, cast(world, greys=[100] * 99), listen)
    record = read(tmp_path / "run")
    lost = world.spent["vlm_calls"] - record.trajectory.cost.usage.calls
    state = loop.proceed(State(record.trajectory, record.album(), Settings(budget)), cast(world, greys=[100] * 99))
    assert state.trajectory.cost.usage.calls == 25
    assert world.spent["vlm_calls"] == 25 + lost
