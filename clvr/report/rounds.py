"""One round of the loop as a section of the page: reasoning, pictures with evidence, checks, notes, cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..trajectory import (
    Brief,
    Check,
    CheckVerdict,
    Decision,
    Evidence,
    Outcome,
    Step,
    Tactic,
    Trajectory,
    Usage,
    Verdict,
    label_index,
)
from .figures import Region, duration, icon, mark, overlay, percent, phase_class, stacked
from .markup import NOTHING, Markup, el, join
from .pictures import Picture, Pictures

ACTIONS = {"generate": "Draw", "edit": "Edit", "stop": "Stop"}
TACTICS: Mapping[Tactic, str] = {
    "one-shot": "the whole goal at once",
    "edit": "an edit",
    "rephrase": "in other words",
    "split": "one thing alone",
    "redraw": "a new picture",
}


@dataclass(frozen=True)
class Row:
    """A check with its outcome on one candidate. `key` is unique in the round, `number` is for people."""

    key: str
    number: str
    check: Check
    outcome: Outcome
    result: CheckVerdict | None
    above: str
    """Number of the check that this one depends on, or ''."""


def rows(checks: Sequence[Check], verdict: Verdict | None, candidate: int, mine: bool) -> list[Row]:
    """Rows of the goal's checks (1, 2, …), or of the round's own (`mine`: A, B, …)."""
    if verdict is None:
        return []
    numbers = {c.id: _letter(i) if mine else str(i + 1) for i, c in enumerate(checks)}
    results = {r.check: r for r in verdict.results}
    track = "own" if mine else "goal"
    return [
        Row(
            key=f"c{candidate}-{track}{i}",
            number=numbers[check.id],
            check=check,
            outcome=outcome,
            result=results.get(check.id),
            above=numbers.get(check.parent or "", ""),
        )
        for i, (check, outcome) in enumerate(verdict.effective(checks))
    ]


def _letter(index: int) -> str:
    return chr(ord("A") + index % 26) + (str(index // 26) if index >= 26 else "")


def anchor(step: Step) -> str:
    return f"round-{step.index + 1}"


def round_section(trajectory: Trajectory, step: Step, pictures: Pictures) -> Markup:
    best = trajectory.best is step
    content = el(
        "div",
        el("div", _brief(trajectory.goal.checks, step.decision.brief), _prose(step.decision, pictures), class_="prose"),
        _picks(trajectory, step, pictures),
        el("div", *_figures(trajectory, step, pictures), class_="stage"),
        el("div", *_all_checks(trajectory, step), class_="checks"),
        class_="body",
    )
    kind = "round" + ("" if step.accepted else " rolled-back") + (" best" if best else "")
    parts = (_heading(trajectory, step, best), content, _notes(step.notes), _cost(step))
    return el("article", *parts, class_=kind, id=anchor(step), aria_label=f"Round {step.index + 1}")


def _heading(trajectory: Trajectory, step: Step, best: bool) -> Markup:
    action = ACTIONS[step.decision.action]
    title = el("h3", el("span", f"Round {step.index + 1}", class_="ordinal"), el("span", action, class_="action"))
    badges = [
        el("span", "Accepted", class_="badge accepted")
        if step.accepted
        else el("span", icon("back"), "Rolled back", class_="badge back"),
        el("span", "Best", class_="badge top") if best else NOTHING,
    ]
    return el("header", title, el("span", *badges, class_="badges"), _score(trajectory, step))


def _score(trajectory: Trajectory, step: Step) -> Markup:
    score = trajectory.score(step)
    if score is None:
        return el("span", "not judged", class_="score none")
    earlier = [trajectory.score(s) for s in trajectory.steps[: step.index] if s.accepted]
    change = NOTHING
    if earlier and earlier[-1] is not None:
        points = round(100 * (score - earlier[-1]))
        kind = "up" if points > 0 else "down" if points < 0 else "same"
        change = el("span", f"{points:+d}" if points else "±0", class_=f"change {kind}", title="Change in points")
    return el("span", percent(score), change, class_="score")


def _brief(checks: Sequence[Check], brief: Brief) -> Markup:
    """What the policy had asked for: how, and which checks of the goal."""
    about = [
        el("li", el("span", i, class_="number"), el("span", check.question, dir="auto"))
        for i, check in enumerate(checks, 1)
        if check.id in brief.checks
    ]
    if not about and not brief.tactic:
        return NOTHING
    how = el("span", TACTICS[brief.tactic], class_="tactic") if brief.tactic else NOTHING
    listed = el("ul", *about) if about else NOTHING
    return el("div", el("span", "The policy asked for", class_="label"), how, listed, class_="brief")


def _prose(decision: Decision, pictures: Pictures) -> Markup:
    said = el("p", decision.reasoning, class_="reasoning", dir="auto") if decision.reasoning else NOTHING
    told = (
        el(
            "div",
            el("span", "Instruction", class_="label"),
            el("p", decision.instruction, dir="auto"),
            class_="told",
        )
        if decision.instruction
        else NOTHING
    )
    raw = _raw("The controller's reply, word for word", decision.raw)
    return join(said, told, _conditions(decision.references, pictures), raw)


def _conditions(references: Sequence[str], pictures: Pictures) -> Markup:
    if not references:
        return NOTHING
    shown = [el("li", _thumb(pictures.of(label, thumb=True), ""), _origin(label)) for label in references]
    return el("div", el("span", "Drawn from", class_="label"), el("ul", *shown, class_="from"), class_="sources")


def _origin(label: str) -> Markup:
    kind, index = label_index(label)
    if kind == "GEN":
        return el("a", f"Round {index + 1}", href=f"#round-{index + 1}")
    return el("a", f"Reference {index + 1}", href="#references")


def _raw(title: str, text: str) -> Markup:
    return el("details", el("summary", title), el("pre", text), class_="raw") if text else NOTHING


def _thumb(picture: Picture | None, alt: str) -> Markup:
    if picture is None:
        return el("span", class_="thumb missing", role="img" if alt else None, aria_label=alt or None)
    return picture_tag(picture, alt, "thumb")


def picture_tag(picture: Picture, alt: str, kind: str = "") -> Markup:
    names = kind or ("pixels" if picture.small else None)
    size = {"width": picture.width, "height": picture.height}
    return el("img", src=picture.uri, alt=alt, class_=names, **size)


def _figures(trajectory: Trajectory, step: Step, pictures: Pictures) -> list[Markup]:
    return [_figure(trajectory, step, k, pictures) for k in range(len(step.candidates))]


def _picks(trajectory: Trajectory, step: Step, pictures: Pictures) -> Markup:
    if len(step.candidates) < 2:
        return NOTHING
    picks = [_pick(trajectory, step, k, pictures) for k in range(len(step.candidates))]
    legend = el("legend", f"{len(picks)} candidates", class_="label")
    return el("fieldset", legend, el("div", *picks), class_="picks")


def _figure(trajectory: Trajectory, step: Step, candidate: int, pictures: Pictures) -> Markup:
    picture = pictures.candidate(step, candidate)
    if picture is None:
        frame = el("div", "This picture was not kept.", class_="frame lost")
        return el("figure", frame, class_=_candidate_class(step, candidate))
    alt = f"Picture of round {step.index + 1}"
    alt += f", candidate {candidate + 1}" if len(step.candidates) > 1 else ""
    boxes = overlay([_region(row) for row in _both(trajectory, step, candidate)])
    frame = el("div", picture_tag(picture, alt), boxes, class_=f"frame {picture.shape}")
    seed = el("span", f"Seed {step.candidates[candidate].seed}", class_="seed")
    hide = el("label", el("input", type="checkbox", class_="hide"), "Hide boxes") if boxes else NOTHING
    return el("figure", frame, el("figcaption", seed, hide), class_=_candidate_class(step, candidate))


def _candidate_class(step: Step, candidate: int) -> str:
    return f"candidate candidate-{candidate}" + (" chosen" if candidate == step.chosen else "")


def _both(trajectory: Trajectory, step: Step, candidate: int) -> list[Row]:
    drawn = step.candidates[candidate]
    goal = rows(trajectory.goal.checks, drawn.active, candidate, mine=False)
    return [*goal, *rows(step.decision.expects, drawn.passive, candidate, mine=True)]


def _region(row: Row) -> Region:
    evidence = row.result.evidence if row.result else ()
    return Region(row.key, row.number, row.outcome, [box for e in evidence for box in e.boxes])


def _pick(trajectory: Trajectory, step: Step, candidate: int, pictures: Pictures) -> Markup:
    chosen = candidate == step.chosen
    active = step.candidates[candidate].active
    passive = step.candidates[candidate].passive
    verdict, checks = (active, trajectory.goal.checks) if active else (passive, step.decision.expects)
    score = verdict.score(checks) if verdict else None
    names = {"class_": f"pick-{candidate} unseen", "name": anchor(step)}
    radio = el("input", type="radio", checked=chosen, **names)
    words = f"Candidate {candidate + 1}" + (", chosen" if chosen else "")
    face = _thumb(pictures.candidate(step, candidate, thumb=True), words)
    star = el("span", "chosen", class_="star") if chosen else NOTHING
    return el("label", radio, face, el("span", percent(score)), star, class_="pick")


def _all_checks(trajectory: Trajectory, step: Step) -> list[Markup]:
    return [
        el("div", *_candidate_checks(trajectory, step, k), class_=_candidate_class(step, k))
        for k in range(len(step.candidates))
    ]


def _candidate_checks(trajectory: Trajectory, step: Step, candidate: int) -> list[Markup]:
    drawn = step.candidates[candidate]
    groups = []
    if drawn.passive is not None and step.decision.expects:
        own = rows(step.decision.expects, drawn.passive, candidate, mine=True)
        groups.append(_group("Did this round do what it said?", own))
    if drawn.active is not None and trajectory.goal.checks:
        goal = rows(trajectory.goal.checks, drawn.active, candidate, mine=False)
        groups.append(_group("Does the picture meet the goal?", goal))
    elif trajectory.goal.checks:
        groups.append(el("p", "The goal's checklist was not asked of this picture.", class_="quiet"))
    return groups or [el("p", "This picture was not judged.", class_="quiet")]


def _group(title: str, listed: Sequence[Row]) -> Markup:
    passed = sum(r.outcome == "pass" for r in listed)
    count = el("span", f"{passed} of {len(listed)}", class_="count")
    return el("section", el("h4", title, count), *(_check(r) for r in listed), class_="group")


def _check(row: Row) -> Markup:
    evidence = row.result.evidence if row.result else ()
    notes = [_said(e) for e in evidence if e.note or e.judge]
    if any(e.overruled for e in evidence):
        notes.insert(0, el("span", _ruling(evidence), class_="said ruling"))
    if row.outcome == "skipped" and row.above:
        notes.append(el("span", f"Not asked, because check {row.above} does not hold.", class_="said"))
    question = el("span", el("span", row.check.question, dir="auto", class_="question"), *notes, class_="text")
    sure = row.result.probability if row.result else None
    chance = NOTHING
    if sure is not None and row.outcome != "skipped":
        chance = el("span", percent(sure), class_="chance", title="Probability of yes")
    face = el("summary", mark(row.outcome), el("span", row.number, class_="number"), question, chance)
    located = " located" if any(e.boxes for e in evidence) else ""
    return el("details", face, _more(row), class_=f"check {row.outcome} {row.key}{located}")


def _ruling(evidence: Sequence[Evidence]) -> str:
    """Who overruled whom: the evidence of several begins with the line that decided."""
    lost = list(dict.fromkeys(e.judge for e in evidence if e.overruled))
    return f"{evidence[0].judge} overruled {', '.join(lost)}."


def _said(evidence: Evidence) -> Markup:
    """One judge's line: who, what it said where several were asked, what it saw."""
    word = _WORDS.get(evidence.says) if evidence.says else None
    parts = [
        el("b", evidence.judge) if evidence.judge else None,
        el("span", word, class_=f"word {evidence.says}") if word else None,
        el("span", "overruled", class_="word against") if evidence.overruled else None,
        evidence.note or None,
    ]
    shown = [part for part in parts if part is not None]
    spaced = [piece for part in shown for piece in (" ", part)][1:]
    return el("span", *spaced, class_="said overruled" if evidence.overruled else "said", dir="auto")


