"""The complexity probe: what a prompt asks for, tiers, aggregation, areas and intervals."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clvr import probe
from clvr.errors import FormatError, SettingError
from clvr.intervals import normal, wilson
from clvr.probe import Parts, Scored, Shot, Weights
from clvr.shapes.language import parse
from clvr.shapes.phrases import prompt_words
from clvr.shapes.sampler import prompt as sample

COUNTS = st.integers(0, 200)
PARTS = st.builds(Parts, *[COUNTS] * 8)
VALUES = st.floats(-1e6, 1e6, allow_nan=False)
NAMES = [f.name for f in dataclasses.fields(Parts)]


def test_the_parts_of_a_sentence_of_the_built_in_world_are_counted_exactly():
    text = "a photo of two red circles above a small blue square and no black shapes"
    assert probe.of_spec(parse(text), text) == Parts(entities=3, attributes=4, relations=1, words=15, absence=1)


def test_a_named_place_is_an_attribute_of_its_object():
    open_, placed = (probe.of_spec(parse(f"a circle{where}")) for where in ("", " in row two column three"))
    assert placed.attributes == open_.attributes + 1


def test_the_score_is_equation_32_with_every_weight():
    parts = Parts(entities=3, attributes=4, relations=1, words=9, text=1, style=2, absence=1, other=1)
    weights = Weights(alpha=2, beta=3, gamma=5, text=7, style=11, absence=13, other=17)
    expected = 2 * 3 * math.log(4) + 3 * 5 + 5 * math.log(10) + 7 + 22 + 13 + 17
    assert probe.complexity(parts, weights) == pytest.approx(expected)
    assert probe.complexity(Parts()) == 0


@given(PARTS, st.sampled_from(NAMES), st.integers(1, 50))
def test_the_score_grows_with_every_part(parts, name, more):
    larger = dataclasses.replace(parts, **{name: getattr(parts, name) + more})
    assert probe.complexity(larger) > probe.complexity(parts)


@given(PARTS, st.floats(0, 100))
def test_the_score_is_linear_in_its_weights(parts, factor):
    scaled = Weights(**{name: factor * value for name, value in dataclasses.asdict(probe.DEFAULT).items()})
    assert probe.complexity(parts, scaled) == pytest.approx(factor * probe.complexity(parts), abs=1e-9)


@given(PARTS)
def test_parts_survive_their_json(parts):
    assert Parts.from_dict(parts.to_dict()) == parts


@pytest.mark.parametrize("data", [{"entities": -1}, {"entities": 1.5}, {"entities": True}, {"cats": 1}, [1], None])
def test_parts_that_are_no_counts_are_refused(data):
    with pytest.raises(FormatError):
        Parts.from_dict(data)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_weights_are_finite_and_not_negative(value):
    with pytest.raises(SettingError, match="gamma"):
        Weights(gamma=value)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("a cat, on a long-haired dog", 6),
        ("一只黑猫", 4),
        ("黑猫 and 犬", 4),
        ("ねこ", 2),
        ("고양이 두 마리", 3),
    ],
)
def test_words_stand_between_spaces_or_are_characters_of_a_script_without_them(text, count):
    assert probe.words(text) == count


@given(st.integers(0, 10_000))
def test_more_objects_and_relations_make_a_prompt_of_the_world_harder(seed):
    text, spec = sample("complex", random.Random(seed))
    assert probe.complexity(probe.of_spec(spec, text)) > probe.complexity(probe.of_spec(parse("a circle")))
    assert probe.of_spec(spec) == probe.of_spec(parse(prompt_words(spec)))


@given(st.lists(VALUES, min_size=1, max_size=60), st.integers(1, 12))
def test_tiers_rise_with_the_value_and_equal_values_share_one(values, count):
    found = probe.tiers(values, count)
    assert all(1 <= t <= count for t in found)
    pairs = sorted(zip(values, found, strict=True))
    assert [t for _, t in pairs] == sorted(found)
    assert len({(v, t) for v, t in pairs}) == len(set(values))


@given(st.integers(1, 12), st.integers(1, 9), st.randoms(use_true_random=False))
def test_distinct_values_fill_every_tier_alike(count, each, rng):
    values = [float(n) for n in range(count * each)]
    rng.shuffle(values)
    sizes = [probe.tiers(values, count).count(t + 1) for t in range(count)]
    assert max(sizes) - min(sizes) <= 1


def test_no_prompts_make_no_tiers():
    with pytest.raises(SettingError, match="0 prompts"):
        probe.tiers([], 10)
    with pytest.raises(SettingError, match="0 tiers"):
        probe.tiers([1.0], 0)


def test_recall_leaves_out_what_was_not_judged_and_counts_what_was_skipped():
    assert probe.recall(["pass", "fail", "unjudged", "skipped"]) == pytest.approx(1 / 3)
    assert probe.recall(["pass"]) == 1
    assert probe.recall(["unjudged"]) is None


def test_images_are_averaged_before_prompts():
    shots = [Shot("a", 1.0, True, 1.0), *[Shot("b", 2.0, False, 0.5)] * 3]
    scored = probe.by_prompt(shots)
    assert scored == [Scored("a", 1.0, 1.0, 1.0, 1), Scored("b", 2.0, 0.0, 0.5, 3)]
    (only,) = probe.by_tier(scored, [])
    assert (only.passed.mean, only.recall.mean, only.median) == (0.5, 0.75, 1.5)


def test_a_prompt_has_one_complexity():
    with pytest.raises(SettingError, match=r"'a' has the complexities \[1.0, 2.0\]"):
        probe.by_prompt([Shot("a", 1.0, True), Shot("a", 2.0, True)])


@given(st.lists(st.tuples(st.floats(0, 100), st.booleans(), st.floats(0, 1)), min_size=1, max_size=40))
def test_every_prompt_is_in_one_tier_and_every_rate_inside_its_interval(rows):
    scored = probe.by_prompt(Shot(str(i), c, p, r) for i, (c, p, r) in enumerate(rows))
    results = probe.by_tier(scored, probe.edges([s.complexity for s in scored], 5))
    assert sum(t.prompts for t in results) == len(rows)
    for one in results:
        assert one.low <= one.median <= one.high
        for found in (one.passed, one.recall):
            assert 0 <= found.interval[0] <= found.mean + 1e-12
            assert found.mean - 1e-12 <= found.interval[1] <= 1


def test_rates_of_whole_passes_have_wilson_s_interval_and_shares_the_normal_one():
    assert probe.rate([1, 0, 1]).interval == wilson(2, 3)
    low, high = normal([0.5, 0.25, 0.75])
    assert probe.rate([0.5, 0.25, 0.75]).interval == (low, high)


def test_the_area_is_that_of_trapezoids_between_medians():
    assert probe.auc([(0.0, 1.0), (10.0, 0.5), (20.0, 0.0)]) == 7.5 + 2.5
    assert probe.auc([(20.0, 0.0), (0.0, 1.0), (10.0, 0.5)]) == 10.0
    assert probe.auc([(3.0, 1.0)]) == 0


@given(st.lists(st.tuples(st.integers(0, 1000), st.floats(0, 1)), min_size=2, max_size=12, unique_by=lambda p: p[0]))
def test_the_area_lies_between_those_of_the_least_and_the_greatest_rate(points):
    wide = max(p[0] for p in points) - min(p[0] for p in points)
    rates = [p[1] for p in points]
    assert min(rates) * wide - 1e-9 <= probe.auc(points) <= max(rates) * wide + 1e-9
    shifted = [(x + 7, y) for x, y in points]
    assert probe.auc(shifted) == pytest.approx(probe.auc(points), abs=1e-6)


def test_wilson_gives_the_paper_s_geneval_interval():
    assert wilson(478, 553) == pytest.approx((0.8333, 0.8904), abs=5e-5)


@given(st.integers(0, 300), st.integers(0, 300))
def test_wilson_holds_its_rate_and_is_symmetric(passed, failed):
    tries = passed + failed
    low, high = wilson(passed, tries)
    assert 0 <= low <= high <= 1
    assert tries == 0 or low <= passed / tries <= high
    assert wilson(failed, tries) == pytest.approx((1 - high, 1 - low))


def test_wilson_narrows_with_tries_and_refuses_nonsense():
    widths = [wilson(n, 2 * n)[1] - wilson(n, 2 * n)[0] for n in (1, 10, 100)]
    assert widths == sorted(widths, reverse=True)
    with pytest.raises(ValueError, match="3 passes of 2 tries"):
        wilson(3, 2)


def test_the_normal_interval_is_the_mean_with_1_96_standard_errors():
    low, high = normal([1.0, 2.0, 3.0, 4.0])
    error = math.sqrt(5 / 3) / 2
    assert ((low + high) / 2, (high - low) / 2) == pytest.approx((2.5, 1.96 * error), rel=1e-3)
    assert normal([0.3]) == (-math.inf, math.inf)
