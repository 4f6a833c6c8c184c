"""A run as one HTML page that needs nothing but itself: no script, no network, pictures and style inside."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

from PIL.Image import Image

from ..files import write_atomic
from ..trajectory import Cost, Step, Trajectory
from .figures import Point, duration, mark, meter, percent, phase_class, ring, score_chart, stacked
from .markup import NOTHING, Markup, el, join
from .pictures import Pictures, RunInfo, reference_labels
from .rounds import ACTIONS, anchor, picture_tag, round_section, rows, usage_facts


def write_report(
    trajectory: Trajectory, images: Mapping[str, Image], path: str | Path, *, settings: RunInfo | None = None
) -> None:
    """Write the page of a run to `path`, in place of an older one only when it is complete.

    `images`: the album, with the pictures of candidates that were not chosen under `candidate_label`; what is
    missing is shown as missing. Small pictures are embedded losslessly, large ones as WebP.
    Raises RunFolderError."""
    page = render(trajectory, images, settings or RunInfo())
    write_atomic(Path(path), page.encode("utf-8", errors="replace"))  # a VLM may reply with lone surrogates


def render(trajectory: Trajectory, images: Mapping[str, Image], settings: RunInfo) -> str:
    """The page's text."""
    run = _Run(trajectory, Pictures(images), settings)
    sections = _sections(run)
    style = _resource("style.css") + _linking_rules(trajectory) + run.pictures.shape_rules()
    return Template(_resource("page.html")).substitute(
        sections,
        digest=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        style=style,
        title=join(_shorten(trajectory.goal.prompt, 70), " – CLVR"),
    )


def _sections(run: _Run) -> dict[str, Markup]:
    steps = run.trajectory.steps
    return {
        "hero": _hero(run),
        "budget": _budget(run),
        "progress": _progress(run),
        "checklist": _checklist(run),
        "references": _references(run),
        "rounds": join(*(round_section(run.trajectory, s, run.pictures) for s in steps)) or _no_rounds(),
        "lead": _lead(run),
        "costs": _costs(run),
        "colophon": _colophon(run),
    }


@dataclass(frozen=True)
class _Run:
    trajectory: Trajectory
    pictures: Pictures
    info: RunInfo


def _resource(name: str) -> str:
    return Path(__file__).with_name(name).read_text("utf-8")


