"""The tables and plots of benchmarks/search.py."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL.Image import Image

from clvr import probe
from clvr.intervals import normal, wilson
from clvr.pen import COLORS, GRID, INK, SOFT, Pen, Scale, linear

PLOTTED = ("one shot", "best of 8", "refinement only", "clvr", "director", "strokes", "auto")
AGAINST = ("one shot", "one shot, 8 times the denoising steps", "best of 8", "refinement only", "clvr")


@dataclass(frozen=True)
class Result:
    """One run. `passed` and `recall` are the result's, `first_recall` the first picture's, as measured."""

    method: str
    task: int
    tier: int
    complexity: float
    passed: bool
    recall: float
    first_passed: bool
    first_recall: float
    images: int
    rounds: int
    nfe: int
    rolled_back: int
    reason: str
    seconds: float = 0.0
    tactics: list[str] = field(default_factory=list)


def write(rows: Sequence[Result], methods: Sequence[tuple[str, str]], out: Path, how: str) -> list[Path]:
    """search.md with its plots, in `out`. `methods`: name and group, in the order of the tables."""
    of = {name: [row for row in rows if row.method == name] for name, _ in methods}
    groups: dict[str, list[str]] = {}
    for name, group in methods:
        if of[name]:
            groups.setdefault(group, []).append(name)
    everyone = groups.get("methods", [])
    half = {row.task for name in groups.get("parts", []) for row in of[name]}
    of["auto, same prompts"] = [row for row in of.get("auto", []) if row.task in half]
    parts = [
        _head(of, how),
        _by_tier(of, everyone),
        _claims(of),
        _areas(of, everyone),
        _rounds(of, [n for n in ("clvr", "director", "strokes", "auto") if of.get(n)]),
        _parts(of, groups.get("parts", [])),
        _budget(of, groups.get("budget", [])),
        _robust(of, groups.get("robust", [])),
    ]
    text = out / "search.md"
    text.write_text("\n\n".join("\n".join(part) for part in parts if part) + "\n")
    plots = {
        "search_tiers.png": tier_plot(of),
        "search_budget.png": budget_plot(of, groups.get("budget", [])),
        "search_robust.png": robust_plot(of, groups.get("robust", [])),
    }
    made = [text]
    for name, image in plots.items():
        if image is not None:
            image.save(out / name)
            made.append(out / name)
    return made


def _head(of: dict[str, list[Result]], how: str) -> list[str]:
    tasks = {row.task: row for rows in of.values() for row in rows}
    values = [row.complexity for row in tasks.values()]
    counts = Counter(row.tier for row in tasks.values())
    tiers = ", ".join(str(counts[t]) for t in sorted(counts))
    return [
        "# Policies at equal cost, in the built-in world",
        f"Made by `python -m benchmarks.search`: {len(tasks)} held-back prompts ({tiers} by tier, quartiles of A.7's "
        f"complexity {min(values):.1f} to {max(values):.1f}), {how}. A budget is given in pictures; a run that "
        "satisfies its goal earlier stops earlier. Passes are strict: every check of the checklist, as measured. "
        "95 % intervals: Wilson for passes, normal for means.",
    ]


def _by_tier(of: dict[str, list[Result]], names: Sequence[str]) -> list[str]:
    tiers = sorted({row.tier for name in names for row in of[name]})
    lines = [
        "## Passes by tier",
        f"| method | {' | '.join(f'tier {t}' for t in tiers)} | all | recall | pictures | NFE |",
        f"| --- |{' --- |' * (len(tiers) + 4)}",
    ]
    for name in names:
        rows = of[name]
        cells = [passes(r for r in rows if r.tier == t) for t in tiers]
        recall, pictures = mean(r.recall for r in rows), statistics.fmean(r.images for r in rows)
        nfe = statistics.fmean(r.nfe for r in rows)
        lines.append(f"| {name} | {' | '.join([*cells, passes(rows), recall])} | {pictures:.2f} | {nfe:.0f} |")
    return [*lines, "", "![passes over complexity](search_tiers.png)"]


def _claims(of: dict[str, list[Result]]) -> list[str]:
    """auto against others, prompt by prompt."""
    auto = {row.task: row for row in of.get("auto", [])}
    tiers = sorted({row.tier for row in auto.values()})
    lines = [
        "## auto against the others, prompt by prompt",
        "Difference of the pass rates on the same prompts, with the normal interval of the mean difference. It holds "
        "where the interval lies above zero.",
        "",
        f"| auto minus | {' | '.join(f'tier {t}' for t in tiers)} |",
        f"| --- |{' --- |' * len(tiers)}",
    ]
    for name in AGAINST:
        other = {row.task: row for row in of.get(name, [])}
        if not other:
            continue
        cells = []
        for tier in tiers:
            pairs = [(auto[t].passed, other[t].passed) for t in auto if t in other and auto[t].tier == tier]
            cells.append(_difference([int(a) - int(b) for a, b in pairs]))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _difference(values: Sequence[int]) -> str:
    if len(values) < 2:
        return ""
    low, high = normal(values)
    return f"{statistics.fmean(values):+.3f} [{low:+.3f}, {high:+.3f}]"


def _areas(of: dict[str, list[Result]], names: Sequence[str]) -> list[str]:
    """A.7: area under pass rate and recall over the medians of ten tiers, and that area over its widest."""
    values = [row.complexity for row in of[names[0]]] if names else []
    if len(values) < 20:
        return []
    upper = probe.edges(values)
    lines = [
        "## Area over complexity (A.7, ten tiers)",
        "Area under the rate over the tiers' medians, and as a share of the area of a method that never fails.",
        "",
        "| method | passes | share | recall | share |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in names:
        shots = [probe.Shot(str(r.task), r.complexity, r.passed, r.recall) for r in of[name]]
        tiers = probe.by_tier(probe.by_prompt(shots), upper)
        whole = tiers[-1].median - tiers[0].median
        area, recall = probe.auc_pass(tiers), probe.auc_recall(tiers) or 0.0
        lines.append(f"| {name} | {area:.2f} | {area / whole:.3f} | {recall:.2f} | {recall / whole:.3f} |")
    return lines


def _rounds(of: dict[str, list[Result]], names: Sequence[str]) -> list[str]:
    """The shape of the paper's table 8b: rounds used, by tier."""
    most = max((row.rounds for name in names for row in of[name]), default=0)
    lines = [
        "## Rounds used",
        f"| method | tier | mean | {' | '.join(str(n) for n in range(1, most + 1))} |",
        f"| --- | --- | --- |{' --- |' * most}",
    ]
    for name in names:
        for tier in sorted({row.tier for row in of[name]}):
            used = [row.rounds for row in of[name] if row.tier == tier]
            shares = [f"{used.count(n) / len(used):.0%}" for n in range(1, most + 1)]
            lines.append(f"| {name} | {tier} | {statistics.fmean(used):.2f} | {' | '.join(shares)} |")
    return lines


