"""What a distillation looks like: the teacher's pictures over those of few steps, and the distance between them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from clvr import chart
from clvr.chart import Axis, Chart, Line, Point
from clvr.pen import INK, PAPER, SOFT

from . import trackers

_SIDE, _GAP, _MARGIN, _LABEL, _WORDS = 128, 8, 16, 84, 76  # pixels


def sheet(texts: Sequence[str], teacher: Sequence[Image.Image], drawn: Sequence[Image.Image], by: str) -> Image.Image:
    """A column for each prompt: the end of its text, which says what to draw, and both pictures. `by`: who drew the
    lower ones."""
    height = 2 * _MARGIN + _WORDS + 2 * (_SIDE + _GAP)
    page = Image.new("RGB", (2 * _MARGIN + _LABEL + len(texts) * (_SIDE + _GAP), height), PAPER)
    pen, font, small = ImageDraw.Draw(page), ImageFont.load_default(14), ImageFont.load_default(11)
    for row, (name, images) in enumerate((("teacher", teacher), (by, drawn))):
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


def curve(log: Path) -> Image.Image:
    """The distance to the teacher's pictures, and the loss of each of the student's steps."""
    rows = trackers.read(log)
    steps = sorted({name for row in rows for name in row if name.startswith("loss_")})
    lines = tuple(Line(f"step {name[5:]}", _points(rows, name), marked=False) for name in steps)
    return chart.draw(
        "Distillation",
        [
            Chart("Held trajectories", Axis("update"), Axis("distance"), (Line("", _points(rows, "distance")),)),
            Chart("Velocity of the student's steps", Axis("update"), Axis("squared error", log=True), lines),
        ],
    )


def _points(rows: Sequence[dict[str, str]], name: str) -> tuple[Point, ...]:
    return tuple(Point(int(row["step"]) + 1, float(row[name])) for row in rows if row.get(name))
