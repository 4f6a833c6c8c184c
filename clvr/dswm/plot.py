"""A merge's report as a picture: relative shift, cosine and retained projection over the blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import PurePath

from PIL import Image, ImageDraw, ImageFont

from .report import Report, Share
from .words import RETAINED, percent, shown_pairs

WIDTH = 1100
_FINE = 2
"""Drawn so many times larger and scaled down, because Pillow draws lines without smoothing."""
_PAPER, _INK, _SOFT, _GRID, _WARN = "#ffffff", "#1a1c21", "#565b65", "#e3e1db", "#b93118"
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's, which colour-blind people tell apart; shapes tell them apart without colour."""
_SHAPES = ("disc", "square", "triangle", "diamond")
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
        return _INK if self.style < 0 else _COLORS[self.style % len(_COLORS)]


@dataclass(frozen=True)
class Scale:
    """The vertical axis: ticks with their labels, and where a value lies from 0 (bottom) to 1."""

    ticks: tuple[tuple[float, str], ...]
    place: Callable[[float], float]


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
        pen.text((_LEFT, y), "Nothing was measured.", _TEXT, _SOFT)
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
        return _linear(0.0, top * 1.12, _plain)
    low, high = math.floor(math.log10(bottom)), math.log10(top * 1.5)
    step = max(1, math.ceil((high - low) / 6))
    ticks = [(10.0**power, _plain(10.0**power)) for power in range(low, math.floor(high) + 1, step)]
    return Scale(tuple(ticks), lambda v: (math.log10(max(v, 10.0**low)) - low) / (high - low))


def _plain(share: float) -> str:
    """A tick's percent, without zeros that say nothing."""
    return f"{100 * share:.4g} %"


def _cosine_scale(series: Sequence[Series]) -> Scale:
    half = min(1.05, max([0.05, *(abs(value) * 1.15 for value in _values(series))]))
    return _linear(-half, half, lambda v: f"{v:+.4g}" if v else "0")


def _kept_scale(series: Sequence[Series]) -> Scale:
    found = _values(series) or [1.0]
    return _linear(min(0.85, *found, 1.0) - 0.02, max(1.03, *found) + 0.02, _plain)


def _linear(low: float, high: float, label: Callable[[float], str]) -> Scale:
    """About five round ticks."""
    rough = (high - low) / 5.5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9)
    ticks = tuple((n * step, label(n * step)) for n in range(first, count + 1))
    return Scale(ticks, lambda v: (min(max(v, low), high) - low) / (high - low))


class Pen:
    """Drawing in pixels of the finished picture."""

    def __init__(self, width: int, height: int) -> None:
        self._canvas = Image.new("RGB", (width * _FINE, height * _FINE), _PAPER)
        self._pen = ImageDraw.Draw(self._canvas)

    def image(self) -> Image.Image:
        size = self._canvas.width // _FINE, self._canvas.height // _FINE
        return self._canvas.resize(size, Image.Resampling.LANCZOS)

    def text(self, at: tuple[float, float], text: str, size: int, color: str = _INK, anchor: str = "la") -> None:
        self._pen.text((at[0] * _FINE, at[1] * _FINE), text, fill=color, font=_font(size * _FINE), anchor=anchor)

    def upright(self, at: tuple[float, float], text: str, size: int, color: str = _INK) -> None:
        """Turned by a quarter, read upwards; `at` is the middle of its upper end."""
        font = _font(size * _FINE)
        left, top, right, bottom = font.getbbox(text)
        word = Image.new("L", (math.ceil(right - left), math.ceil(bottom - top)))
        ImageDraw.Draw(word).text((-left, -top), text, fill=255, font=font)
        word = word.rotate(90, expand=True)
        x, y = round(at[0] * _FINE - word.width / 2), round(at[1] * _FINE)
        self._canvas.paste(color, (x, y), word)

    def line(self, points: Sequence[tuple[float, float]], color: str, width: float = 1.0) -> None:
        scaled = [(x * _FINE, y * _FINE) for x, y in points]
        self._pen.line(scaled, fill=color, width=max(1, round(width * _FINE)), joint="curve")

    def dashes(self, left: float, right: float, y: float, color: str) -> None:
        x = left
        while x < right:
            self.line([(x, y), (min(x + 11, right), y)], color, 2)
            x += 19

    def mark(self, at: tuple[float, float], style: int, color: str, size: float) -> None:
        x, y, r = at[0] * _FINE, at[1] * _FINE, size * _FINE
        shape = _SHAPES[style % len(_SHAPES)]
        if shape == "disc":
            self._pen.ellipse((x - r, y - r, x + r, y + r), fill=color, outline=_PAPER, width=_FINE)
        elif shape == "square":
            self._pen.rectangle((x - r, y - r, x + r, y + r), fill=color, outline=_PAPER, width=_FINE)
        elif shape == "triangle":
            corners = [(x, y - 1.3 * r), (x + 1.2 * r, y + r), (x - 1.2 * r, y + r)]
            self._pen.polygon(corners, fill=color, outline=_PAPER, width=_FINE)
        else:
            corners = [(x, y - 1.4 * r), (x + 1.4 * r, y), (x, y + 1.4 * r), (x - 1.4 * r, y)]
            self._pen.polygon(corners, fill=color, outline=_PAPER, width=_FINE)


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _length(text: str, size: int) -> float:
    return _font(size * _FINE).getlength(text) / _FINE


