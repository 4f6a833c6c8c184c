"""A benchmark as one HTML page that needs nothing but itself: scores with intervals, tables by tag, every image."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from string import Template

from ..errors import ImageError, MissingFileError
from ..images import load_image
from ..report import page as report_page
from ..report.figures import duration, mark, ring
from ..report.markup import NOTHING, Markup, el, join
from ..report.pictures import Picture, thumbnail
from ..trajectory import Check, CheckVerdict, Cost
from .results import Plan, Result
from .scores import Estimate, Group, Summary
from .suite import Measure, Suite

THUMB = 240
"""Pixels of the longer side; as WebP about 8 kB, so that a page of 553 images has 6 MB."""
_STATES = {
    "all": "All",
    "pass": "Passed",
    "fail": "Failed",
    "rated": "Rated",
    "unjudged": "Not judged",
    "missing": "No image",
}


def render(suite: Suite, plan: Plan, summary: Summary, results: Sequence[Result], images: Path, folder: Path) -> str:
    """The page's text. `images` holds the pictures; links to runs are relative to `folder`."""
    style = _style()
    return Template(_resource("page.html")).substitute(
        digest=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        style=style,
        title=join(suite.title, " – CLVR"),
        hero=_hero(suite, plan, summary),
        counts=_counts(summary, results),
        scores=_scores(suite, summary),
        groups=join(*(_table(suite, tag, summary) for tag in dict.fromkeys(g.tag for g in summary.groups))),
        gallery=_gallery(suite, results, images, folder),
        colophon=_colophon(plan, results),
    )


def _resource(name: str) -> str:
    return Path(__file__).with_name(name).read_text("utf-8")


def _style() -> str:
    base = Path(report_page.__file__).with_name("style.css").read_text("utf-8")
    filters = ",".join(
        f".gallery-box:has(#show-{state}:checked) .entry:not(.{state})" for state in _STATES if state != "all"
    )
    return f"{base}\n{_resource('page.css')}\n{filters}{{display:none}}"


def _hero(suite: Suite, plan: Plan, summary: Summary) -> Markup:
    first = summary.scores[0]
    highest = suite.measures[0].highest
    share = None if first.value is None else first.value / highest
    told = el("p", el("strong", _with_interval(first, suite.measures[0])), el("span", f"{first.name}, 95 % interval"))
    words = el(
        "div",
        el("p", "Benchmark", class_="eyebrow"),
        el("h1", suite.title),
        el("div", ring(share), told, class_="outcome"),
        el("p", _drawn_by(plan), class_="quiet"),
        class_="words",
    )
    return el("header", words, class_="bench-hero")


def _drawn_by(plan: Plan) -> str:
    if plan.mode == "images":
        return f"Images from {plan.options.get('images', 'a folder')}, scored as they are."
    model = plan.options.get("model", "?")
    limits = plan.budget.replace("=", " ").replace("_", " ").replace(",", ", ")
    return f"Model {model}, policy {plan.mode}, seed {plan.seed}. For each prompt: {limits}."


def _counts(summary: Summary, results: Sequence[Result]) -> Markup:
    runs = [r.run for r in results if r.run]
    spent = sum((run.cost for run in runs), Cost())
    asked = sum((r.judging for r in results), Cost())
    cards = [
        ("Prompts", f"{summary.prompts:,}", ""),
        ("Images judged", f"{summary.judged:,}", f"of {summary.images:,}"),
        ("Not judged", f"{summary.unjudged:,}", "counted in no score"),
        ("Without an image", f"{summary.missing:,}", "counted in no score"),
    ]
    if runs:
        cards += [
            ("Rounds a prompt", f"{sum(r.rounds for r in runs) / len(runs):.2f}", ""),
            ("Function evaluations", f"{spent.nfe:,}", ""),
            ("Time of the runs", duration(spent.total_seconds), ""),
        ]
    calls = spent.usage.calls + asked.usage.calls
    if calls:
        cards.append(("VLM calls", f"{calls:,}", f"{asked.usage.calls:,} by the judge"))
    made = [_card(*card) for card in cards]
    return el("section", el("dl", *made, class_="cards"), aria_label="Counts")


def _card(name: str, value: str, more: str) -> Markup:
    return el("div", el("dt", name), el("dd", el("span", value, class_="figure"), " ", el("small", more)))


