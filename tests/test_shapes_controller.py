"""The rule-based controller reaches its goals with a generator that obeys, and one that often does not."""

from __future__ import annotations

import dataclasses
import random

import pytest

from clvr.errors import GrammarError
from clvr.policies.clvr import ClosedLoop
from clvr.ports import Album
from clvr.shapes import sampler
from clvr.shapes.controller import ShapesController, Where
from clvr.shapes.edits import apply
from clvr.shapes.language import parse, parse_edit
from clvr.shapes.phrases import prompt_words
from clvr.shapes.render import render
from clvr.shapes.scene import COLORS, Item, Scene, realise
from clvr.shapes.verifier import MeasuringVerifier
from clvr.trajectory import Candidate, Decision, Goal, Step, Trajectory, generated, referenced

VERIFIER = MeasuringVerifier()


def slip(scene: Scene, rng: random.Random) -> Scene:
    """What a poor generator does: loses an object, invents one, or paints one in another color."""
    item = rng.choice(scene.items)
    if rng.random() < 0.3:
        return scene.without(item)
    if rng.random() < 0.5 and scene.free():
        return scene.plus(Item("cross", "black", "medium", rng.choice(scene.free())))
    return scene.swapped(item, color=rng.choice([c for c in COLORS if c != item.color]))


def run(
    prompt: str, seed: int, failing: float = 0.0, controller: ShapesController | None = None, rounds: int = 8
) -> tuple[bool, Trajectory]:
    """The closed loop with a generator that renders what the instruction asks for, or slips."""
    controller = controller or ShapesController(2, "place")
    rng = random.Random(seed)
    goal = Goal(prompt)
    trajectory = Trajectory(dataclasses.replace(goal, checks=controller.checklist(goal, Album()).checks), seed=seed)
    album, scenes = Album(), {}
    for index in range(rounds + 1):
        decision = controller.decide(trajectory, album)
        if decision.action == "stop" or index == rounds:
            return decision.action == "stop", trajectory
        scene = draw(decision, scenes, rng)
        scene = slip(scene, rng) if scene.items and rng.random() < failing else scene
        scenes[generated(index)] = scene
        image = render(scene, seed)
        album = album.with_image(generated(index), image)
        passive = VERIFIER.judge(image, decision.expects, [album[r] for r in decision.references])
        candidate = Candidate(0, passive, VERIFIER.judge(image, trajectory.goal.checks))
        if not failing:
            assert passive.satisfied(decision.expects)
        ruling = ClosedLoop().settle(trajectory, candidate, decision)
        trajectory = trajectory.append(Step(index, decision, (candidate,), 0, ruling.accepted))
    raise AssertionError


def draw(decision: Decision, scenes: dict[str, Scene], rng: random.Random) -> Scene:
    if decision.action == "generate":
        return realise(parse(decision.instruction), rng)
    return apply(scenes[decision.references[0]], parse_edit(decision.instruction))


def prompts(count: int) -> list[str]:
    rng = random.Random(11)
    found: list[str] = []
    while len(found) < count:
        spec = sampler.spec("complex", rng)
        if 3 <= spec.total <= 5:
            found.append(prompt_words(spec))
    return found


@pytest.mark.parametrize("where", ["place", "relation", "none"])
def test_a_perfect_generator_reaches_every_goal(where: Where) -> None:
    for seed, prompt in enumerate(prompts(12)):
        assert run(prompt, seed, controller=ShapesController(where=where))[0], prompt


def test_a_generator_that_fails_often_nearly_always_gets_there() -> None:
    reached = [run(prompt, seed, failing=0.3)[0] for seed, prompt in enumerate(prompts(40))]
    assert sum(reached) >= 36


def test_the_same_seed_gives_the_same_decisions() -> None:
    (prompt,) = prompts(1)
    first, second = run(prompt, 5, 0.3)[1], run(prompt, 5, 0.3)[1]
    assert [s.decision for s in first.steps] == [s.decision for s in second.steps]