_WORDS: dict[Outcome, str] = {"pass": "says yes", "fail": "says no", "unjudged": "cannot tell"}


def _more(row: Row) -> Markup:
    facts = [("Kind", row.check.kind), ("Weight", f"{row.check.weight:g}"), ("Needs check", row.above)]
    if row.result and row.result.probability is not None:
        facts.append(("Probability of yes", f"{row.result.probability:.3f}"))
    listed = [el("div", el("dt", name), el("dd", value)) for name, value in facts if value]
    reply = el("pre", row.result.raw) if row.result and row.result.raw else NOTHING
    return el("div", el("dl", *listed), reply, class_="more")


def _notes(notes: Sequence[str]) -> Markup:
    if not notes:
        return NOTHING
    listed = [el("li", icon("note"), el("span", note, dir="auto")) for note in notes]
    return el("ul", *listed, class_="notes", aria_label="Notes")


def _cost(step: Step) -> Markup:
    spent = step.cost
    phases = [(name, seconds) for name, seconds in spent.seconds.items() if seconds > 0]
    words = ", ".join(f"{name} {duration(seconds)}" for name, seconds in phases)
    bar = stacked(phases, spent.total_seconds, f"Time by phase: {words}") if phases else NOTHING
    legend = [el("li", el("i", class_=f"swatch {phase_class(n)}"), f"{n} {duration(s)}") for n, s in phases]
    listed = [el("li", fact) for fact in usage_facts(spent.nfe, spent.usage)]
    if not listed and not legend:
        return NOTHING
    return el("footer", bar, el("ul", *legend, *listed, class_="facts"))


def usage_facts(nfe: int, usage: Usage) -> list[str]:
    """What was spent, in words; what was not used is left out."""
    facts = [f"{nfe:,} function evaluations"] if nfe else []
    if usage.calls:
        facts.append(f"{usage.calls} VLM call{'s' if usage.calls > 1 else ''}")
    if usage.tokens_in or usage.tokens_out:
        facts.append(f"{usage.tokens_in:,} tokens in, {usage.tokens_out:,} out")
    return facts