def _shorten(text: str, limit: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def _linking_rules(trajectory: Trajectory) -> str:
    """Rules that tie checks to boxes and thumbnails to candidates; they stand in for a script."""
    candidates = max((len(s.candidates) for s in trajectory.steps), default=0)
    own = max((len(s.decision.expects) for s in trajectory.steps), default=0)
    tracks = [*(f"goal{i}" for i in range(len(trajectory.goal.checks))), *(f"own{i}" for i in range(own))]
    keys = [f"c{k}-{track}" for k in range(candidates) for track in tracks]
    pointed = ",".join(f".round:has(.check.{k}:is([open],:hover,:focus-within)) .box.{k}" for k in keys)
    tags = ",".join(f".round:has(.check.{k}:is([open],:hover,:focus-within)) .box.{k} .tag" for k in keys)
    rules = [f"{pointed}{{opacity:1}}{tags}{{display:block}}"] if keys else []
    for k in range(candidates):
        rules.append(f".round:has(.pick-{k}:checked) .candidate-{k}{{display:block}}")
    if len(trajectory.steps) > 8:
        rules.append(f".plot,.matrix table{{min-width:{36 * len(trajectory.steps)}px}}")
    return "\n".join(rules)


def _hero(run: _Run) -> Markup:
    trajectory = run.trajectory
    best = trajectory.best
    picture = run.pictures.step(best) if best else None
    if best and picture:
        face = picture_tag(picture, f"Final picture, from round {best.index + 1}")
        link = el("a", face, href=f"#{anchor(best)}", class_=f"frame {picture.shape}")
        shown = el("figure", link, class_="final")
    else:
        shown = el("div", "No picture", class_="final lost")
    prompt = trajectory.goal.prompt
    title = el("h1", prompt or "(no prompt)", dir="auto", class_="long" if len(prompt) > 140 else None)
    words = el(
        "div",
        el("p", "Closed-loop run", class_="eyebrow"),
        title,
        _outcome(run),
        _stopped(run),
        class_="words",
    )
    return el("header", shown, words, class_="hero")


def _outcome(run: _Run) -> Markup:
    trajectory = run.trajectory
    best, checks = trajectory.best, trajectory.goal.checks
    verdict = best.winner.active if best else None
    if best is None or verdict is None or not checks:
        return el("div", ring(None), el("p", "No picture was judged against the goal."), class_="outcome")
    outcomes = [o for _, o in verdict.effective(checks)]
    passed, unjudged = outcomes.count("pass"), outcomes.count("unjudged")
    count = f"{passed} of {len(outcomes)} checks passed"
    words = f"All {len(outcomes)} checks passed" if passed == len(outcomes) > 1 else count
    more = f"in round {best.index + 1} of {len(trajectory.steps)}"
    more += f" · {unjudged} could not be judged" if unjudged else ""
    text = el("p", el("strong", words), el("span", more))
    kind = "outcome reached" if verdict.satisfied(checks) else "outcome"
    return el("div", ring(trajectory.score(best)), text, class_=kind)


def _stopped(run: _Run) -> Markup:
    reason = run.trajectory.stop_reason
    noted = sum(len(s.notes) for s in run.trajectory.steps)
    parts = [el("p", el("b", "Stopped: "), reason) if reason else el("p", "This run has not ended.")]
    if noted:
        words = f"{noted} note{'s' if noted > 1 else ''} below"
        parts.append(el("p", el("a", words, href="#rounds")))
    return el("div", *parts, class_="stopped")


def _budget(run: _Run) -> Markup:
    spent, given = run.trajectory.cost, run.info.budget
    seconds = run.info.elapsed if run.info.elapsed is not None else spent.total_seconds
    rounds = len(run.trajectory.steps)
    pictures = sum(len(s.candidates) for s in run.trajectory.steps)
    cards = [
        _spent("Rounds", rounds, given.steps if given else None),
        _spent("Pictures drawn", pictures, None),
        _spent("Function evaluations", spent.nfe, given.nfe if given else None),
        _spent("VLM calls", spent.usage.calls, given.vlm_calls if given else None),
        *([_spent("Tokens", spent.usage.tokens, given.tokens)] if given and given.tokens else []),
        _spent("Time", seconds, given.seconds if given else None, written=duration),
    ]
    rule = NOTHING
    if given:
        named = (("policy", run.info.policy), ("budget", given.name))
        facts = (
            *(f"{what} {name}" for what, name in named if name),
            f"{given.candidates} candidate{'s' if given.candidates > 1 else ''} a round",
            f"the whole checklist every {_rounds(given.verify_every)}",
            f"goal reached at {percent(given.threshold)}",
            f"patience of {given.patience} round{'s' if given.patience > 1 else ''}",
        )
        rule = el("p", "Asked for: " + ", ".join(facts) + ".", class_="quiet")
    title = el("h2", "Thinking budget", id="budget-title")
    return el(
        "section",
        title,
        el("dl", *cards, class_="cards"),
        rule,
        class_="budget",
        aria_labelledby="budget-title",
    )


def _rounds(count: int) -> str:
    return f"{count} rounds" if count > 1 else "round"


def _spent(name: str, used: float, limit: float | None, written=lambda v: f"{v:,}") -> Markup:  # noqa: ANN001
    of = el("small", f"of {written(limit)}") if limit is not None else NOTHING
    bar = meter(used, limit) if limit is not None else NOTHING
    return el("div", el("dt", name), el("dd", el("span", written(used), class_="figure"), " ", of, bar))


def _progress(run: _Run) -> Markup:
    steps = run.trajectory.steps
    if not steps:
        return NOTHING
    best = run.trajectory.best
    points = [Point(run.trajectory.score(s), s.accepted, s is best, _canvas_before(run.trajectory, s)) for s in steps]
    threshold = run.info.budget.threshold if run.info.budget else None
    film = [_frame(run, s) for s in steps]
    chart = el("div", score_chart(points, threshold), el("ol", *film, class_="film"), class_="plot")
    scroll = el("div", chart, class_="scroll", tabindex=0, role="region",
                aria_label="Score by round")  # fmt: skip
    title = el("h2", "Score over rounds", id="score-title")
    return el("section", title, scroll, class_="card progress", aria_labelledby="score-title")


def _canvas_before(trajectory: Trajectory, step: Step) -> int | None:
    return next((s.index for s in reversed(trajectory.steps[: step.index]) if s.accepted), None)


def _frame(run: _Run, step: Step) -> Markup:
    picture = run.pictures.step(step, thumb=True)
    words = f"Round {step.index + 1}, {ACTIONS[step.decision.action].lower()}"
    words += ", best" if step is run.trajectory.best else "" if step.accepted else ", rolled back"
    face = picture_tag(picture, words, "thumb") if picture else el("span", class_="thumb missing")
    kind = "best" if step is run.trajectory.best else "kept" if step.accepted else "back"
    number = el("span", step.index + 1)
    return el("li", el("a", face, number, href=f"#{anchor(step)}", aria_label=words), class_=kind)


def _checklist(run: _Run) -> Markup:
    goal, steps = run.trajectory.goal, run.trajectory.steps
    if not goal.checks:
        return NOTHING
    table = [rows(goal.checks, s.winner.active, s.chosen, mine=False) for s in steps]
    head = [
        el("th", el("a", s.index + 1, href=f"#{anchor(s)}"), scope="col", class_=_column_class(run, s)) for s in steps
    ]
    body = []
    for i, check in enumerate(goal.checks):
        cells = [
            el(
                "td",
                mark(column[i].outcome) if column else el("span", "·", class_="none"),
                class_=_column_class(run, s),
            )
            for s, column in zip(steps, table, strict=True)
        ]
        question = el(
            "th",
            el("span", el("span", i + 1, class_="number"), el("span", check.question, dir="auto")),
            scope="row",
        )
        body.append(el("tr", question, *cells))
    top = el("thead", el("tr", el("th", "Check", scope="col"), *head))
    grid = el("div", el("table", top, el("tbody", *body)), class_="scroll", tabindex=0, role="region",
              aria_label="Checks by round")  # fmt: skip
    title = el("h2", "Checklist", id="checks-title")
    return el("section", title, grid, class_="card matrix", aria_labelledby="checks-title")


def _column_class(run: _Run, step: Step) -> str | None:
    return "best" if step is run.trajectory.best else None if step.accepted else "back"


def _references(run: _Run) -> Markup:
    labels = reference_labels(run.trajectory)
    if not labels:
        return NOTHING
    shown = []
    for i, label in enumerate(labels):
        picture = run.pictures.of(label)
        face = picture_tag(picture, f"Reference {i + 1}") if picture else el("div", "Not kept", class_="frame lost")
        shown.append(el("figure", face, el("figcaption", f"Reference {i + 1}")))
    title = el("h2", "Reference pictures", id="references-title")
    return el("section", title, el("div", *shown, class_="gallery"), id="references", class_="references",
              aria_labelledby="references-title")  # fmt: skip


def _lead(run: _Run) -> Markup:
    judged = (
        c for s in run.trajectory.steps for k in s.candidates for v in (k.active, k.passive) if v for c in v.results
    )
    if not any(e.boxes for result in judged for e in result.evidence):
        return NOTHING
    return el("p", "Point at a check, or tap it, to see where in the picture it was decided.", class_="quiet")


def _no_rounds() -> Markup:
    return el("p", "No round was completed.", class_="quiet")


def _costs(run: _Run) -> Markup:
    trajectory = run.trajectory
    total = trajectory.cost
    if not total.seconds and not total.nfe and not total.usage.calls:
        return NOTHING
    listed = [("Checklist", trajectory.preparation)]
    listed += [(f"Round {s.index + 1}", s.cost) for s in trajectory.steps]
    listed += [("Stopping", trajectory.closing)]
    longest = max((c.total_seconds for _, c in listed), default=0.0)
    lines = [_cost_row(name, cost, longest) for name, cost in listed if cost != Cost()]
    legend = [_phase(name, seconds, total.total_seconds) for name, seconds in total.seconds.items() if seconds > 0]
    facts = [el("li", fact) for fact in usage_facts(total.nfe, total.usage)]
    title = el("h2", "What it cost", id="costs-title")
    parts = (el("ul", *legend, *facts, class_="facts"), el("ol", *lines, class_="bars"))
    return el("section", title, *parts, class_="card costs", aria_labelledby="costs-title")


def _phase(name: str, seconds: float, total: float) -> Markup:
    return el(
        "li",
        el("i", class_=f"swatch {phase_class(name)}"),
        f"{name} {duration(seconds)}, {percent(seconds / total)}",
    )


def _cost_row(name: str, cost: Cost, longest: float) -> Markup:
    phases = [(n, s) for n, s in cost.seconds.items() if s > 0]
    words = ", ".join(f"{n} {duration(s)}" for n, s in phases)
    bar = stacked(phases, longest, f"{name}: {words or 'no time'}")
    return el("li", el("span", name), bar, el("span", duration(cost.total_seconds), class_="amount"))


def _colophon(run: _Run) -> Markup:
    facts = [(role.capitalize(), name) for role, name in run.info.models.items() if name]
    facts += [("Policy", run.info.policy)] if run.info.policy else []
    facts.append(("Seed", str(run.trajectory.seed)))
    listed = [el("div", el("dt", name), el("dd", value)) for name, value in facts]
    made = el("p", "Pictures on this page were made by a generative model.")
    return el("footer", el("dl", *listed), made, class_="colophon")