def _scores(suite: Suite, summary: Summary) -> Markup:
    measures = {m.name: m for m in suite.measures}
    rows = [_score_row(e, measures[e.measure]) for e in summary.scores]
    head = el("tr", *(el("th", h, scope="col") for h in ("Score", "Value", "95 % interval", "", "Images")))
    table = el("table", el("thead", head), el("tbody", *rows))
    told = [el("li", el("b", m.name), ": ", m.words) for m in suite.measures]
    return _section("scores", "Scores", _scrolling(table, "Scores"), el("ul", *told, class_="facts meanings"))


def _score_row(estimate: Estimate, measure: Measure) -> Markup:
    lacking = NOTHING
    if estimate.lacking:
        lacking = el("small", f"without {', '.join(estimate.lacking)}, where no image was judged")
    return el(
        "tr",
        el("th", estimate.name, lacking, scope="row"),
        el("td", _number(estimate.value, measure), class_="value"),
        el("td", _interval(estimate, measure, kind=True), class_="numbers"),
        el("td", _bar(estimate, measure), class_="bar"),
        el("td", f"{estimate.n:,}", class_="numbers"),
    )


def _table(suite: Suite, tag: str, summary: Summary) -> Markup:
    groups = [g for g in summary.groups if g.tag == tag]
    lost = any(g.missing or g.unjudged for g in groups)
    first, *others = suite.measures
    scores = [first.name.capitalize(), "95 % interval", "", *(m.name.capitalize() for m in others)]
    head = [tag.capitalize(), "Images", *scores, *(["Not judged", "No image"] if lost else [])]
    rows = [_group_row(group, suite, lost) for group in groups]
    table = el("table", el("thead", el("tr", *(el("th", h, scope="col") for h in head))), el("tbody", *rows))
    return _section(f"by-{tag}", f"By {tag}", _scrolling(table, f"Scores by {tag}"))


def _group_row(group: Group, suite: Suite, lost: bool) -> Markup:
    first, *others = zip(group.estimates, suite.measures, strict=True)
    left = [el("td", group.unjudged, class_="numbers"), el("td", group.missing, class_="numbers")] if lost else []
    return el(
        "tr",
        el("th", group.value.replace("_", " "), scope="row"),
        el("td", group.images, class_="numbers"),
        el("td", _number(first[0].value, first[1]), class_="value"),
        el("td", _interval(*first), class_="numbers"),
        el("td", _bar(*first), class_="bar"),
        *(el("td", _number(e.value, m), class_="numbers") for e, m in others),
        *left,
    )


def _section(name: str, title: str, *content: Markup) -> Markup:
    heading = el("h2", title, id=f"{name}-title")
    return el("section", heading, *content, class_="card figures", id=name, aria_labelledby=f"{name}-title")


def _scrolling(table: Markup, words: str) -> Markup:
    return el("div", table, class_="scroll", tabindex=0, role="region", aria_label=words)


def _number(value: float | None, measure: Measure) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.1f}\u202f%" if measure.highest == 1 else f"{value:.2f}"


def _with_interval(estimate: Estimate, measure: Measure) -> str:
    value = _number(estimate.value, measure)
    return f"{value}, {_interval(estimate, measure)}" if estimate.low is not None else value


def _interval(estimate: Estimate, measure: Measure, kind: bool = False) -> str:
    if estimate.low is None or estimate.high is None:
        return "–"
    scale, form = (100, ".1f") if measure.highest == 1 else (1, ".2f")
    text = f"{scale * estimate.low:{form}} to {scale * estimate.high:{form}}"
    return f"{text} ({estimate.interval})" if kind else text


def _bar(estimate: Estimate, measure: Measure) -> Markup:
    """The value on its measure's whole range, with its interval."""
    if estimate.value is None:
        return NOTHING
    parts = [el("rect", class_="track", x=0, y=6, width="100%", height=6, rx=3)]
    parts.append(el("rect", class_="fill", x=0, y=6, width=_share(estimate.value, measure), height=6, rx=3))
    if estimate.low is not None and estimate.high is not None:
        width = _share(estimate.high - estimate.low, measure)
        parts.append(el("rect", class_="range", x=_share(estimate.low, measure), y=3, width=width, height=12, rx=3))
    return el("svg", *parts, class_="span", height=18, aria_hidden="true", focusable="false")


def _share(value: float, measure: Measure) -> str:
    return f"{100 * value / measure.highest:.2f}%"


