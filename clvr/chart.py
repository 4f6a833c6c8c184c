"""Line charts with intervals, one above the other: what measurements are looked at in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from PIL import Image

from .pen import COLORS, GRID, INK, SOFT, Pen, Scale, fitted, length, linear, logarithmic

WIDTH = 1100
_LEFT, _RIGHT, _PANEL = 128, 40, 380
_TITLE, _HEAD, _TEXT = 36, 27, 23


@dataclass(frozen=True)
class Point:
    """`low` and `high` are the ends of the interval around y."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """One series. `joined`: points are connected, in their order; `marked`: each has a mark."""

    name: str
    points: tuple[Point, ...]
    joined: bool = True
    marked: bool = True


@dataclass(frozen=True)
class Axis:
    """`least` and `most` are in the picture even where no point comes near. `log`: positive values only. With `names`
    the values are their numbers, from 0."""

    title: str
    least: float | None = None
    most: float | None = None
    log: bool = False
    label: Callable[[float], str] = field(default=lambda value: f"{value:g}")
    names: tuple[str, ...] = ()

    def scale(self, values: Sequence[float]) -> Scale:
        if self.names:
            return Scale(tuple(enumerate(self.names)), lambda value: (value + 0.5) / len(self.names))
        found = [*values, *(end for end in (self.least, self.most) if end is not None)] or [0.0, 1.0]
        low, high = min(found), max(found)
        if self.log:
            return logarithmic(low / 1.15, high * 1.15, self.label)
        room = 0.04 * (high - low) or max(abs(high), 1.0) / 2
        start = low if low == self.least else low - room
        return linear(start, high if high == self.most else high + room, self.label)


@dataclass(frozen=True)
class Chart:
    title: str
    x: Axis
    y: Axis
    lines: tuple[Line, ...]


def draw(title: str, charts: Sequence[Chart], said: str = "") -> Image.Image:
    """RGB, 1100 pixels wide. `said` stands small under the title."""
    legends = [_legend_rows(chart.lines) for chart in charts]
    top = 40 + _TITLE + (_TEXT + 14 if said else 0) + 30
    tops: list[int] = []
    for rows in legends:
        top += _HEAD + 26 + len(rows) * (_TEXT + 12) + _TEXT + 14
        tops.append(top)
        top += _PANEL + 120
    pen = Pen(WIDTH, top)
    pen.text((40, 32), fitted(title, _TITLE, WIDTH - 80), _TITLE)
    pen.text((40, 32 + _TITLE + 14), fitted(said, _TEXT, WIDTH - 80), _TEXT, SOFT)
    for chart, rows, start in zip(charts, legends, tops, strict=True):
        _legend(pen, chart, rows, start)
        _panel(pen, chart, start)
    return pen.image()


def _legend_rows(lines: Sequence[Line]) -> list[list[tuple[float, int]]]:
    """Rows of (x, which line); none for a single line, which the chart's title names."""
    if len(lines) < 2:
        return []
    rows: list[list[tuple[float, int]]] = [[]]
    x = 40.0
    for i, line in enumerate(lines):
        wide = 44 + length(line.name, _TEXT) + 30
        if rows[-1] and x + wide > WIDTH - _RIGHT:
            rows.append([])
            x = 40.0
        rows[-1].append((x, i))
        x += wide
    return rows


def _legend(pen: Pen, chart: Chart, rows: Sequence[Sequence[tuple[float, int]]], top: int) -> None:
    y = top - _TEXT - 28 - len(rows) * (_TEXT + 12)
    pen.text((40, y - _HEAD - 14), fitted(chart.title, _HEAD, WIDTH - 80), _HEAD)
    for row in rows:
        for x, i in row:
            line, middle = chart.lines[i], y + _TEXT / 2 + 3
            if line.joined:
                pen.line([(x, middle), (x + 34, middle)], _color(i), 3)
            if line.marked:
                pen.mark((x + 17, middle), i, _color(i), 7)
            pen.text((x + 44, y), fitted(line.name, _TEXT, WIDTH - _RIGHT - x - 44), _TEXT)
        y += _TEXT + 12


def _panel(pen: Pen, chart: Chart, top: int) -> None:
    right, bottom = WIDTH - _RIGHT, top + _PANEL
    points = [point for line in chart.lines for point in line.points]
    across = chart.x.scale([point.x for point in points])
    up = chart.y.scale([value for p in points for value in (p.y, p.low, p.high) if value is not None])

    def place(x: float, y: float) -> tuple[float, float]:
        return _LEFT + (right - _LEFT) * across.place(x), bottom - _PANEL * up.place(y)

    for value, label in up.ticks:
        y = bottom - _PANEL * up.place(value)
        pen.line([(_LEFT, y), (right, y)], GRID, 1)
        pen.text((_LEFT - 14, y), label, _TEXT, SOFT, "rm")
    for value, label in across.ticks:
        x = _LEFT + (right - _LEFT) * across.place(value)
        pen.line([(x, bottom), (x, bottom + 7)], SOFT, 1)
        pen.text((x, bottom + 12), label, _TEXT, SOFT, "ma")
    pen.line([(_LEFT, bottom), (right, bottom)], SOFT, 1)
    pen.text(((_LEFT + right) / 2, bottom + 48), chart.x.title, _TEXT, INK, "ma")
    pen.text((40, top - 18), chart.y.title, _TEXT, INK, "ld")
    for i, line in enumerate(chart.lines):
        _line(pen, line, i, place)


def _line(pen: Pen, line: Line, index: int, place: Callable[[float, float], tuple[float, float]]) -> None:
    color = _color(index)
    for point in line.points:
        if point.low is not None and point.high is not None:
            (x, low), (_, high) = place(point.x, point.low), place(point.x, point.high)
            pen.line([(x, low), (x, high)], color, 1.5)
            for end in (low, high):
                pen.line([(x - 5, end), (x + 5, end)], color, 1.5)
    spots = [place(point.x, point.y) for point in line.points]
    if line.joined and len(spots) > 1:
        pen.line(spots, color, 3)
    if line.marked:
        for spot in spots:
            pen.mark(spot, index, color, 7)


def _color(index: int) -> str:
    return COLORS[index % len(COLORS)]
