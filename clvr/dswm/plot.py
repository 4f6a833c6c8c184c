"""A merge's report as a picture: relative shift, cosine and retained projection over the blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePath

from PIL import Image

from ..pen import COLORS, GRID, INK, SOFT, WARN, Pen, Scale, fitted, length, linear
from .report import Report, Share
from .words import RETAINED, percent, shown_pairs

WIDTH = 1100
_LEFT, _RIGHT, _PANEL, _GAP, _AXIS = 128, 28, 250, 34, 150
_TITLE, _HEAD, _TEXT = 36, 27, 23
_SPAN = 30.0
"""Largest and smallest shift whose ratio still goes on a linear scale."""


@dataclass(frozen=True)
class Series:
    """One line of a panel, a value a block. `style` picks colour and shape; -1 is a plain dark line."""

    name: str
    style: int
    values: tuple[Share, ...]

    @property
    def color(self) -> str:
        return INK if self.style < 0 else COLORS[self.style % len(COLORS)]


@dataclass(frozen=True)
class Panel:
    title: str
    series: tuple[Series, ...]
    scale: Scale
    threshold: float | None = None
    said: str = ""
    zero: bool = False
    legend: bool = True


def draw(report: Report) -> Image.Image:
    """RGB, 1100 pixels wide; as high as the panels need."""
    panels = _panels(report)
    legends = [_legend_lines(panel) for panel in panels]
    tops, y = [], 40 + _TITLE + 60
    for lines in legends:
        y += _HEAD + (16 if lines else 30) + len(lines) * (_TEXT + 12)
        tops.append(y)
        y += _PANEL + _GAP
    height = (y - _GAP + _AXIS) if panels else y + 60
    pen = Pen(WIDTH, height)
    _head(pen, report)
    if not panels:
        pen.text((_LEFT, y), "Nothing was measured.", _TEXT, SOFT)
        return pen.image()
    columns = _columns(list(report.blocks))
    for panel, lines, top in zip(panels, legends, tops, strict=True):
        _legend(pen, panel, lines, top)
        _panel(pen, panel, top, columns)
    _blocks(pen, list(report.blocks), columns, tops[-1] + _PANEL)
    return pen.image()


def _panels(report: Report) -> list[Panel]:
    blocks = list(report.blocks.values())
    if not blocks:
        return []
    names = [f"{i.name} x {i.strength}" if i.varied else i.name for i in report.increments]
    shifts = [Series(name, i, tuple(f.added[i] for f in blocks)) for i, name in enumerate(names)]
    kept = [Series(name, i, tuple(f.retained[i] for f in blocks)) for i, name in enumerate(names)]
    if len(names) > 1:
        shifts.insert(0, Series("merged", -1, tuple(f.merged for f in blocks)))
    limit = report.warn_shift
    panels = [
        Panel(
            f"Relative shift from the {report.reference}",
            tuple(shifts),
            _shift_scale(shifts, limit),
            limit,
            f"warns above {_plain(limit)}",
        )
    ]
    if report.pairs:
        by_mark = {i.mark: i.name for i in report.increments}
        cosines = [
            Series(f"{by_mark[one]} · {by_mark[other]}", len(names) + i, tuple(f.cosines[i] for f in blocks))
            for i, (one, other) in shown_pairs(report)
        ]
        panels.append(
            Panel("Cosine between increments (0: orthogonal)", tuple(cosines), _cosine_scale(cosines), zero=True)
        )
    said = f"warns below {_plain(RETAINED)}"
    title = f"Retained after rounding to {report.dtype}"
    panels.append(Panel(title, tuple(kept), _kept_scale(kept), RETAINED, said, legend=False))
    return panels


def _values(series: Sequence[Series]) -> list[float]:
    return [value for one in series for value in one.values if value is not None]


def _shift_scale(series: Sequence[Series], limit: float) -> Scale:
    """Logarithmic where the increments are of very different sizes."""
    found = [value for value in _values(series) if value > 0] or [limit]
    top, bottom = max(*found, limit), min(*found, limit)
    if top / bottom <= _SPAN:
        return linear(0.0, top * 1.12, _plain)
    low, high = math.floor(math.log10(bottom)), math.log10(top * 1.5)
    step = max(1, math.ceil((high - low) / 6))
    ticks = [(10.0**power, _plain(10.0**power)) for power in range(low, math.floor(high) + 1, step)]
    return Scale(tuple(ticks), lambda v: (math.log10(max(v, 10.0**low)) - low) / (high - low))


def _plain(share: float) -> str:
    """A tick's percent, without zeros that say nothing."""
    return f"{100 * share:.4g} %"


def _cosine_scale(series: Sequence[Series]) -> Scale:
    half = min(1.05, max([0.05, *(abs(value) * 1.15 for value in _values(series))]))
    return linear(-half, half, lambda v: f"{v:+.4g}" if v else "0")


def _kept_scale(series: Sequence[Series]) -> Scale:
    found = _values(series) or [1.0]
    return linear(min(0.85, *found, 1.0) - 0.02, max(1.03, *found) + 0.02, _plain)


