"""A merge's report: every number against the tensors themselves, what it warns of, and its picture."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clvr import pen
from clvr.dswm import plot
from clvr.dswm.merge import Outcome
from clvr.dswm.recipe import Recipe, Source, Strength
from clvr.dswm.report import Report
from clvr.dswm.sums import Sums

ARTIFACTS = Path(__file__).parent / "artifacts"
SIZE = 400


def blocks_of(double, single):
    names = (f"{kind}.{i}" for kind, count in (("double", double), ("single", single)) for i in range(count))
    return ["input", "modulation", *names, "final"]


def tensors(blocks, scales, seed=0):
    """Reference and increments of each block."""
    generator = torch.Generator().manual_seed(seed)

    def draw():
        return torch.randn(SIZE, generator=generator, dtype=torch.float64)

    return {block: (draw(), [scale * draw() for scale in scales]) for block in blocks}


def sums_of(reference, deltas, lambdas, conflicts=False):
    total = reference + sum(x * d for x, d in zip(lambdas, deltas, strict=True))
    sums = Sums(len(deltas), elements=SIZE, sampled=SIZE)
    sums.energy = float(reference @ reference)
    sums.merged = float((total - reference) @ (total - reference))
    sums.dots = [[float(one @ other) for other in deltas] for one in deltas]
    for k, delta in enumerate(deltas):
        asked = lambdas[k] * delta
        moved = total.bfloat16().double() - (total - asked).bfloat16().double()
        sums.asked[k], sums.kept[k] = float(asked @ asked), float(moved @ asked)
        sums.touched[k] = int((asked != 0).sum())
        sums.unchanged[k] = int(((asked != 0) & (moved == 0)).sum())
        for j in range(k if conflicts else 0):
            sums.both[j][k] = SIZE
            sums.conflicts[j][k] = int((deltas[j] * delta < 0).sum())
            sums.chance[j][k] = int((deltas[j] * delta.roll(1) < 0).sum())
    return sums


def outcome(scales=(0.028, 0.02), strengths=("1", "1"), blocks=None, *, base=True, conflicts=False, **changes):
    """A merge's outcome over random tensors; without a base the first increment is the first LoRA."""
    blocks = blocks_of(1, 2) if blocks is None else blocks
    sources = [Source(Path(f"models/part-{i}.safetensors"), Strength.parse(s)) for i, s in enumerate(strengths)]
    distilled, align = (sources[0], sources[1:]) if base else (Source(Path("models/d.safetensors")), sources)
    recipe = Recipe(Path("out/merged.safetensors"), None, distilled, tuple(align), conflicts=conflicts, **changes)
    names = ["distilled"] * base + [f"align {i}" for i in range(1, len(align) + 1)]
    measured = {
        block: sums_of(reference, deltas, [s.strength.of(block) for s in sources], conflicts)
        for block, (reference, deltas) in tensors(blocks, scales).items()
    }
    reference = "base" if base else "distilled"
    return Outcome(recipe.out, recipe, reference, tuple(names), measured, (), 1.5)


def norm(parts):
    return math.sqrt(sum(float(part @ part) for part in parts))


def test_every_figure_is_that_of_the_tensors():
    strengths = ("1", "0.5,double=2", "0.1")
    report = Report.of(outcome((0.03, 0.01, 0.001), strengths))
    assert report.whole is not None
    made = tensors(report.blocks, (0.03, 0.01, 0.001))
    parsed = [Strength.parse(s) for s in strengths]
    for names, found in [([name], report.blocks[name]) for name in made] + [(list(made), report.whole)]:
        length = norm(made[name][0] for name in names)
        deltas = [torch.cat([made[name][1][k] for name in names]) for k in range(3)]
        added = [torch.cat([parsed[k].of(name) * made[name][1][k] for name in names]) for k in range(3)]
        assert found.weights == SIZE * len(names)
        assert found.shift == pytest.approx([norm([d]) / length for d in deltas])
        assert found.added == pytest.approx([norm([d]) / length for d in added])
        assert found.merged == pytest.approx(norm([sum(added)]) / length)
        pairs = [(deltas[j], deltas[k]) for j, k in ((0, 1), (0, 2), (1, 2))]
        assert found.cosines == pytest.approx([float(a @ b) / norm([a]) / norm([b]) for a, b in pairs])
        assert found.random == pytest.approx((SIZE * len(names)) ** -0.5)
        assert found.nonfinite == (0, 0, 0, 0, 0)
    assert report.pairs == (("D", "A1"), ("D", "A2"), ("A1", "A2"))


