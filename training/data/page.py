"""The sample sheet: retention at every gate, and trajectories beside their one-shot pictures. One HTML page that needs
nothing but itself."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from string import Template

import clvr.bench
import clvr.report
from clvr.errors import ImageError, MissingFileError
from clvr.images import load_image
from clvr.report.figures import duration, percent, ring
from clvr.report.markup import NOTHING, Markup, el
from clvr.report.pictures import thumbnail

from .config import EngineConfig
from .dedup import KINDS, Dropped
from .records import Vote, parse
from .statistics import Rate, Statistics
from .work import Outcome, Try

THUMB = 192
"""Pixels of the longer side."""
SAMPLES = 24
"""Prompts shown of each gate, and of those kept."""
_COPIES = 12


def render(
    config: EngineConfig, statistics: Statistics, outcomes: Sequence[Outcome], dropped: Sequence[Dropped], folder: Path
) -> str:
    """The page's text. Pictures are read from `folder`."""
    entries = _sampled(outcomes)
    gates = list(dict.fromkeys(outcome.gate for outcome in entries))
    style = _style(len(gates))
    return Template(_resource("page.html")).substitute(
        digest=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        style=style,
        hero=_hero(statistics),
        counts=_counts(statistics),
        tables=_tables(statistics, dropped),
        gallery=_gallery(entries, gates, outcomes, folder),
        colophon=_colophon(config),
    )


def _resource(name: str) -> str:
    return Path(__file__).with_name(name).read_text("utf-8")


def _style(gates: int) -> str:
    parts = [
        Path(clvr.report.__file__).with_name("style.css").read_text("utf-8"),
        Path(clvr.bench.__file__).with_name("page.css").read_text("utf-8"),
        _resource("page.css"),
    ]
    hidden = ",".join(f".gallery-box:has(#show-{n}:checked) .entry:not(.gate-{n})" for n in range(gates))
    return "\n".join([*parts, f"{hidden}{{display:none}}" if gates else ""])


def _hero(statistics: Statistics) -> Markup:
    share = statistics.kept / statistics.candidates if statistics.candidates else None
    kept = f"{statistics.kept:,} of {statistics.candidates:,} candidates kept"
    told = el("p", el("strong", kept), el("span", "as verified trajectories that beat one shot"))
    left = statistics.unfinished
    quiet = el("p", f"{left:,} prompts are not done yet.", class_="quiet") if left else NOTHING
    outcome = el("div", ring(share), told, class_="outcome")
    heading = (el("p", "Data engine", class_="eyebrow"), el("h1", "Verified trajectories"))
    return el("header", el("div", *heading, outcome, quiet, class_="words"), class_="bench-hero")


def _counts(statistics: Statistics) -> Markup:
    spent = statistics.spent
    cards = [("Pictures drawn", f"{statistics.pictures:,}", "")]
    if statistics.kept:
        mean = sum(int(n) * k for n, k in statistics.rounds.items()) / statistics.kept
        cards.append(("Pictures a trajectory", f"{mean:.2f}", "of those kept"))
        cards.append(("Drawn for one kept", f"{statistics.pictures / statistics.kept:.1f}", "pictures"))
    cards += [
        ("Function evaluations", f"{spent.nfe:,}", ""),
        ("Time, over all prompts", duration(spent.total_seconds), ""),
    ]
    if spent.usage.calls:
        cards.append(("VLM calls", f"{spent.usage.calls:,}", ""))
    made = [el("div", el("dt", n), el("dd", el("span", v, class_="figure"), " ", el("small", s))) for n, v, s in cards]
    return el("section", el("dl", *made, class_="cards"), aria_label="Counts")