def _head(pen: Pen, report: Report) -> None:
    wide = WIDTH - 40 - _RIGHT
    pen.text((40, 32), fitted(PurePath(report.path).name, _TITLE, wide), _TITLE)
    if report.whole is None:
        return
    said = f"whole model   merged: {percent(report.whole.merged)}"
    for increment, share in zip(report.increments, report.whole.added, strict=True):
        longer = f"{said}   {increment.name}: {percent(share)}"
        said = longer if length(longer, _TEXT) <= wide else said
    pen.text((40, 32 + _TITLE + 14), said, _TEXT, SOFT)


def _legend_lines(panel: Panel) -> list[list[tuple[float, Series]]]:
    """Lines of (x, series)."""
    if not panel.legend:
        return []
    lines: list[list[tuple[float, Series]]] = [[]]
    x = 40.0
    for series in panel.series:
        wide = 44 + length(series.name, _TEXT) + 30
        if lines[-1] and x + wide > WIDTH - _RIGHT:
            lines.append([])
            x = 40.0
        lines[-1].append((x, series))
        x += wide
    return lines


def _legend(pen: Pen, panel: Panel, lines: Sequence[Sequence[tuple[float, Series]]], top: int) -> None:
    y = top - len(lines) * (_TEXT + 12) - (10 if lines else 24)
    pen.text((40, y - _HEAD - 6), panel.title, _HEAD)
    if panel.said:
        right = WIDTH - _RIGHT
        pen.text((right, y - _HEAD - 2), panel.said, _TEXT, WARN, "ra")
        start = right - length(panel.said, _TEXT) - 56
        pen.dashes(start, start + 46, y - _HEAD + 12, WARN)
    for line in lines:
        for x, series in line:
            middle = y + _TEXT / 2 + 3
            pen.line([(x, middle), (x + 34, middle)], series.color, 3)
            if series.style >= 0:
                pen.mark((x + 17, middle), series.style, series.color, 7)
            pen.text((x + 44, y), fitted(series.name, _TEXT, WIDTH - _RIGHT - x - 44), _TEXT)
        y += _TEXT + 12


def _panel(pen: Pen, panel: Panel, top: int, columns: Sequence[float]) -> None:
    right = WIDTH - _RIGHT

    def height(value: float) -> float:
        return top + _PANEL * (1 - panel.scale.place(value))

    for value, label in panel.scale.ticks:
        pen.line([(_LEFT, height(value)), (right, height(value))], GRID, 1)
        pen.text((_LEFT - 14, height(value)), label, _TEXT, SOFT, "rm")
    if panel.zero:
        pen.line([(_LEFT, height(0.0)), (right, height(0.0))], SOFT, 2)
    if panel.threshold is not None:
        pen.dashes(_LEFT, right, height(panel.threshold), WARN)
    size = 7 if len(columns) <= 30 else 6
    for series in panel.series:
        for run in _runs(series.values, columns):
            points = [(x, height(value)) for x, value in run]
            if len(points) == 1 and series.style < 0:
                (x, y) = points[0]
                points = [(x - 10, y), (x + 10, y)]
            if len(points) > 1:
                pen.line(points, series.color, 3)
            for point in points:
                if series.style >= 0:
                    pen.mark(point, series.style, series.color, size)


def _runs(values: Sequence[Share], columns: Sequence[float]) -> Iterator[list[tuple[float, float]]]:
    """Points to be joined: neighbours in the same group of blocks that have values."""
    run: list[tuple[float, float]] = []
    for i, (x, value) in enumerate(zip(columns, values, strict=True)):
        far = i > 0 and x - columns[i - 1] > 1.4 * _pitch(columns)
        if run and (far or value is None):
            yield run
            run = []
        if value is not None:
            run.append((x, value))
    if run:
        yield run


def _pitch(columns: Sequence[float]) -> float:
    return min((b - a for a, b in pairwise(columns)), default=1.0)


def _columns(blocks: Sequence[str]) -> list[float]:
    """The middle of each block; groups stand apart by a gap."""
    groups = [block.partition(".")[0] for block in blocks]
    gaps = [0.0]
    for before, group in pairwise(groups):
        gaps.append(gaps[-1] + 1 + (0.8 if before != group else 0))
    pitch = (WIDTH - _LEFT - _RIGHT) / (gaps[-1] + 1)
    return [_LEFT + pitch * (gap + 0.5) for gap in gaps]


def _blocks(pen: Pen, blocks: Sequence[str], columns: Sequence[float], top: int) -> None:
    pitch = _pitch(columns)
    every = 1 if pitch > 34 else 5
    groups: dict[str, list[float]] = {}
    for block, x in zip(blocks, columns, strict=True):
        group, _, number = block.partition(".")
        pen.line([(x, top), (x, top + 7)], SOFT, 1)
        if not number:
            pen.upright((x, top + 14), group, _TEXT, SOFT)
            continue
        groups.setdefault(group, []).append(x)
        if int(number) % every == 0:
            pen.text((x, top + 12), number, _TEXT, SOFT, "ma")
    for group, middles in groups.items():
        left, right = middles[0] - pitch / 3, middles[-1] + pitch / 3
        pen.line([(left, top + 48), (right, top + 48)], SOFT, 2)
        pen.text(((left + right) / 2, top + 56), f"{group} blocks" if right - left > 150 else group, _TEXT, INK, "ma")
