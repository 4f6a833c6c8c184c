"""The tables and plots of benchmarks/search.py."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL.Image import Image

from clvr import probe
from clvr.chart import Axis, Chart, Line, Point, draw
from clvr.intervals import normal, wilson
from training.goals import TIERS

PLOTTED = ("one shot", "best of 8", "refinement only", "clvr", "director", "strokes", "auto")
AGAINST = (
    "one shot",
    "one shot, 8 times the denoising steps",
    "best of 8",
    "refinement only",
    "clvr",
    "director",
    "strokes",
)


@dataclass(frozen=True)
class Result:
    """One run. `passed` and `recall` (share of checks) are the result's, `first_…` the first picture's, as measured;
    `images` and `rounds` were drawn, `rolled_back` of them not kept; `tactics` by round."""

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
    tiered = _tiered(rows)
    of = {name: [row for row in tiered if row.method == name] for name, _ in methods}
    groups: dict[str, list[str]] = {}
    for name, group in methods:
        if of[name]:
            groups.setdefault(group, []).append(name)
    everyone = groups.get("methods", [])
    adding, curve, erring = (groups.get(group, []) for group in ("parts", "budget", "robust"))
    spent, misled = _alike(of, ["auto", *curve]), _alike(of, ["clvr", "auto", *erring])
    parts = [
        _head(of, how),
        _by_tier(of, everyone),
        _claims(of),
        _areas(of, everyone),
        _rounds(of, [n for n in ("clvr", "director", "strokes", "auto") if of.get(n)]),
        _parts(_alike(of, ["auto", *adding, "auto, wrong 10 %"]), adding),
        _budget(spent, curve),
        _robust(misled, erring),
    ]
    text = out / "search.md"
    text.write_text("\n\n".join("\n".join(part) for part in parts if part) + "\n")
    plots = {
        "search_tiers.png": tier_plot(of),
        "search_budget.png": budget_plot(spent, curve),
        "search_robust.png": robust_plot(misled, erring),
    }
    made = [text]
    for name, image in plots.items():
        if image is not None:
            image.save(out / name)
            made.append(out / name)
    return made


def _tiered(rows: Sequence[Result]) -> list[Result]:
    """With the tiers of all prompts together: a run that was made longer has others than when it began."""
    found = {row.task: row.complexity for row in rows}
    tiers = dict(zip(found, probe.tiers(list(found.values()), TIERS), strict=True)) if len(found) >= TIERS else {}
    return [replace(row, tier=tiers.get(row.task, row.tier)) for row in rows]


def _alike(of: dict[str, list[Result]], names: Sequence[str]) -> dict[str, list[Result]]:
    """These rows on the prompts that all of them have."""
    found = {name: of[name] for name in names if of.get(name)}
    shared = set.intersection(*({row.task for row in rows} for rows in found.values())) if found else set()
    return {name: [row for row in rows if row.task in shared] for name, rows in found.items()}


def _prompts(of: dict[str, list[Result]]) -> str:
    return f"On {max(map(len, of.values()), default=0)} of the prompts."


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
        "Difference of the pass rates on the same prompts, with the normal interval of the mean difference.",
        "",
        f"| auto minus | {' | '.join(f'tier {t}' for t in tiers)} |",
        f"| --- |{' --- |' * len(tiers)}",
    ]
    proved: list[str] = []
    for name in AGAINST:
        other = {row.task: row for row in of.get(name, [])}
        if not other:
            continue
        gains = []
        for tier in tiers:
            tasks = [t for t in auto if t in other and auto[t].tier == tier]
            gains.append([int(auto[t].passed) - int(other[t].passed) for t in tasks])
        lines.append(f"| {name} | {' | '.join(map(_difference, gains))} |")
        if all(len(gain) > 1 and normal(gain)[0] > 0 for gain in gains[1:]):
            proved.append(name)
    said = ", ".join(proved) or "nobody"
    return [*lines, "", f"**On every tier above the easiest auto passes more often than: {said}.**"]


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
    lines = [
        "## What each part of auto adds",
        _prompts(of),
        "",
        "| auto with | passes | recall | pictures | rolled back |",
    ]
    lines.append("| --- | --- | --- | --- | --- |")
    for name in ("auto", *names, "auto, wrong 10 %"):
        rows = of.get(name, [])
        if not rows:
            continue
        shown = {"auto": "everything", "auto, wrong 10 %": "no evidence: a judge that errs in 10 %"}
        recall, pictures = mean(r.recall for r in rows), statistics.fmean(r.images for r in rows)
        back = statistics.fmean(r.rolled_back for r in rows)
        lines.append(f"| {shown.get(name, name)} | {passes(rows)} | {recall} | {pictures:.2f} | {back:.2f} |")
    return lines


def _budget(of: dict[str, list[Result]], names: Sequence[str]) -> list[str]:
    if not names:
        return []
    lines = ["## Quality against budget", _prompts(of), "", "| pictures, at most | passes | recall | pictures used |"]
    lines.append("| --- | --- | --- | --- |")
    for images, rows in _curve(of, names):
        used = statistics.fmean(r.images for r in rows)
        lines.append(f"| {images} | {passes(rows)} | {mean(r.recall for r in rows)} | {used:.2f} |")
    return [*lines, "", "![quality against budget](search_budget.png)"]


def _curve(of: dict[str, list[Result]], names: Sequence[str]) -> list[tuple[int, list[Result]]]:
    points = [(int(name.split()[1]), of[name]) for name in names]
    points.append((8, of.get("auto", [])))
    return sorted((point for point in points if point[1]), key=lambda point: point[0])


def _robust(of: dict[str, list[Result]], names: Sequence[str]) -> list[str]:
    if not names:
        return []
    lines = [
        "## Judges that err",
        "Worse: the result satisfies fewer checks, as measured, than the run's first picture. The controller looks "
        f"for itself and errs not; only the judge of the loop does. {_prompts(of)}",
        "",
        "| policy, judge | worse than the first | better | passes | recall | pictures | NFE, at most |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in ("clvr", "auto", *names):
        rows = of.get(name, [])
        if not rows:
            continue
        worse = rate(_worse(rows))
        better = rate([r.recall > r.first_recall + 1e-9 for r in rows])
        shown = name if "," in name else f"{name}, exact"
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


def tier_plot(of: dict[str, list[Result]]) -> Image | None:
    """Pass rate over complexity, in eight tiers."""
    names = [name for name in PLOTTED if of.get(name)]
    values = [row.complexity for name in names for row in of[name]]
    if len(values) < 16:
        return None
    upper = probe.edges(values, 8)
    lines = []
    for name in names:
        shots = [probe.Shot(str(r.task), r.complexity, r.passed, r.recall) for r in of[name]]
        tiers = probe.by_tier(probe.by_prompt(shots), upper)
        lines.append(Line(name, tuple(Point(t.median, t.passed.mean, *t.passed.interval) for t in tiers)))
    return _plot("Passes over the prompt's complexity", "at most 8 pictures", Axis("C_task"), lines)


def budget_plot(of: dict[str, list[Result]], names: Sequence[str]) -> Image | None:
    if not names:
        return None
    curve = _curve(of, names)
    lines = []
    for tier in sorted({row.tier for _, rows in curve for row in rows}):
        found = [(images, [row.passed for row in rows if row.tier == tier]) for images, rows in curve]
        lines.append(Line(f"tier {tier}", tuple(_share(images, hits) for images, hits in found if hits)))
    return _plot("auto: passes against the budget", "", Axis("pictures, at most", log=True), lines)


def robust_plot(of: dict[str, list[Result]], names: Sequence[str]) -> Image | None:
    """How often a run's result is worse than its first picture, by judge."""
    if not names:
        return None
    judges = list(dict.fromkeys(name.split(", ", 1)[1] for name in names))
    lines = []
    for number, policy in enumerate(dict.fromkeys(name.split(", ")[0] for name in names)):
        found = [(n + 0.1 * number, _worse(of.get(f"{policy}, {judge}", []))) for n, judge in enumerate(judges)]
        lines.append(Line(policy, tuple(_share(x, worse) for x, worse in found if worse), joined=False))
    axis = Axis("the loop's judge", names=tuple(judges))
    return _plot(
        "Results worse than the run's first picture", "satisfying fewer checks, as measured", axis, lines, None
    )


def _worse(rows: Iterable[Result]) -> list[bool]:
    return [row.recall < row.first_recall - 1e-9 for row in rows]


def _share(x: float, outcomes: Sequence[bool]) -> Point:
    """The share of yes with its Wilson interval."""
    return Point(x, sum(outcomes) / len(outcomes), *wilson(sum(outcomes), len(outcomes)))


def _plot(title: str, said: str, across: Axis, lines: Sequence[Line], most: float | None = 1.0) -> Image:
    """Rates with their intervals."""
    up = Axis("", 0.0, most, label=lambda value: f"{value:.0%}")
    return draw(title, [Chart("", across, up, tuple(lines))], said)
