"""A run as plain data for whoever looks at it while it happens: a listener, and the run so far as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import events
from ..budget import Budget
from ..trajectory import Candidate, Check, Cost, Decision, Goal, Step, Trajectory, Verdict
from .pictures import candidate_label

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..journal import Record

TEXT = 4000
"""Characters of one text that are shown; the report holds the whole."""
WARNINGS = 100


@dataclass
class Round:
    """A round in the making. `done` of `of` denoising steps are drawn."""

    step: int
    decision: Decision
    notes: tuple[str, ...] = ()
    done: int = 0
    of: int = 0
    drawn: int = 0
    candidates: tuple[Candidate, ...] = ()
    chosen: int | None = None
    accepted: bool | None = None


class Watch:
    """A listener of the loop. `images` holds candidates by their label until `forget` drops them."""

    def __init__(self, trajectory: Trajectory | None = None, budget: Budget | None = None) -> None:
        self.trajectory = trajectory or Trajectory(Goal(""))
        self.budget = budget or Budget()
        self.expected = ""
        """What the run was estimated to take, told before it starts."""
        self.round: Round | None = None
        self.warnings: list[str] = []
        self.images: dict[str, Image] = {}

    @classmethod
    def of(cls, record: Record) -> Watch:
        watch = cls(record.trajectory, record.header.budget)
        watch.warnings.extend(record.warnings)
        return watch

    def listen(self, event: events.Event) -> None:
        match event:
            case events.Started(goal, budget, seed):
                self.trajectory, self.budget = Trajectory(goal, seed=seed), budget
            case events.Checklisted(goal) | events.Amended(goal):
                known = self.trajectory
                self.trajectory = Trajectory(
                    goal, known.steps, known.seed, known.stop_reason, known.preparation, known.closing
                )
            case events.Planned(step, decision, notes):
                self.round = Round(step, decision, notes)
            case events.Settled(step, images, trajectory):
                self.trajectory = trajectory
                self._keep(step.index, images)
                if images:
                    self.round = None
            case events.Stopped(_, trajectory):
                self.trajectory, self.round = trajectory, None
            case events.Warned(message):
                self.warnings = [*self.warnings, message][-WARNINGS:]
            case _:
                self._in_the_making(event)

    def forget(self, step: int) -> None:
        """Drop the pictures of a step: they are on disk."""
        prefix = candidate_label(step, 0).rsplit("/", 1)[0] + "/"
        for label in [label for label in self.images if label.startswith(prefix)]:
            del self.images[label]

    def json(self) -> dict[str, Any]:
        """Everything that a panel shows, of bounded size."""
        trajectory, best = self.trajectory, self.trajectory.best
        goal = trajectory.goal
        return {
            "prompt": _clip(goal.prompt),
            "seed": trajectory.seed,
            "references": list(goal.labels()),
            "checks": [_check(check) for check in goal.checks],
            "budget": {"threshold": self.budget.threshold, "candidates": self.budget.candidates},
            "expected": self.expected,
            "spent": spent(trajectory.cost, len(trajectory.steps), self.budget),
            "steps": [_step(trajectory, step, best) for step in trajectory.steps],
            "round": _round(goal, self.round) if self.round else None,
            "warnings": [_clip(warning) for warning in self.warnings],
            "stop": _clip(trajectory.stop_reason),
        }

    def _in_the_making(self, event: events.Event) -> None:
        current = self.round
        if current is None:
            return
        match event:
            case events.Drawing(_, progress):
                current.done, current.of = progress.step, progress.steps
            case events.Drawn(step, seeds, pictures, first):
                current.drawn = first + len(seeds)
                self._keep(step, pictures.images, first)
            case events.Judged(_, candidates, chosen, accepted):
                current.candidates, current.chosen, current.accepted = candidates, chosen, accepted
            case events.Answered(_, "planned", answer) if answer.back_to is not None:
                self.round = None
            case events.Answered(_, "planned", answer) if answer.decision:
                current.decision = answer.decision

    def _keep(self, step: int, images: Iterable[Image], first: int = 0) -> None:
        self.images.update({candidate_label(step, k): image for k, image in enumerate(images, first)})


def spent(cost: Cost, steps: int, budget: Budget) -> list[dict[str, Any]]:
    """What was used of what is limited, and the VLM's calls and the evaluations also where they are not."""
    rows = [
        ("rounds", steps, budget.steps),
        ("evaluations", cost.nfe, budget.nfe),
        ("seconds", round(cost.total_seconds, 2), budget.seconds),
        ("VLM calls", cost.usage.calls, budget.vlm_calls),
        ("tokens", cost.usage.tokens, budget.tokens),
    ]
    return [{"name": name, "used": used, "limit": limit} for name, used, limit in rows]