def _fitted(text: str, size: int, width: float) -> str:
    """Shortened in its middle."""
    if _length(text, size) <= width:
        return text
    keep = len(text) - 1
    while keep > 2 and _length(f"{text[: keep // 2]}…{text[-(keep - keep // 2) :]}", size) > width:
        keep -= 1
    return f"{text[: keep // 2]}…{text[-(keep - keep // 2) :]}"


def _head(pen: Pen, report: Report) -> None:
    wide = WIDTH - 40 - _RIGHT
    pen.text((40, 32), _fitted(PurePath(report.path).name, _TITLE, wide), _TITLE)
    if report.whole is None:
        return
    said = f"whole model   merged: {percent(report.whole.merged)}"
    for increment, share in zip(report.increments, report.whole.added, strict=True):
        longer = f"{said}   {increment.name}: {percent(share)}"
        said = longer if _length(longer, _TEXT) <= wide else said
    pen.text((40, 32 + _TITLE + 14), said, _TEXT, _SOFT)


def _legend_lines(panel: Panel) -> list[list[tuple[float, Series]]]:
    """Lines of (x, series)."""
    if not panel.legend:
        return []
    lines: list[list[tuple[float, Series]]] = [[]]
    x = 40.0
    for series in panel.series:
        wide = 44 + _length(series.name, _TEXT) + 30
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
        pen.text((right, y - _HEAD - 2), panel.said, _TEXT, _WARN, "ra")
        start = right - _length(panel.said, _TEXT) - 56
        pen.dashes(start, start + 46, y - _HEAD + 12, _WARN)
    for line in lines:
        for x, series in line:
            middle = y + _TEXT / 2 + 3
            pen.line([(x, middle), (x + 34, middle)], series.color, 3)
            if series.style >= 0:
                pen.mark((x + 17, middle), series.style, series.color, 7)
            pen.text((x + 44, y), _fitted(series.name, _TEXT, WIDTH - _RIGHT - x - 44), _TEXT)
        y += _TEXT + 12


def _panel(pen: Pen, panel: Panel, top: int, columns: Sequence[float]) -> None:
    right = WIDTH - _RIGHT

    def height(value: float) -> float:
        return top + _PANEL * (1 - panel.scale.place(value))

    for value, label in panel.scale.ticks:
        pen.line([(_LEFT, height(value)), (right, height(value))], _GRID, 1)
        pen.text((_LEFT - 14, height(value)), label, _TEXT, _SOFT, "rm")
    if panel.zero:
        pen.line([(_LEFT, height(0.0)), (right, height(0.0))], _SOFT, 2)
    if panel.threshold is not None:
        pen.dashes(_LEFT, right, height(panel.threshold), _WARN)
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
        pen.line([(x, top), (x, top + 7)], _SOFT, 1)
        if not number:
            pen.upright((x, top + 14), group, _TEXT, _SOFT)
            continue
        groups.setdefault(group, []).append(x)
        if int(number) % every == 0:
            pen.text((x, top + 12), number, _TEXT, _SOFT, "ma")
    for group, middles in groups.items():
        left, right = middles[0] - pitch / 3, middles[-1] + pitch / 3
        pen.line([(left, top + 48), (right, top + 48)], _SOFT, 2)
        pen.text(((left + right) / 2, top + 56), f"{group} blocks" if right - left > 150 else group, _TEXT, _INK, "ma")