def _parts(of: dict[str, list[Result]], names: Sequence[str]) -> list[str]:
    if not names:
        return []
    lines = ["## What each part of auto adds", "| auto with | passes | recall | pictures | rolled back |"]
    lines.append("| --- | --- | --- | --- | --- |")
    faulty = [name for name in of if name == "auto, wrong 10 %"]
    for name in ("auto, same prompts", *names, *faulty):
        rows = of[name]
        shown = {"auto, same prompts": "everything", "auto, wrong 10 %": "no evidence: a judge that errs in 10 %"}
        recall, pictures = mean(r.recall for r in rows), statistics.fmean(r.images for r in rows)
        back = statistics.fmean(r.rolled_back for r in rows)
        lines.append(f"| {shown.get(name, name)} | {passes(rows)} | {recall} | {pictures:.2f} | {back:.2f} |")
    return lines


def _budget(of: dict[str, list[Result]], names: Sequence[str]) -> list[str]:
    if not names:
        return []
    lines = ["## Quality against budget", "| pictures, at most | passes | recall | pictures used |"]
    lines.append("| --- | --- | --- | --- |")
    for images, rows in _curve(of, names):
        used = statistics.fmean(r.images for r in rows)
        lines.append(f"| {images} | {passes(rows)} | {mean(r.recall for r in rows)} | {used:.2f} |")
    return [*lines, "", "![quality against budget](search_budget.png)"]


def _curve(of: dict[str, list[Result]], names: Sequence[str]) -> list[tuple[int, list[Result]]]:
    points = [(int(name.split()[1]), of[name]) for name in names]
    if of.get("auto, same prompts"):
        points.append((8, of["auto, same prompts"]))
    return sorted(points, key=lambda point: point[0])


