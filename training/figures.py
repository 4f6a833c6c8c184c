"""What training looks like: pictures that should be alike, one above the other, and a log's quantities as curves."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from PIL import Image, ImageDraw, ImageFont

from clvr import chart
from clvr.chart import Axis, Chart, Line, Point
from clvr.pen import INK, PAPER, SOFT

from . import trackers

_SIDE, _GAP, _MARGIN, _LABEL, _WORDS = 128, 8, 16, 84, 76  # pixels
_MARKED, _MOST = 40, 200
"""Points of a curve from which on they are not marked, and of which each is the mean of several."""


def sheet(texts: Sequence[str], rows: Mapping[str, Sequence[Image.Image]]) -> Image.Image:
    """A column for each text, of which the end is shown, for it says what to draw; a row of pictures for each name."""
    height = 2 * _MARGIN + _WORDS + len(rows) * (_SIDE + _GAP)
    page = Image.new("RGB", (2 * _MARGIN + _LABEL + len(texts) * (_SIDE + _GAP), height), PAPER)
    pen, font, small = ImageDraw.Draw(page), ImageFont.load_default(14), ImageFont.load_default(11)
    for row, (name, images) in enumerate(rows.items()):
        y = _MARGIN + _WORDS + row * (_SIDE + _GAP)
        pen.text((_MARGIN, y + _SIDE // 2 - 8), name, INK, font)
        for column, image in enumerate(images):
            filter_ = Image.Resampling.NEAREST if image.width < _SIDE else Image.Resampling.LANCZOS
            page.paste(image.resize((_SIDE, _SIDE), filter_), (_column(column), y))
    for column, text in enumerate(texts):
        lines = textwrap.wrap(text.rsplit("\n", 1)[-1], 21, max_lines=5, placeholder="…")
        pen.multiline_text((_column(column), _MARGIN), "\n".join(lines), SOFT, small, spacing=3)
    return page


def _column(number: int) -> int:
    return _MARGIN + _LABEL + number * (_SIDE + _GAP)


def curves(log: Path, title: str, *charts: tuple[str, Axis, Axis, Mapping[str, str]]) -> Image.Image:
    """Each chart: its title, its axes, and what is said of the quantities of the log that it shows. A quantity that
    the log lacks is left out, and a row that lacks it is passed over. Of many rows neighbours are averaged."""
    rows = trackers.read(log)
    return chart.draw(title, [Chart(name, x, y, _lines(rows, told)) for name, x, y, told in charts])


def _lines(rows: Sequence[Mapping[str, str]], told: Mapping[str, str]) -> tuple[Line, ...]:
    points = {
        said: tuple(Point(int(row["step"]) + 1, float(row[name])) for row in rows if row.get(name))
        for name, said in told.items()
    }
    return tuple(Line(said, _thinned(found), marked=len(found) < _MARKED) for said, found in points.items() if found)


def _thinned(points: tuple[Point, ...]) -> tuple[Point, ...]:
    """At most _MOST, each the mean of as many neighbours."""
    size = -(-len(points) // _MOST)
    groups = [points[n : n + size] for n in range(0, len(points), size)]
    return tuple(Point(fmean(p.x for p in group), fmean(p.y for p in group)) for group in groups)