def _tables(statistics: Statistics, dropped: Sequence[Dropped]) -> Markup:
    votes = [
        (judge, *(said.get(word, 0) for word in ("trajectory", "tie", "one shot")))
        for judge, said in statistics.votes.items()
    ]
    total = sum(statistics.ends.values())
    ends = [(gate or "finalised", number, percent(number / total)) for gate, number in statistics.ends.items()]
    rounds = [(number, count) for number, count in statistics.rounds.items()]
    small = [
        _section("votes", "Blind votes", ("Judge", "Trajectory", "Tie", "One shot"), votes),
        _section("ends", "Where attempts ended", ("Gate", "Attempts", "Share"), ends),
        _section("rounds", "Pictures a kept trajectory", ("Pictures", "Trajectories"), rounds),
    ]
    return el(
        "div",
        _rates("gates", "Gates, in order", "Gate", statistics.gates),
        _rates("drawings", "Drawings, verified passively", "Drawing", statistics.drawings),
        _rates("tags", "Kept, by kind of prompt", "Kind", statistics.tags),
        *small,
        _copies(statistics, dropped),
        class_="two",
    )


def _rates(name: str, title: str, of: str, rates: Sequence[Rate]) -> Markup:
    rows = [
        (r.name, f"{r.came:,}", f"{r.passed:,}", percent(r.share), f"{100 * r.low:.0f} to {100 * r.high:.0f} %")
        for r in rates
    ]
    return _section(name, title, (of, "Came", "Passed", "Share", "95 % interval"), rows)


def _section(name: str, title: str, head: Sequence[str], rows: Sequence[Sequence[str | int]]) -> Markup:
    if not rows:
        return NOTHING
    heading = el("h2", title, id=f"{name}-title")
    top = el("thead", el("tr", *(el("th", cell, scope="col") for cell in head)))
    body = [el("tr", el("th", row[0], scope="row"), *(el("td", cell) for cell in row[1:])) for row in rows]
    table = el(
        "div", el("table", top, el("tbody", *body)), class_="scroll", tabindex=0, role="region", aria_label=title
    )
    return el("section", heading, table, class_=f"card figures {name}", aria_labelledby=f"{name}-title")


def _copies(statistics: Statistics, dropped: Sequence[Dropped]) -> Markup:
    """Why candidates were left out as copies, and the nearest of them."""
    if not dropped:
        return NOTHING
    counted = [f"{kind}: {statistics.dropped[kind]:,}" for kind in KINDS if kind in statistics.dropped]
    near = sorted((d for d in dropped if "near" in d.kind), key=lambda d: -d.similarity)[:_COPIES]
    rows = [(d.prompt.text, f"{d.similarity:.2f}", d.like, d.place) for d in near]
    table = _section("nearest", "Nearest of the copies", ("Candidate", "Likeness", "Like", "Where"), rows)
    listed = el("p", "Copies left out: ", "; ".join(counted), ".", class_="quiet")
    return el("div", listed, table, class_="copies")


