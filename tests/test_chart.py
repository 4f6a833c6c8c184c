"""Charts: every series is seen, in its own color, inside the picture."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageColor

from clvr import pen
from clvr.chart import Axis, Chart, Line, Point, draw

POSITIVE = st.floats(1e-6, 1e6)


def chart(lines, log=False):
    return Chart("Pass rate", Axis("complexity", log=log), Axis("share", log=log), lines)


def seen(picture):
    return {color for _, color in picture.getcolors(picture.width * picture.height)}


def test_every_series_is_drawn_and_named():
    lines = tuple(Line(f"line {i}", (Point(1, 0.1 * i + 0.2), Point(2, 0.1 * i + 0.3))) for i in range(4))
    colors = seen(draw("Search", [chart(lines)], "200 prompts a tier"))
    assert colors >= {ImageColor.getrgb(color) for color in pen.COLORS[:4]}


def test_an_interval_is_drawn_above_and_below_its_point():
    points = (Point(1, 0.2), Point(2, 0.5), Point(3, 0.8))
    wide = (points[0], Point(2, 0.5, 0.3, 0.7), points[2])
    inked = []
    for some in (points, wide):
        picture = draw("", [chart((Line("a", some),))])
        inked.append(sum(n for n, color in picture.getcolors(picture.width * picture.height) if color[0] < 200))
    assert inked[1] > inked[0] + 100


@pytest.mark.parametrize("points", [(), (Point(3, 0.5),), (Point(3, 0.0), Point(3, 0.0))])
def test_few_points_make_a_picture_too(points):
    assert draw("Few", [chart((Line("a", points), Line("b", points)))]).width == 1100


@given(POSITIVE, st.floats(1.05, 1e9))
def test_logarithmic_ticks_lie_on_the_axis_in_order(low, ratio):
    scale = pen.logarithmic(low, low * ratio, str)
    places = [scale.place(value) for value, _ in scale.ticks]
    assert places == sorted(places)
    assert all(0 <= p <= 1 for p in places)
    assert len(places) >= 2 or ratio < 3
    assert len(places) <= 12


@given(POSITIVE, POSITIVE, POSITIVE)
def test_a_logarithmic_axis_keeps_ratios(low, one, other):
    scale = pen.logarithmic(low, low * 1000, str)
    a, b = sorted((low + one % 1, low + other % 1))
    wanted = math.log10(b / a) / 3
    if b <= low * 1000:
        assert scale.place(b) - scale.place(a) == pytest.approx(wanted, abs=1e-9)
