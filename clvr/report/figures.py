"""Drawn parts of the page, as inline SVG in percentages: they keep their line widths at every size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..trajectory import Box, Outcome
from .markup import NOTHING, Markup, el, join

_GLYPHS = {
    "pass": "M3.5 8.5l3 3 6-7",
    "fail": "M4 4l8 8M12 4l-8 8",
    "unjudged": "M5.5 6a2.5 2.5 0 1 1 3.6 2.2c-.7.4-1.1.9-1.1 1.6M8 12.6v.1",
    "skipped": "M4 8h8",
    "back": "M6 3.5L2.5 7 6 10.5M2.5 7h7a3.5 3.5 0 0 1 0 7H7",
    "note": "M8 1.8a6.2 6.2 0 1 1 0 12.4A6.2 6.2 0 0 1 8 1.8M8 5v3.2M8 11v.1",
}
WORDS: Mapping[Outcome, str] = {
    "pass": "passed",
    "fail": "failed",
    "unjudged": "not judged",
    "skipped": "skipped",
}


def icon(name: str) -> Markup:
    """A 16 px glyph that takes the text's colour; what it means stands beside it as text."""
    path = el("path", d=_GLYPHS[name])
    return el("svg", path, class_="icon", viewBox="0 0 16 16", aria_hidden="true", focusable="false")


def mark(outcome: Outcome) -> Markup:
    """An outcome as a coloured disc, with its word for those who do not see it."""
    return el("span", icon(outcome), el("span", WORDS[outcome], class_="unseen"), class_=f"mark {outcome}")


def percent(share: float | None) -> str:
    """Whole percent, a half upwards as the panel in the browser rounds; 100 only when nothing is missing."""
    if share is None:
        return "–"
    return f"{min(math.floor(share * 100 + 0.5), 100 if share >= 1 else 99)}%"


def duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def ring(share: float | None) -> Markup:
    """The score as a ring with its number inside."""
    done = 0.0 if share is None else 100 * share
    arc = el("circle", class_="arc", cx=36, cy=36, r=31, pathLength=100, stroke_dasharray=f"{done:.2f} 101")
    track = el("circle", class_="track", cx=36, cy=36, r=31)
    number = el("text", percent(share), x=36, y=36, text_anchor="middle", dominant_baseline="central")
    parts = (track, arc if done else NOTHING, number)
    spoken = "Score: not judged" if share is None else f"Score: {percent(share)}"
    return el("svg", *parts, class_="ring", viewBox="0 0 72 72", role="img", aria_label=spoken)


def meter(used: float, limit: float) -> Markup:
    """A bar of how much of a limit is used. Over the limit it is full."""
    share = max(0.0, min(1.0, used / limit))
    bar = el("rect", class_="fill", x=0, y=0, width=f"{share * 100:.2f}%", height="100%", rx=3)
    return el("svg", bar, class_="meter", aria_hidden="true", focusable="false")


def stacked(parts: Iterable[tuple[str, float]], total: float, spoken: str) -> Markup:
    """Amounts by name as one bar that is `total` long."""
    bars, start = [], 0.0
    for name, amount in parts:
        width = 100 * amount / total if total > 0 else 0.0
        title = el("title", f"{name}: {duration(amount)}")
        place = {"x": f"{start:.2f}%", "y": 0, "width": f"{width:.2f}%", "height": "100%"}
        bars.append(el("rect", title, class_=f"phase {phase_class(name)}", **place))
        start += width
    return el("svg", *bars, class_="stacked", role="img", aria_label=spoken)


def phase_class(name: str) -> str:
    return f"phase-{name}" if name in ("plan", "encode", "draw", "decode", "verify") else "phase-other"


@dataclass(frozen=True)
class Region:
    """Boxes that one check's evidence points at. `key` ties them to the check's row, `number` is shown."""

    key: str
    number: str
    outcome: Outcome
    boxes: Sequence[Box]


