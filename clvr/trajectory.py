"""The contract that everything speaks: goal, checks, verdicts, decisions, steps, trajectory.

Frozen dataclasses with versioned `to_dict` / `from_dict`. Images are not in here: they are named by label
(`IMG_REF_n` for the n-th image that the user gave, `IMG_GEN_n` for the image of step n) and live in an
`Album` or on disk.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from .errors import FormatError

VERSION = 1

CheckKind = Literal["object", "count", "color", "shape", "size", "position", "absence", "text", "style", "other"]
Outcome = Literal["pass", "fail", "unjudged", "skipped"]
Action = Literal["generate", "edit", "stop"]
Tactic = Literal["", "one-shot", "edit", "rephrase", "split", "redraw"]
"""How a round goes about its checks; '' leaves it to the controller. one-shot and redraw draw the whole goal
afresh; edit changes the canvas; rephrase says the same in other words; split asks for less at once."""
Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 as fractions of width and height, origin top left."""

_LABEL = re.compile(r"IMG_(GEN|REF)_(\d+)")


def generated(step: int) -> str:
    """Label of the image that step `step` produced."""
    return f"IMG_GEN_{step}"


def referenced(index: int) -> str:
    """Label of the user's `index`-th reference image."""
    return f"IMG_REF_{index}"


def label_index(label: str) -> tuple[Literal["GEN", "REF"], int]:
    """Split a label. Raises FormatError for anything that is not one."""
    match = _LABEL.fullmatch(label)
    if not match:
        raise FormatError(f"'{label}' is not an image label.", "Use IMG_GEN_n or IMG_REF_n.")
    return typing.cast(Literal["GEN", "REF"], match[1]), int(match[2])


@dataclass(frozen=True)
class Check:
    """An atomic yes/no question about an image; yes is what the goal wants. `parent` names a check that must
    hold for this one to make sense (DSG, arXiv 2310.18235)."""

    id: str
    question: str
    kind: CheckKind = "other"
    parent: str | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Goal:
    """What the user wants: a prompt, how many reference images came with it, and the checklist.

    The checklist is made once and stays for the whole run, so that scores compare. Only the user may add to
    it; the images so far are then judged on the addition too."""

    prompt: str
    references: int = 0
    checks: tuple[Check, ...] = ()

    def labels(self) -> tuple[str, ...]:
        return tuple(referenced(i) for i in range(self.references))

    def with_checks(self, checks: Iterable[Check]) -> Goal:
        """The goal with those of `checks` that it does not hold yet, by id."""
        known = {check.id for check in self.checks}
        return dataclasses.replace(self, checks=(*self.checks, *(c for c in checks if c.id not in known)))


@dataclass(frozen=True)
class Usage:
    """What asking a VLM cost."""

    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.calls + other.calls, self.tokens_in + other.tokens_in, self.tokens_out + other.tokens_out)

    @property
    def tokens(self) -> int:
        """Read and written."""
        return self.tokens_in + self.tokens_out


@dataclass(frozen=True)
class Evidence:
    """What one judge saw: its name, a sentence, and where (fractions of the image).

    Where several judges were asked, `says` is what this one said, and `overruled` whether another's word counted
    against it."""

    judge: str
    note: str = ""
    boxes: tuple[Box, ...] = ()
    says: Outcome | None = None
    overruled: bool = False


@dataclass(frozen=True)
class CheckVerdict:
    """The outcome of one check. A failed call, a parse failure or an unknown is `unjudged`."""

    check: str
    outcome: Outcome
    probability: float | None = None
    evidence: tuple[Evidence, ...] = ()
    raw: str = ""