def _robust(of: dict[str, list[Result]], names: Sequence[str]) -> list[str]:
    if not names:
        return []
    lines = [
        "## Judges that err",
        "Worse: the result satisfies fewer checks, as measured, than the run's first picture. The controller looks "
        "for itself and errs not; only the judge of the loop does.",
        "",
        "| policy, judge | worse than the first | better | passes | recall | pictures | NFE, at most |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in ("clvr", "auto, same prompts", *names):
        rows = of.get(name, [])
        if not rows:
            continue
        worse = rate([r.recall < r.first_recall - 1e-9 for r in rows])
        better = rate([r.recall > r.first_recall + 1e-9 for r in rows])
        shown = name if "," in name and "same" not in name else f"{name.split(',')[0]}, exact"
        pictures = statistics.fmean(r.images for r in rows)
        tail = f"{mean(r.recall for r in rows)} | {pictures:.2f} | {max(r.nfe for r in rows)}"
        lines.append(f"| {shown} | {worse} | {better} | {passes(rows)} | {tail} |")
    return [*lines, "", "![judges that err](search_robust.png)"]


def passes(rows: Iterable[Result]) -> str:
    return rate([row.passed for row in rows])


def rate(outcomes: Sequence[bool]) -> str:
    if not outcomes:
        return ""
    low, high = wilson(sum(outcomes), len(outcomes))
    return f"{sum(outcomes) / len(outcomes):.3f} [{low:.3f}, {high:.3f}]"


def mean(values: Iterable[float]) -> str:
    listed = list(values)
    if len(listed) < 2:
        return ""
    low, high = normal(listed)
    return f"{statistics.fmean(listed):.3f} [{low:.3f}, {high:.3f}]"


_SIZE = (1100, 620)
_BOX = (96, 76, 700, 540)
"""Left, top, right, bottom of the plotted area, in pixels."""
_Point = tuple[float, float, tuple[float, float]]


def tier_plot(of: dict[str, list[Result]]) -> Image | None:
    """Pass rate over complexity, in eight tiers."""
    names = [name for name in PLOTTED if of.get(name)]
    values = [row.complexity for name in names for row in of[name]]
    if len(values) < 16:
        return None
    upper = probe.edges(values, 8)
    series = []
    for name in names:
        shots = [probe.Shot(str(r.task), r.complexity, r.passed, r.recall) for r in of[name]]
        tiers = probe.by_tier(probe.by_prompt(shots), upper)
        series.append((name, [(t.median, t.passed.mean, t.passed.interval) for t in tiers]))
    low, high = min(values), max(values)
    return _lines(
        "Passes over the prompt's complexity, at most 8 pictures", "C_task", linear(low, high, _short), series
    )


def budget_plot(of: dict[str, list[Result]], names: Sequence[str]) -> Image | None:
    if not names:
        return None
    curve = _curve(of, names)
    tiers = sorted({row.tier for _, rows in curve for row in rows})
    series = []
    for tier in tiers:
        points = []
        for images, rows in curve:
            hits = [row.passed for row in rows if row.tier == tier]
            if hits:
                points.append((math.log2(images), sum(hits) / len(hits), wilson(sum(hits), len(hits))))
        series.append((f"tier {tier}", points))
    ticks = tuple((math.log2(n), str(n)) for n, _ in curve)
    width = ticks[-1][0] - ticks[0][0] or 1
    scale = Scale(ticks, lambda v: (v - ticks[0][0]) / width)
    return _lines("auto: passes against the budget", "pictures, at most", scale, series)


def robust_plot(of: dict[str, list[Result]], names: Sequence[str]) -> Image | None:
    """How often a run's result is worse than its first picture, by judge."""
    if not names:
        return None
    judges = list(dict.fromkeys(name.split(", ", 1)[1] for name in names))
    ticks = tuple((float(n), judge) for n, judge in enumerate(judges))
    width = max(len(judges) - 1, 1)
    scale = Scale(ticks, lambda v: 0.08 + 0.84 * v / width)
    series = []
    for policy in dict.fromkeys(name.split(", ")[0] for name in names):
        points = []
        for n, judge in enumerate(judges):
            worse = [r.recall < r.first_recall - 1e-9 for r in of.get(f"{policy}, {judge}", [])]
            if worse:
                points.append((float(n), sum(worse) / len(worse), wilson(sum(worse), len(worse))))
        series.append((policy, points))
    return _lines("Results worse than the run's first picture", "the loop's judge", scale, series, joined=False)


def _lines(
    title: str, axis: str, scale: Scale, series: Sequence[tuple[str, list[_Point]]], joined: bool = True
) -> Image:
    """Rates in [0, 1] with their intervals."""
    pen, (left, top, right, bottom) = Pen(*_SIZE), _BOX
    pen.text((left, 24), title, 25)
    for value, label in linear(0, 1, lambda v: f"{v:.0%}").ticks:
        y = bottom - value * (bottom - top)
        pen.line([(left, y), (right, y)], GRID)
        pen.text((left - 12, y), label, 18, SOFT, "rm")
    for value, label in scale.ticks:
        pen.text((left + scale.place(value) * (right - left), bottom + 14), label, 16, SOFT, "ma")
    pen.text(((left + right) / 2, bottom + 46), axis, 18, INK, "ma")
    for number, (_, points) in enumerate(series):
        color, shift = COLORS[number % len(COLORS)], (number - len(series) / 2 + 0.5) * 4
        places = [(left + scale.place(x) * (right - left) + shift, y, i) for x, y, i in points]
        for x, _, (low, high) in places:
            pen.line([(x, bottom - low * (bottom - top)), (x, bottom - high * (bottom - top))], color, 1)
        path = [(x, bottom - y * (bottom - top)) for x, y, _ in places]
        if joined and len(path) > 1:
            pen.line(path, color, 2.5)
        for at in path:
            pen.mark(at, number, color, 6)
    for number, (name, _) in enumerate(series):
        y = top + 20 + 34 * number
        pen.mark((right + 40, y), number, COLORS[number % len(COLORS)], 7)
        pen.text((right + 58, y), name, 19, INK, "lm")
    return pen.image()


def _short(value: float) -> str:
    return f"{value:g}"