def test_what_survived_the_rounding_is_kept_over_asked():
    given = outcome()
    report = Report.of(given)
    total = Sums.total(list(given.blocks.values()))
    assert report.whole is not None
    assert report.whole.retained == pytest.approx([total.kept[k] / total.asked[k] for k in range(2)])
    assert report.whole.unchanged == pytest.approx([total.unchanged[k] / total.touched[k] for k in range(2)])


def test_sign_conflicts_stand_beside_their_chance():
    report = Report.of(outcome(conflicts=True))
    assert report.whole is not None
    assert report.whole.conflicts[0] == pytest.approx(0.5, abs=0.06)
    assert "by chance" in report.text()
    assert "by chance" not in Report.of(outcome()).text()


def test_a_zero_increment_has_no_cosine_and_is_named():
    report = Report.of(outcome((0.02, 0.0)))
    assert report.whole is not None
    assert report.whole.cosines == (None,)
    assert report.whole.retained[1] is None
    assert "cosine D·A1  -  (an increment is zero)" in report.text()
    assert "align 1 is no different from the base" in said(report)


def test_json_holds_no_nan_even_where_the_weights_do():
    given = outcome()
    broken = given.blocks["double.0"]
    broken.energy = broken.merged = broken.dots[0][0] = broken.asked[1] = math.nan
    broken.nonfinite[1] = 7
    report = Report.of(given)
    told = json.loads(json.dumps(report.json(), allow_nan=False))
    assert (told["format"], told["version"]) == ("clvr-merge-report", 1)
    assert told["blocks"]["double.0"]["shift"]["D"] is None
    assert told["blocks"]["single.0"]["shift"]["D"] == pytest.approx(0.028, rel=0.2)
    assert told["blocks"]["double.0"]["nonfinite"]["distilled"] == 7
    assert "nan" not in report.text().replace("NaN", "")
    assert "7 NaN or Inf in distilled, most in double.0" in said(report)
    assert plot.draw(report).width == plot.WIDTH


def said(report):
    return " ".join(report.text().split())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scales": (0.05, 0.01)}, "warning: distilled shifts the weights by"),
        ({"scales": (0.05, 0.01)}, "distilled 2.79 %, SFT 2.30 %, RL LoRA 0.0075 %"),
        ({"scales": (0.02, 0.04), "strengths": ("1", "0")}, "align 1 has strength 0 everywhere"),
        ({"scales": (0.02, 0.00002)}, "of align 1 is left after rounding to bf16"),
        ({"scales": (0.02, 0.00002)}, "--dtype fp32"),
        ({"scales": (0.02, 0.00002), "dtype": "fp16"}, "Write it as --dtype fp32."),
        ({"scales": (0.01,), "strengths": ("1",), "base": False}, "note: no base was given"),
    ],
)
def test_it_warns(changes, words):
    assert words in said(Report.of(outcome(**changes)))


def test_it_is_silent_about_a_merge_like_the_paper_s():
    assert "warning" not in Report.of(outcome((0.0279, 0.023))).text()


def test_the_threshold_is_a_setting_and_counts_with_the_strength():
    assert "linear regime" in said(Report.of(outcome(warn_shift=0.01)))
    assert "linear regime" not in said(Report.of(outcome((0.02, 0.08), ("1", "0.25"))))