@dataclass(frozen=True)
class Verdict:
    """Outcomes for a list of checks on one image."""

    results: tuple[CheckVerdict, ...] = ()
    usage: Usage = Usage()

    def outcome(self, check: str) -> Outcome:
        for result in self.results:
            if result.check == check:
                return result.outcome
        return "unjudged"

    def score(self, checks: Iterable[Check]) -> float | None:
        """Weighted share of passes over the judged checks, in [0, 1]; None where nothing was judged.

        A descendant of a failed check counts as failed: it was skipped because it cannot hold."""
        outcomes = self.effective(checks)
        judged = [(c, o) for c, o in outcomes if o != "unjudged"]
        total = sum(c.weight for c, _ in judged)
        return sum(c.weight for c, o in judged if o == "pass") / total if total > 0 else None

    def effective(self, checks: Iterable[Check]) -> list[tuple[Check, Outcome]]:
        """Each check with its outcome, descendants of a failed check set to `skipped`."""
        checks = list(checks)
        by_id = {c.id: c for c in checks}
        own: dict[str, Outcome] = {r.check: r.outcome for r in self.results}

        def resolve(check: Check, seen: frozenset[str]) -> Outcome:
            parent = by_id.get(check.parent or "")
            if parent is not None and parent.id not in seen:
                above = resolve(parent, seen | {check.id})
                if above in ("fail", "skipped"):
                    return "skipped"
            return own.get(check.id, "unjudged")

        return [(c, resolve(c, frozenset())) for c in checks]

    def satisfied(self, checks: Iterable[Check]) -> bool:
        """True when every check passed; an unjudged check is not a pass, and an empty list is not satisfied."""
        outcomes = [o for _, o in self.effective(checks)]
        return bool(outcomes) and all(o == "pass" for o in outcomes)


@dataclass(frozen=True)
class Brief:
    """What a policy asks of a round: the ids of the goal's checks to work on (none: the controller chooses), and
    how."""

    checks: tuple[str, ...] = ()
    tactic: Tactic = ""


@dataclass(frozen=True)
class Decision:
    """A controller's reply: reasoning r_t, what to do, the instruction, and which images to condition on.

    `expects` is the step's own checklist, made from the instruction, for passive verification (section 3.1).
    `brief` is what the policy had asked for."""

    action: Action
    reasoning: str = ""
    instruction: str = ""
    references: tuple[str, ...] = ()
    expects: tuple[Check, ...] = ()
    usage: Usage = Usage()
    raw: str = ""
    brief: Brief = Brief()


@dataclass(frozen=True)
class Cost:
    """What a step cost. `seconds` by phase (plan, encode, draw, decode, verify)."""

    nfe: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    usage: Usage = Usage()

    def __add__(self, other: Cost) -> Cost:
        phases = list(dict.fromkeys([*self.seconds, *other.seconds]))
        seconds = {p: self.seconds.get(p, 0.0) + other.seconds.get(p, 0.0) for p in phases}
        return Cost(self.nfe + other.nfe, seconds, self.usage + other.usage)

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Candidate:
    """One drawing of a step. `passive` judges it against the step's instruction, `active` against the goal."""

    seed: int
    passive: Verdict | None = None
    active: Verdict | None = None


@dataclass(frozen=True)
class Step:
    """One completed round. `chosen` indexes the candidates; a step that was rolled back has accepted=False
    and stays in the history without becoming the canvas. `notes` tell what was left out or went wrong. `hand`
    is set where the user overruled the policy: what was kept counts more than the steps before it, whatever
    their scores; what was dropped is never the result while there is another."""

    index: int
    decision: Decision
    candidates: tuple[Candidate, ...]
    chosen: int
    accepted: bool
    cost: Cost = Cost()
    notes: tuple[str, ...] = ()
    hand: Literal["", "kept", "dropped"] = ""

    @property
    def label(self) -> str:
        return generated(self.index)

    @property
    def winner(self) -> Candidate:
        return self.candidates[self.chosen]


