"""The laboratory's pictures: pass rates, training curves, seconds, and what each row drew."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from clvr import chart
from clvr.chart import Axis, Chart, Line, Point
from clvr.images import load_image
from clvr.pen import INK, SOFT, WARN, Pen, fitted

from .. import trackers
from .found import Found
from .rows import PICTURES, ROWS, Measured, Row

PLACES = ("one shot", "rewritten", "CLVR", "+ SFT", "+ simple RL", "+ PPRL")
_GOOD = "#12724a"
_TILE, _GAP, _LEFT, _TOP = 104, 10, 40, 120  # pixels


def rates(found: Found) -> Image.Image:
    """Overall pass rates of ours, with intervals, above the paper's printed ones."""
    ours = tuple(
        Line(name, tuple(_rate(found, row) for row in found.measured() if row.few == few), joined=False)
        for name, few in (("not distilled", False), ("distilled or merged", True))
    )
    theirs = tuple(
        Line(name, tuple(Point(_place(r), r.paper[-1]) for r in ROWS if r.few == few and r.paper), joined=False)
        for name, few in (("28 steps, guidance 4", False), ("4 steps, no guidance", True))
    )
    x = Axis("", -0.25, len(PLACES) - 0.75, label=lambda n: PLACES[round(n)])
    shown = [
        Chart("built-in world", x, Axis("share of prompts that pass, 95 % interval", 0, 1), ours),
        Chart("the paper, FLUX.2 klein 4B on GenEval", x, Axis("overall", 0.6, 1), theirs),
    ]
    return chart.draw("From the base to the merged model", shown)


def _place(row: Row) -> float:
    """Of the row on the axis; those of few steps stand a little to the right."""
    return PLACES.index(row.short) + (0.06 if row.few else -0.06)


def _rate(found: Found, row: Row) -> Point:
    rate = found.rate(row.key)
    return Point(_place(row), rate.share, *rate.interval)


def curves(found: Found) -> Image.Image | None:
    """Losses and rewards over the trainings' steps; None where nothing was trained yet."""
    wanted = (
        ("distillation: distance to the teacher's pictures", "step", (("distilled", "distance"),)),
        ("SFT: loss", "step", (("sft", "loss"),)),
        ("SFT: loss on held trajectories", "step", (("sft", "held"),)),
        ("RL: mean reward, each by its own measure", "epoch", (("simple", "reward"), ("pprl", "reward"))),
        (
            "RL: the same on the fixed tasks",
            "epoch",
            (("simple", "fixed"), ("pprl", "fixed")),
        ),
        ("RL: relative shift of the weights", "epoch", (("simple", "shift"), ("pprl", "shift"))),
    )
    shown = []
    for title, unit, sources in wanted:
        lines = [Line(n, _logged(found.folders[n], q), marked=False) for n, q in sources if n in found.folders]
        lines = [line for line in lines if line.points]
        if lines:
            shown.append(Chart(title, Axis(unit), Axis("", label=lambda v: f"{v:.3g}"), tuple(lines)))
    return chart.draw("What the trainings logged", shown) if shown else None


def _logged(folder: Path, quantity: str, most: int = 200) -> tuple[Point, ...]:
    """A logged quantity, averaged to at most so many points."""
    rows = [row for row in trackers.read(folder / "log.csv") if row.get(quantity)]
    size = max(1, -(-len(rows) // most))
    parts = [rows[n : n + size] for n in range(0, len(rows), size)]
    return tuple(
        Point(int(part[-1]["step"]) + 1, statistics.fmean(float(row[quantity]) for row in part)) for part in parts
    )


def seconds(found: Found) -> Image.Image | None:
    """Table 8: seconds of a trajectory by its number of pictures."""
    lines = tuple(
        Line(name, tuple(Point(n, statistics.fmean(t)) for n, t in by_pictures(found.clocks[model])))
        for model, name in (("base", "base, 28 steps"), ("dswm-pprl", "merged, 4 steps"))
        if found.clocks.get(model)
    )
    if not lines:
        return None
    axis = Axis("seconds of a trajectory", log=True)
    return chart.draw("Seconds of whole trajectories", [Chart("", Axis("pictures"), axis, lines)])


def by_pictures(runs: Sequence[Measured]) -> Iterator[tuple[int, list[float]]]:
    """Seconds of the runs of each length."""
    for count in sorted({run.images for run in runs}):
        yield count, [run.seconds for run in runs if run.images == count]


def sheet(found: Found) -> Image.Image | None:
    """The same prompts by every row: one line a prompt, framed green where all checks hold, red where not."""
    rows = [row for row in found.measured() if (found.folders[f"row-{row.key}"] / PICTURES).is_dir()]
    drawn = {row.key: {int(p.stem): p for p in _folder(found, row).glob("*.png")} for row in rows}
    tasks = sorted(set.intersection(*(set(d) for d in drawn.values()))) if drawn else []
    if not tasks:
        return None
    runs = {row.key: {run.task: run for run in found.rows[row.key]} for row in rows}
    width = 2 * _LEFT + len(rows) * (_TILE + _GAP)
    pen = Pen(width, _TOP + len(tasks) * (_TILE + 44) + 20)
    for column, row in enumerate(rows):
        _head(pen, row, _LEFT + column * (_TILE + _GAP))
    pictures: list[tuple[Path, int, int]] = []
    for line, task in enumerate(tasks):
        top = _TOP + line * (_TILE + 44)
        pen.text((_LEFT, top), fitted(runs[rows[0].key][task].prompt, 15, width - 2 * _LEFT), 15)
        for column, row in enumerate(rows):
            x, y = _LEFT + column * (_TILE + _GAP), top + 24
            corners = [(x, y), (x + _TILE, y), (x + _TILE, y + _TILE), (x, y + _TILE), (x, y)]
            pen.line(corners, _GOOD if runs[row.key][task].passed else WARN, 6)
            pictures.append((drawn[row.key][task], x, y))
    page = pen.image()
    for path, x, y in pictures:
        page.paste(load_image(path).resize((_TILE - 4, _TILE - 4), Image.Resampling.NEAREST), (x + 2, y + 2))
    return page


def _folder(found: Found, row: Row) -> Path:
    return found.folders[f"row-{row.key}"] / PICTURES


def _head(pen: Pen, row: Row, x: int) -> None:
    pen.text((x, 66), row.short, 16, INK)
    pen.text((x, 90), "few steps" if row.few else "many steps", 14, SOFT)
    if row.key == ROWS[0].key:
        pen.text((x, 22), "The same prompts by every row: green where all checks hold, red where not", 22, INK)