def test_one_block_over_the_threshold_is_a_note():
    given = outcome((0.02, 0.01))
    given.blocks["single.1"].dots[0][0] *= 4
    told = said(Report.of(given))
    assert "note: distilled shifts 1 of 6 blocks by more than 3.00 %, most single.1" in told
    assert "warning" not in told


@pytest.mark.parametrize(("factor", "words"), [(1.0, "adds much of it twice"), (-1.0, "point opposite ways")])
def test_increments_that_are_not_orthogonal_are_named(factor, words):
    given = outcome((0.02, 0.02))
    for sums in given.blocks.values():
        sums.dots[1][1] = sums.dots[0][0]
        sums.dots[0][1] = sums.dots[1][0] = factor * 0.9 * sums.dots[0][0]
    assert words in said(Report.of(given))


def test_a_merge_that_measured_nothing_says_so():
    report = Report.of(outcome(blocks=[]))
    assert "are not measured" in report.text()
    assert report.json()["whole"] is None
    assert plot.draw(report).width == plot.WIDTH


def test_the_energy_of_an_extracted_lora_is_told():
    given = dataclasses.replace(outcome(blocks=[], form="lora"), energy=0.973)
    assert "The LoRA holds 97.3 % of the increment's energy." in Report.of(given).text()
    assert "--rank" not in Report.of(given).text()
    assert "holds only 24.4 %" in said(Report.of(dataclasses.replace(given, energy=0.244)))


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 300), st.booleans())
def test_text_fits_into_a_hundred_columns(count, length, conflicts):
    strengths = ["1"] + ["0.123456,double=0.5,single.0-9=0.25"] * (count - 1)
    scales = [0.02 * 10.0**-k for k in range(count)]
    made = outcome(scales, strengths, ["input", "double.0", "final"], conflicts=conflicts)
    named = Recipe(**{**vars(made.recipe), "distilled": Source(Path("x" * length))})
    text = Report.of(dataclasses.replace(made, recipe=named)).text()
    assert max(map(len, text.splitlines())) <= 100
    assert all(name in text for name in ["input", "double.0", "final", f"align {count - 1}" if count > 1 else "merged"])


@pytest.mark.parametrize("sizes", [(2, 5), (5, 20), (8, 24)])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_the_picture_shows_every_increment(sizes, count):
    scales = (0.027, 0.02, 0.0004, 0.01, 0.012, 0.014, 0.016)[:count]
    picture = plot.draw(Report.of(outcome(scales, ("1", "0.8,double=0.5", *["1"] * 5)[:count], blocks_of(*sizes))))
    ARTIFACTS.mkdir(exist_ok=True)
    picture.save(ARTIFACTS / f"merge-{sizes[0]}+{sizes[1]}-{count}.png")
    shown = {color for _, color in picture.getcolors(picture.width * picture.height) or ()}
    for color in pen.COLORS[: min(count, 6)]:
        assert tuple(bytes.fromhex(color[1:])) in shown
    assert picture.width == plot.WIDTH


@settings(deadline=None)
@given(st.floats(-1, 1), st.floats(1e-6, 2))
def test_an_axis_has_a_handful_of_ticks_within_it(low, span):
    scale = pen.linear(low, low + span, str)
    assert 2 <= len(scale.ticks) <= 7
    assert all(0 <= scale.place(value) <= 1 for value, _ in scale.ticks)


def test_of_many_increments_the_text_compares_each_with_the_first():
    report = Report.of(outcome((0.02,) * 5, ("1",) * 5))
    assert len(report.pairs) == 10
    assert report.text().count("cosine D·") == 4
    assert "The other 6 pairs are in the JSON report." in report.text()
    assert "A3·A4" in report.json()["whole"]["cosines"]


def test_shifts_with_their_strengths_are_shown_where_they_differ():
    text = Report.of(outcome((0.02, 0.01), ("1", "1"))).text()
    assert "with λ" not in text
    assert "with λ" in Report.of(outcome((0.02, 0.01), ("1", "0.5"))).text()