def test_the_first_round_draws_and_every_later_one_edits_the_canvas() -> None:
    trajectory = run("a red circle, a blue square and a green cross", 0)[1]
    first, second = (s.decision for s in trajectory.steps)
    assert (first.action, first.reasoning) == ("generate", "Nothing is drawn yet.")
    assert first.instruction.startswith("draw a red circle in row ")
    assert (second.action, second.reasoning) == ("edit", "A green cross is missing.")
    assert second.references == (generated(0),)


def test_reasoning_and_instruction_stay_short() -> None:
    for seed, prompt in enumerate(prompts(10)):
        for step in run(prompt, seed, 0.3)[1].steps:
            words = f"{step.decision.reasoning} {step.decision.instruction}".split()
            assert len(words) <= 30, step.decision


def decide(prompt: str, scene: Scene, tried: tuple[Decision, ...] = ()) -> Decision:
    """The decision on a given canvas, after these decisions were tried on it and rolled back."""
    goal = Goal(prompt, checks=ShapesController().checklist(Goal(prompt), Album()).checks)
    start = Step(0, Decision("generate", instruction="draw it"), (Candidate(0),), 0, True)
    trajectory = Trajectory(goal, (start,))
    for decision in tried:
        trajectory = trajectory.append(Step(len(trajectory.steps), decision, (Candidate(0),), 0, False))
    return ShapesController(2, "place").decide(trajectory, Album({generated(0): render(scene, 0)}))


@pytest.mark.parametrize(
    ("prompt", "reasoning", "instruction"),
    [
        (
            "a blue circle",
            "The red circle should be blue.",
            "recolor the red circle in row two column two to blue",
        ),
        (
            "a red square",
            "The red circle should be a red square.",
            "replace the red circle in row two column two with a red square",
        ),
        (
            "a large red circle",
            "The red circle should be large.",
            "make the red circle in row two column two large",
        ),
    ],
)
def test_what_is_wrong_is_mended(prompt: str, reasoning: str, instruction: str) -> None:
    decision = decide(prompt, Scene((Item("circle", "red", "medium", (1, 1)),)))
    assert (decision.reasoning, decision.instruction) == (reasoning, instruction)


def test_one_too_many_is_removed() -> None:
    scene = Scene((Item("circle", "red", "medium", (1, 1)), Item("cross", "blue", "medium", (3, 0))))
    decision = decide("a red circle", scene)
    assert decision.reasoning == "There is one blue cross too many."
    assert decision.instruction == "remove the blue cross in row four column one"


def test_what_is_in_the_wrong_place_is_moved() -> None:
    scene = Scene((Item("circle", "red", "medium", (2, 1)), Item("cross", "blue", "medium", (1, 1))))
    decision = decide("a red circle and a blue cross below the circle", scene)
    assert decision.reasoning.endswith("is in the wrong place.")
    assert decision.instruction.startswith("move the ")


def test_what_failed_is_tried_another_way() -> None:
    scene = Scene((Item("circle", "red", "medium", (1, 1)),))
    first = decide("a blue circle", scene)
    second = decide("a blue circle", scene, (first,))
    assert second.instruction != first.instruction


def test_a_finished_picture_stops() -> None:
    scene = Scene((Item("circle", "red", "medium", (1, 1)),))
    assert decide("a red circle", scene) == Decision("stop", "Everything is there.")


def test_a_reference_picture_is_the_first_canvas_and_its_edit_the_goal() -> None:
    scene = Scene((Item("circle", "red", "medium", (1, 1)), Item("cross", "blue", "medium", (3, 0))))
    controller, album = ShapesController(2, "place"), Album({referenced(0): render(scene, 0)})
    goal = Goal("recolor the red circle to green", references=1)
    goal = dataclasses.replace(goal, checks=controller.checklist(goal, album).checks)
    decision = controller.decide(Trajectory(goal), album)
    assert decision.references == (referenced(0),)
    assert decision.instruction == "recolor the red circle in row two column two to green"


@pytest.mark.parametrize("prompt", ["a cat", "a red circle left of a blue cross left of the red circle"])
def test_an_impossible_goal_is_refused_at_the_start(prompt: str) -> None:
    with pytest.raises(GrammarError):
        ShapesController().checklist(Goal(prompt), Album())