def overlay(regions: Sequence[Region]) -> Markup:
    """Boxes over a picture: every length is a share of the picture's width or height."""
    drawn = [_box(region, box) for region in regions for box in region.boxes]
    return el("svg", *drawn, class_="overlay", aria_hidden="true", focusable="false") if drawn else NOTHING


def _box(region: Region, box: Box) -> Markup:
    left, right = sorted(min(max(v, 0.0), 1.0) for v in (box[0], box[2]))
    top, bottom = sorted(min(max(v, 0.0), 1.0) for v in (box[1], box[3]))
    place = {
        "x": _share(left),
        "y": _share(top),
        "width": _share(right - left),
        "height": _share(bottom - top),
    }
    frame = (el("rect", class_="halo", rx=3, **place), el("rect", class_="edge", rx=3, **place))
    wide = 10 + 8 * len(region.number)
    plate = el("rect", class_="plate", width=wide, height=19, rx=4)
    number = el("text", region.number, x=wide / 2, y=10, text_anchor="middle", dominant_baseline="central")
    tag = el("svg", plate, number, class_="tag", x=place["x"], y=place["y"], width=wide, height=19)
    return el("g", *frame, tag, class_=f"box {region.outcome} {region.key}", data_number=region.number)


def _share(value: float) -> str:
    return f"{100 * value:.4g}%"


@dataclass(frozen=True)
class Point:
    """One round in the score chart. `start` is the position of the round it continued from."""

    score: float | None
    accepted: bool
    best: bool
    start: int | None


_TOP, _SPAN = 16.0, 68.0  # percent of the chart's height: where a score of 1 lies, and how far down 0 is


def score_chart(points: Sequence[Point], threshold: float | None) -> Markup:
    """Score over rounds, one column a round. Rolled-back rounds hang off the path as hollow points."""
    grid = join(*(_rule(level) for level in (0.0, 0.5, 1.0)))
    goal = NOTHING
    if threshold is not None:
        goal = join(_rule(threshold, "goal"), el("text", "Goal", class_="aim", x=0, y=_height(threshold), dy=-7))
    lines = join(*(_segment(points, i) for i in range(len(points))))
    dots = join(*(_dot(points, i) for i in range(len(points))))
    spoken = "Score by round: " + ", ".join(f"{i + 1}: {percent(p.score)}" for i, p in enumerate(points))
    return el("svg", grid, goal, lines, dots, class_="chart", role="img", aria_label=spoken)


def _height(score: float) -> str:
    return f"{_TOP + _SPAN * (1 - score):.2f}%"


def _column(index: int, count: int) -> str:
    return f"{100 * (index + 0.5) / count:.2f}%"


def _rule(level: float, kind: str = "") -> Markup:
    y = _height(level)
    return el("line", class_=f"rule {kind}".strip(), x1="0%", x2="100%", y1=y, y2=y)


def _segment(points: Sequence[Point], index: int) -> Markup:
    point = points[index]
    before = points[point.start] if point.start is not None else None
    if before is None or before.score is None or point.score is None or point.start is None:
        return NOTHING
    ends = {
        "x1": _column(point.start, len(points)),
        "y1": _height(before.score),
        "x2": _column(index, len(points)),
        "y2": _height(point.score),
    }
    return el("line", class_="path" if point.accepted else "path back", **ends)


def _dot(points: Sequence[Point], index: int) -> Markup:
    point = points[index]
    x = _column(index, len(points))
    if point.score is None:
        return el("text", "not judged", class_="faint", x=x, y=_height(0.5), text_anchor="middle")
    y = _height(point.score)
    kind = "dot" + ("" if point.accepted else " back") + (" best" if point.best else "")
    before = points[point.start].score if point.start is not None else None
    below = not point.accepted or (before is not None and before > point.score)
    label = el("text", percent(point.score), x=x, y=y, dy=22 if below else -12, text_anchor="middle")
    return join(el("circle", class_=kind, cx=x, cy=y, r=6), label)
