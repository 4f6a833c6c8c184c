"""Checks are exact on scenes, and what is measured in a picture is what was drawn."""

from __future__ import annotations

import io
import random
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from clvr.errors import GrammarError
from clvr.shapes import sampler
from clvr.shapes.checks import Query, Related, checklist, expectations, read_query
from clvr.shapes.edits import KINDS, apply
from clvr.shapes.found import seen
from clvr.shapes.language import parse
from clvr.shapes.render import render, render_batch
from clvr.shapes.scene import CELLS, COLORS, SHAPES, SIZES, Item, Noun, Scene, realise
from clvr.shapes.verifier import MeasuringVerifier, judge_found, measure, measure_batch, to_scene
from clvr.trajectory import Check

SEEDS = st.integers(0, 2**32)


def crowd(rng: random.Random, most: int = 8) -> Scene:
    cells = sorted(rng.sample(CELLS, rng.randint(1, most)))
    return Scene(tuple(Item(rng.choice(SHAPES), rng.choice(COLORS), rng.choice(SIZES), c) for c in cells))


def as_jpeg(pixels: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=75)
    return np.asarray(Image.open(file).convert("RGB"))


def with_noise(pixels: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(int(pixels.sum())).normal(0, 0.05 * 255, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def blurred(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(1)))


def questions(scene: Scene, rng: random.Random) -> list[Check]:
    """The checklist of a prompt that has nothing to do with the scene, and one that does."""
    own = checklist(parse(" and ".join(f"a {i.color} {i.shape}" for i in scene.items[:3])))
    return [*own, *checklist(sampler.prompt("complex", rng)[1])]


@pytest.mark.parametrize(
    ("spoil", "least"), [(np.asarray, 0.995), (as_jpeg, 0.97), (with_noise, 0.97), (blurred, 0.97)]
)
def test_checks_are_right(spoil: Callable[[np.ndarray], np.ndarray], least: float) -> None:
    rng = random.Random(7)
    scenes = [crowd(rng) for _ in range(300)]
    pictures = [spoil(p) for p in render_batch(scenes, range(300))]
    right = total = 0
    for scene, found in zip(scenes, measure_batch(pictures), strict=True):
        asked = questions(scene, rng)
        truth, judged = judge_found(seen(scene), asked), judge_found(found, asked)
        right += sum(a.outcome == b.outcome for a, b in zip(truth.results, judged.results, strict=True))
        total += len(asked)
    assert right / total >= least


@settings(deadline=None, max_examples=60)
@given(SEEDS)
def test_a_drawn_scene_is_measured_as_it_is(seed: int) -> None:
    scene = crowd(random.Random(seed), most=16)
    assert to_scene(measure(render(scene, seed))) == scene


def test_a_picture_shown_enlarged_is_measured_the_same() -> None:
    scene = crowd(random.Random(3))
    picture = render(scene, 3)
    assert to_scene(measure(picture.resize((512, 512), Image.Resampling.NEAREST))) == scene
    assert to_scene(measure(render(scene, 3, resolution=256))) == scene


def test_boxes_enclose_their_objects() -> None:
    (one,) = measure(render(Scene((Item("square", "red", "large", (1, 2)),)), 1))
    x0, y0, x1, y1 = one.box
    assert 0.5 <= x0 < x1 <= 0.75
    assert 0.25 <= y0 < y1 <= 0.5


@pytest.mark.parametrize("kind", ["noise", "black", "white", "gradient", "tiny"])
def test_garbage_is_measured_quickly_and_is_nothing_clear(kind: str) -> None:
    rng = np.random.default_rng(0)
    ramp = np.broadcast_to(np.linspace(0, 255, 64)[None, :, None], (64, 64, 3))
    picture = {
        "noise": rng.integers(0, 256, (64, 64, 3)),
        "black": np.zeros((64, 64, 3)),
        "white": np.full((64, 64, 3), 255),
        "gradient": ramp,
        "tiny": np.zeros((1, 1, 3)),
    }[kind]
    start = time.perf_counter()
    found = measure(Image.fromarray(picture.astype(np.uint8)))
    assert time.perf_counter() - start < 5
    assert not any(f.clear for f in found)


def test_half_an_object_cannot_be_told() -> None:
    pixels = np.asarray(render(Scene((Item("circle", "red", "large", (1, 1)),)), 0)).copy()
    pixels[16:24] = pixels[0, 0]
    verifier = MeasuringVerifier()
    asked = checklist(parse("a red circle"))
    verdict = verifier.judge(Image.fromarray(pixels), asked)
    assert verdict.outcome("red-circle") == "unjudged"
    assert not verdict.satisfied(asked)


def test_an_unknown_question_is_unjudged() -> None:
    verdict = MeasuringVerifier().judge(render(Scene(()), 0), [Check("q", "Is it beautiful?")])
    assert verdict.outcome("q") == "unjudged"
    assert verdict.results[0].evidence[0].note


@settings(deadline=None)
@given(SEEDS, st.sampled_from(sampler.CATEGORIES))
def test_every_realised_scene_passes_its_checklist(seed: int, category: str) -> None:
    rng = random.Random(seed)
    spec = sampler.spec(category, rng)
    asked = checklist(spec)
    assert len({c.id for c in asked}) == len(asked)
    assert judge_found(seen(realise(spec, rng)), asked).satisfied(asked)


@pytest.mark.parametrize(
    "prompt",
    [
        "a circle and a red circle",
        "a circle left of a red circle",
        "two red shapes and a circle",
        "a red circle and a blue cross and a circle left of the cross",
        "a red circle in row 1, column 1 and a red circle below the red circle",
        "three shapes and no black shapes and no circles",
    ],
)
def test_overlapping_descriptions_count_rightly(prompt: str) -> None:
    spec = parse(prompt)
    asked = checklist(spec)
    for seed in range(20):
        scene = realise(spec, random.Random(seed))
        assert judge_found(seen(scene), asked).satisfied(asked)
        assert not judge_found(seen(scene.without(scene.items[0])), asked).satisfied(asked)


def test_one_object_too_many_fails() -> None:
    scene = Scene((Item("circle", "red", "medium", (0, 0)), Item("cross", "blue", "medium", (2, 2))))
    verdict = judge_found(seen(scene), checklist(parse("a red circle")))
    assert verdict.outcome("red-circle-count") == "pass"
    assert verdict.outcome("total") == "fail"


@settings(deadline=None)
@given(SEEDS, st.sampled_from(KINDS))
def test_every_edit_passes_its_expectations_and_nothing_else_does(seed: int, kind: str) -> None:
    scene, edit = sampler.edit_sample(kind, random.Random(seed))
    asked = expectations(edit, scene)
    before, after = seen(scene), seen(apply(scene, edit))
    assert judge_found(after, asked, before).satisfied(asked)
    assert not judge_found(before, asked, before).satisfied(asked)
    spoiled = seen(Scene(tuple(i for i in apply(scene, edit).items if i not in scene.items)))
    if len(scene.items) > 2:
        assert not judge_found(spoiled, asked, before).satisfied(asked)


@settings(deadline=None)
@given(SEEDS, st.sampled_from(KINDS))
def test_every_question_reads_back(seed: int, kind: str) -> None:
    rng = random.Random(seed)
    scene, edit = sampler.edit_sample(kind, rng)
    asked = [*checklist(sampler.spec("complex", rng)), *expectations(edit, scene), *expectations(edit)]
    for check in asked:
        query: Query | None = read_query(check.question)
        assert query is not None
        assert query.question == check.question


def test_relations_need_half_a_cell() -> None:
    below = Related(Noun("circle"), "below", Noun("cross"))
    scene = Scene((Item("circle", "red", "medium", (1, 0)), Item("cross", "red", "medium", (1, 3))))
    assert below.answer(seen(scene)).holds is False
    assert below.answer(seen(scene.swapped(scene.items[0], cell=(2, 0)))).holds is True
    assert below.answer(seen(scene.without(scene.items[0]))).holds is False


def test_what_cannot_be_realised_is_told() -> None:
    with pytest.raises(GrammarError):
        realise(parse("a red circle left of a blue cross left of the red circle"), random.Random(0))


@pytest.mark.parametrize("seed", range(20))
def test_a_tight_layout_is_found_from_any_seed(seed: int) -> None:
    text = "three blue circles, two red circles right of the blue circles and a yellow square right of the red circles"
    spec = parse(text)
    assert (
        MeasuringVerifier()
        .judge(render(realise(spec, random.Random(seed))), checklist(spec))
        .satisfied(checklist(spec))
    )