def _gallery(suite: Suite, results: Sequence[Result], images: Path, folder: Path) -> Markup:
    entries = [_entry(suite, result, images, folder) for result in results]
    counts = {state: sum(_state(r) == state for r in results) for state in _STATES} | {"all": len(results)}
    shown = [state for state in _STATES if counts[state] and (state == "all" or counts[state] < len(results))]
    picks = [
        el("label", el("input", type="radio", name="show", id=f"show-{s}", checked=s == "all", class_="unseen"),
           f"{_STATES[s]} ", el("small", counts[s]))
        for s in shown
    ]  # fmt: skip
    chosen = el("div", *picks, class_="filters", role="group", aria_label="Show") if len(shown) > 1 else NOTHING
    title = el("h2", "Images", id="images-title")
    grid = el("div", *entries, class_="entries")
    return el("section", title, chosen, grid, class_="gallery-box", aria_labelledby="images-title")


def _state(result: Result) -> str:
    """By the first measure: a yes or no passes or fails, a score is rated."""
    if not result.image:
        return "missing"
    if not result.settled or (result.checks and result.values.get("correct") is None):
        return "unjudged"
    if "correct" in result.values:
        return "pass" if result.values["correct"] else "fail"
    return "rated"


def _entry(suite: Suite, result: Result, images: Path, folder: Path) -> Markup:
    state = _state(result)
    words = [el("p", result.prompt, class_="asked", dir="auto"), el("p", _said(suite, result), class_="quiet")]
    if result.error:
        words.append(el("p", result.error, class_="wrong", dir="auto"))
    more = _details(result)
    face = _face(result, images, folder)
    return el("article", face, el("div", *words, more, class_="about"), class_=f"entry {state}", id=f"i-{result.id}")


def _face(result: Result, images: Path, folder: Path) -> Markup:
    picture = _thumbnail(images / result.image) if result.image else None
    if picture is None:
        return el("div", "No image" if not result.image else "The image cannot be read", class_="lost")
    names = "pixels" if picture.small else None
    size = {"width": picture.width, "height": picture.height}
    face = el("img", src=picture.uri, alt=f"Image of prompt {result.item}", class_=names, **size)
    run = folder / "runs" / result.item / "report.html"
    if not run.exists():
        return el("div", face, class_="face")
    return el("a", face, href=f"runs/{result.item}/report.html", class_="face", title="How it came to be")


def _thumbnail(path: Path) -> Picture | None:
    """None for a file that is no image."""
    try:
        return thumbnail(load_image(path), THUMB)
    except (ImageError, MissingFileError):
        return None


def _said(suite: Suite, result: Result) -> str:
    tags = (f"{tag} {value}" if value.isdecimal() else value for tag, value in result.tags.items())
    parts = [result.id, *(tag.replace("_", " ") for tag in tags)]
    if result.checks:
        passed = sum(v.outcome == "pass" for v in result.verdicts)
        parts.append(f"{passed} of {len(result.checks)} checks")
    else:
        parts += [
            f"{m.name} {_number(result.values[m.name], m)}" for m in suite.measures[:1] if m.name in result.values
        ]
    if result.run and result.run.rounds > 1:
        parts.append(f"{result.run.rounds} rounds")
    return " · ".join(parts)


def _details(result: Result) -> Markup:
    """What the judge said: shown at once where something failed, folded where all is well."""
    lines = [_check(c, v) for c, v in zip(result.checks, result.verdicts, strict=True)] if result.verdicts else []
    lines += [_reason(name, result) for name in result.reasons]
    if not lines:
        return NOTHING
    face = el("summary", "Checks" if result.checks else "Scores")
    return el("details", face, el("ul", *lines), class_="said-all", open=_state(result) == "fail")


def _check(check: Check, verdict: CheckVerdict) -> Markup:
    notes = " ".join(e.note for e in verdict.evidence if e.note)
    said = el("span", notes, class_="said", dir="auto") if notes and verdict.outcome != "pass" else NOTHING
    return el("li", mark(verdict.outcome), el("span", check.question, said, dir="auto"))


def _reason(name: str, result: Result) -> Markup:
    value = result.values.get(name)
    number = el("b", "–" if value is None else f"{value:g}", class_="given")
    return el("li", number, el("span", name, el("span", result.reasons[name], class_="said", dir="auto")))


def _colophon(plan: Plan, results: Sequence[Result]) -> Markup:
    judges = list(dict.fromkeys(r.judge for r in results if r.judge))
    facts = [("Judge", ", ".join(judges) or "none"), *((k.replace("_", " ").capitalize(), v)
             for k, v in plan.options.items())]  # fmt: skip
    listed = [el("div", el("dt", name), el("dd", value)) for name, value in facts]
    note = "Scores on this page are our own judge's, not the benchmark's official scorer's."
    return el("footer", el("dl", *listed), el("p", note), class_="colophon")