def _sampled(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The first few kept, then the first few of each gate."""
    gates = sorted({outcome.gate for outcome in outcomes})
    return [o for gate in gates for o in [o for o in outcomes if o.gate == gate][:SAMPLES]]


def _gallery(entries: Sequence[Outcome], gates: Sequence[str], outcomes: Sequence[Outcome], folder: Path) -> Markup:
    def pick(name: str, words: str, count: int, checked: bool) -> Markup:
        button = el("input", type="radio", name="show", id=f"show-{name}", checked=checked, class_="unseen")
        return el("label", button, f"{words} ", el("small", count))

    picks = [pick("all", "All", len(outcomes), True)]
    picks += [
        pick(str(n), gate.capitalize() or "Kept", sum(o.gate == gate for o in outcomes), False)
        for n, gate in enumerate(gates)
    ]
    shown = el("div", *picks, class_="filters", role="group", aria_label="Show")
    cards = [_entry(outcome, gates.index(outcome.gate), folder) for outcome in entries]
    told = f"At most {SAMPLES} of each."
    title = el("h2", "Samples", id="samples-title")
    grid = el("div", *cards, class_="entries")
    return el(
        "section", title, el("p", told, class_="quiet"), shown, grid,
        class_="gallery-box", aria_labelledby="samples-title",
    )  # fmt: skip


def _entry(outcome: Outcome, gate: int, folder: Path) -> Markup:
    words = [el("p", outcome.prompt, class_="asked", dir="auto")]
    facts = [outcome.tag, f"{len(outcome.tries)} attempts" if len(outcome.tries) != 1 else "1 attempt"]
    words.append(el("p", " · ".join(fact for fact in facts if fact), class_="quiet"))
    if outcome.gate:
        words.append(el("p", f"{outcome.gate}: {outcome.reason}", class_="wrong", dir="auto"))
    words += [el("p", _said(vote), class_="quiet") for vote in outcome.votes]
    about = el("div", *words, _thoughts(outcome, folder), *_log(outcome.tries[-1:]), class_="about")
    state = "fail" if outcome.gate else "pass"
    return el("article", _strip(outcome, folder), about, class_=f"entry {state} gate-{gate}", id=f"p-{outcome.id}")


def _said(vote: Vote) -> str:
    shown = f"shown {'first' if vote.first else 'second'}"
    return f"{vote.judge}: {vote.word} ({shown}: {vote.note})" if vote.note else f"{vote.judge}: {vote.word} ({shown})"


def _strip(outcome: Outcome, folder: Path) -> Markup:
    """The pictures in order, and the one-shot picture apart."""
    many = len(outcome.images) > 1
    figures = [
        _figure(folder / path, f"IMG_GEN_{n}" if many or not outcome.gate else "the newest")
        for n, path in enumerate(outcome.images)
    ]
    if outcome.baseline:
        figures.append(_figure(folder / outcome.baseline, "one shot", "against"))
    return el("div", *figures, class_="strip") if figures else NOTHING


def _figure(path: Path, words: str, kind: str | None = None) -> Markup:
    try:
        picture = thumbnail(load_image(path), THUMB)
    except (ImageError, MissingFileError):
        return el("figure", el("div", "no picture", class_="lost"), el("figcaption", words), class_=kind)
    size = {"width": picture.width, "height": picture.height}
    image = el("img", src=picture.uri, alt=words, class_="pixels" if picture.small else None, **size)
    return el("figure", image, el("figcaption", words), class_=kind)


def _thoughts(outcome: Outcome, folder: Path) -> Markup:
    """What a kept trajectory tells, round by round."""
    if outcome.gate:
        return NOTHING
    path = folder / "records" / outcome.id[:2] / f"{outcome.id}.json"
    trajectory = parse(path.read_text("utf-8"), folder, str(path)).trajectory
    told = [f"{step.decision.reasoning} {step.decision.instruction}" for step in trajectory.steps]
    return el(
        "ol", *(el("li", el("span", line, dir="auto")) for line in [*told, trajectory.stop_reason]), class_="thoughts"
    )


def _log(tries: Sequence[Try]) -> list[Markup]:
    """The last attempt's execution log, folded."""
    lines = [
        el("li", el("b", entry.tool), f" in {entry.state}: ", " – ".join(t for t in (entry.text, entry.note) if t))
        for one in tries
        for entry in one.log
    ]
    return (
        [el("details", el("summary", "Execution log"), el("ul", *lines, class_="log"), class_="said-all")]
        if lines
        else []
    )


def _colophon(config: EngineConfig) -> Markup:
    cast = config.cast
    facts = [("Model", cast.model), ("VLM", cast.vlm), ("Judges", ", ".join(cast.judges)), ("Narrator", cast.narrator)]
    facts += [
        ("Seed", str(config.seed)),
        ("Attempts", str(config.rules.attempts)),
        ("Rounds", str(config.rules.rounds)),
    ]
    listed = [el("div", el("dt", name), el("dd", value)) for name, value in facts]
    note = "A prompt that ended at a gate passed every gate before it. Intervals are Wilson's."
    return el("footer", el("dl", *listed), el("p", note), class_="colophon")