def brief(trajectory: Trajectory) -> dict[str, Any]:
    """A run as a line of a list."""
    best = trajectory.best
    return {
        "prompt": _clip(trajectory.goal.prompt, 300),
        "rounds": len(trajectory.steps),
        "score": trajectory.score(best) if best else None,
        "best": candidate_label(best.index, best.chosen) if best else None,
        "stop": _clip(trajectory.stop_reason, 300),
    }


def _step(trajectory: Trajectory, step: Step, best: Step | None) -> dict[str, Any]:
    told = _told(step.index, step.decision, step.notes)
    return {
        **told,
        "candidates": _candidates(trajectory.goal, step.decision, step.index, step.candidates),
        "chosen": step.chosen,
        "accepted": step.accepted,
        "hand": step.hand,
        "best": best is not None and best.index == step.index,
        "score": trajectory.score(step),
        "seconds": {name: round(value, 2) for name, value in step.cost.seconds.items()},
        "evaluations": step.cost.nfe,
    }


def _round(goal: Goal, current: Round) -> dict[str, Any]:
    candidates = current.candidates or tuple(Candidate(0) for _ in range(current.drawn))
    return {
        **_told(current.step, current.decision, current.notes),
        "done": current.done,
        "of": current.of,
        "candidates": _candidates(goal, current.decision, current.step, candidates),
        "judged": bool(current.candidates),
        "chosen": current.chosen,
        "accepted": current.accepted,
    }


def _told(index: int, decision: Decision, notes: Sequence[str]) -> dict[str, Any]:
    return {
        "index": index,
        "action": decision.action,
        "tactic": decision.brief.tactic,
        "reasoning": _clip(decision.reasoning),
        "instruction": _clip(decision.instruction),
        "references": list(decision.references),
        "expects": [_check(check) for check in decision.expects],
        "notes": [_clip(note, 1000) for note in notes],
    }


def _candidates(goal: Goal, decision: Decision, step: int, candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    return [
        {
            "image": candidate_label(step, k),
            "score": candidate.active.score(goal.checks) if candidate.active else None,
            "active": _results(candidate.active, goal.checks),
            "passive": _results(candidate.passive, decision.expects),
        }
        for k, candidate in enumerate(candidates)
    ]


def _results(verdict: Verdict | None, checks: Sequence[Check]) -> list[dict[str, Any]] | None:
    """Each check's outcome with its evidence, in the order of the checks; None where nothing was asked."""
    if verdict is None or not checks:
        return None
    by_id = {result.check: result for result in verdict.results}
    found = []
    for check, outcome in verdict.effective(checks):
        result = by_id.get(check.id)
        evidence = [
            {"judge": _clip(e.judge, 100), "note": _clip(e.note, 1000), "boxes": [list(b) for b in e.boxes[:16]]}
            for e in (result.evidence[:4] if result else ())
        ]
        chance = result.probability if result else None
        found.append({"check": check.id, "outcome": outcome, "probability": chance, "evidence": evidence})
    return found


def _check(check: Check) -> Mapping[str, Any]:
    return {"id": check.id, "question": _clip(check.question, 1000), "hand": check.id.startswith("hand")}


def _clip(text: str, limit: int = TEXT) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