@dataclass(frozen=True)
class Trajectory:
    """Goal and steps, append-only. `seed` with the settings and weights fixes everything that is random."""

    goal: Goal
    steps: tuple[Step, ...] = ()
    seed: int = 0
    stop_reason: str = ""
    preparation: Cost = Cost()
    """What was spent before the first step (the checklist)."""
    closing: Cost = Cost()
    """What was spent after the last step (the decision to stop)."""

    @cached_property
    def cost(self) -> Cost:
        return sum((s.cost for s in self.steps), self.preparation) + self.closing

    def score(self, step: Step) -> float | None:
        """Score of a step's chosen image against the goal's checklist; None where it was not judged."""
        verdict = step.winner.active
        return verdict.score(self.goal.checks) if verdict else None

    @property
    def canvas(self) -> Step | None:
        """The last accepted step: what the next edit starts from."""
        return next((s for s in reversed(self.steps) if s.accepted), None)

    @property
    def best(self) -> Step | None:
        """The step with the highest score, the later one on a tie. A judged step comes before any unjudged
        one, an accepted one before a rolled-back one of the same score. Steps before the last one that the
        user kept by hand do not count, nor those that the user dropped where there is another."""
        if not self.steps:
            return None
        kept = max((s.index for s in self.steps if s.hand == "kept"), default=0)
        standing = [s for s in self.steps[kept:] if s.hand != "dropped"] or self.steps
        return max(standing, key=lambda s: (_or(self.score(s), -1.0), s.accepted, s.index))

    def append(self, step: Step) -> Trajectory:
        if step.index != len(self.steps):
            raise FormatError(
                f"Step {step.index} cannot follow {len(self.steps)} steps.",
                "A trajectory is append-only: number steps from 0 without gaps.",
            )
        return dataclasses.replace(self, steps=(*self.steps, step))

    def with_step(self, step: Step) -> Trajectory:
        """The trajectory with another version of a step that it holds."""
        return dataclasses.replace(self, steps=(*self.steps[: step.index], step, *self.steps[step.index + 1 :]))

    def back_to(self, index: int) -> Trajectory:
        """Step `index` as the canvas, every later one dropped by hand. Raises FormatError for no such step."""
        if not 0 <= index < len(self.steps):
            raise FormatError(f"There is no step {index} to go back to.", f"The run has {len(self.steps)} steps.")
        target = dataclasses.replace(self.steps[index], accepted=True, hand="kept")
        later = (_dropped(step, index) for step in self.steps[index + 1 :])
        return dataclasses.replace(self, steps=(*self.steps[:index], target, *later))

    def to_dict(self) -> dict[str, Any]:
        return {"version": VERSION, **encode(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Trajectory:
        """Raises FormatError for another version, an unknown or missing field, or a wrong type."""
        version = data.get("version")
        if version != VERSION:
            raise FormatError(
                f"This trajectory has version {version!r}, this pack reads {VERSION}.",
                "Open it with the version of the pack that wrote it.",
            )
        return decode(cls, {k: v for k, v in data.items() if k != "version"})


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _dropped(step: Step, back_to: int) -> Step:
    if step.hand == "dropped":
        return step
    notes = (*step.notes, f"rolled back by hand, to round {back_to + 1}") if step.accepted else step.notes
    return dataclasses.replace(step, accepted=False, hand="dropped", notes=notes)


def encode(value: Any) -> Any:  # noqa: ANN401
    """A contract object as plain JSON data."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [encode(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): encode(v) for k, v in value.items()}
    return value


def decode(kind: Any, value: Any, where: str = "") -> Any:  # noqa: ANN401
    """Plain JSON data as an object of type `kind`, checked on the way. Raises FormatError naming the field."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _decode_dataclass(kind, value, where)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return decode(next(a for a in args if a is not type(None)), value, where)
    if origin is Literal:
        _expect(value in args, where, f"one of {', '.join(map(str, args))}", value)
        return value
    if origin is tuple:
        _expect(isinstance(value, (list, tuple)), where, "a list", value)
        if args[-1] is Ellipsis:
            return tuple(decode(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
        _expect(len(value) == len(args), where, f"{len(args)} values", value)
        return tuple(decode(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        _expect(isinstance(value, Mapping), where, "an object", value)
        return {str(k): decode(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if kind is float:
        _expect(isinstance(value, (int, float)) and not isinstance(value, bool), where, "a number", value)
        return float(value)
    return _decode_plain(kind, value, where)


def _decode_plain(kind: Any, value: Any, where: str) -> Any:  # noqa: ANN401
    _expect(isinstance(value, kind) and (kind is bool or not isinstance(value, bool)), where, kind.__name__, value)
    return value


def _decode_dataclass(kind: type, value: Any, where: str) -> Any:  # noqa: ANN401
    _expect(isinstance(value, Mapping), where or kind.__name__, "an object", value)
    hints = typing.get_type_hints(kind)
    names = {f.name for f in dataclasses.fields(kind)}
    unknown = sorted(set(value) - names)
    if unknown:
        raise FormatError(
            f"{where or kind.__name__} has unknown fields: {', '.join(unknown)}.",
            f"Known are {', '.join(sorted(names))}.",
        )
    missing = [
        f.name
        for f in dataclasses.fields(kind)
        if f.name not in value and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise FormatError(f"{where or kind.__name__} lacks {', '.join(missing)}.", "The file may be damaged.")
    path = f"{where}." if where else ""
    return kind(**{n: decode(hints[n], v, f"{path}{n}") for n, v in value.items()})


def _expect(holds: bool, where: str, wanted: str, value: Any) -> None:  # noqa: ANN401
    if not holds:
        raise FormatError(f"{where or 'value'} should be {wanted}, not {value!r:.80}.", "The file may be damaged.")
