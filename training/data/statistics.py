"""What the engine let through at every gate, and what that cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from clvr.intervals import wilson
from clvr.trajectory import Cost

from .candidates import Prompt
from .dedup import Dropped
from .work import Outcome

CHECKLIST, BASELINE, NARRATIVE = "checklist", "baseline", "narrative"


@dataclass(frozen=True)
class Rate:
    """How many of those that came passed, with a 95 % Wilson interval."""

    name: str
    came: int
    passed: int
    low: float = 0.0
    high: float = 1.0

    @classmethod
    def of(cls, name: str, came: int, passed: int) -> Rate:
        return cls(name, came, passed, *wilson(passed, came))

    @property
    def share(self) -> float | None:
        return self.passed / self.came if self.came else None


@dataclass(frozen=True)
class Statistics:
    """`gates` in the order in which prompts meet them; `drawings` passed by passive verification, by tool; `ends` of
    attempts by gate, '' for those finalised; `votes` by judge and word; `rounds` of kept trajectories by their
    number; `tags` kept by tag; `spent` on everything, in seconds of work."""

    candidates: int
    kept: int
    unfinished: int
    gates: tuple[Rate, ...]
    dropped: Mapping[str, int]
    drawings: tuple[Rate, ...]
    ends: Mapping[str, int]
    votes: Mapping[str, Mapping[str, int]]
    rounds: Mapping[str, int]
    tags: tuple[Rate, ...]
    pictures: int
    spent: Cost = field(default_factory=Cost)


def summarise(
    candidates: int, prompts: Sequence[Prompt], dropped: Sequence[Dropped], outcomes: Sequence[Outcome]
) -> Statistics:
    """`prompts` are what is to be made; `outcomes` those that are done, in the same order."""
    kept = [outcome for outcome in outcomes if not outcome.gate]
    tries = [one for outcome in outcomes for one in outcome.tries]
    ends = Counter(one.gate for one in tries)
    tags = sorted({outcome.tag for outcome in outcomes if outcome.tag})
    return Statistics(
        candidates=candidates,
        kept=len(kept),
        unfinished=len(prompts) - len(outcomes),
        gates=_gates(candidates, len(dropped), outcomes),
        dropped=dict(Counter(one.kind for one in dropped)),
        drawings=_drawings(outcomes),
        ends=dict(ends.most_common()),
        votes=_votes(outcomes),
        rounds={str(n): k for n, k in sorted(Counter(len(o.images) for o in kept).items())},
        tags=tuple(_tag(tag, outcomes) for tag in tags),
        pictures=sum(one.pictures for one in tries) + sum(bool(o.votes) for o in outcomes),
        spent=sum((outcome.spent for outcome in outcomes), Cost()),
    )


def _gates(candidates: int, dropped: int, outcomes: Sequence[Outcome]) -> tuple[Rate, ...]:
    """A prompt that ended at a gate did not pass it, and passed those before."""
    listed = [o for o in outcomes if o.gate != CHECKLIST]
    finalised = [o for o in listed if o.gate in ("", BASELINE, NARRATIVE)]
    preferred = [o for o in finalised if o.gate != BASELINE]
    told = [o for o in preferred if o.gate != NARRATIVE]
    counts = [len(outcomes), len(listed), len(finalised), len(preferred), len(told)]
    names = ("checklist", "verified at every step", "preferred to one shot by every judge", "narrative")
    passed = zip(names, counts, counts[1:], strict=False)
    new = Rate.of("no copy of an evaluation prompt or of another", candidates, candidates - dropped)
    return (new, *(Rate.of(name, came, went) for name, came, went in passed))


def _drawings(outcomes: Sequence[Outcome]) -> tuple[Rate, ...]:
    log = [entry for outcome in outcomes for one in outcome.tries for entry in one.log]
    tools = {"INITIAL_GENERATION": "base images", "IMAGE_EDIT": "edits"}
    drawn = {tool: [entry.note == "carried out" for entry in log if entry.tool == tool] for tool in tools}
    return tuple(Rate.of(tools[tool], len(found), sum(found)) for tool, found in drawn.items())


def _votes(outcomes: Sequence[Outcome]) -> dict[str, dict[str, int]]:
    judges = dict.fromkeys(vote.judge for outcome in outcomes for vote in outcome.votes)
    words = {judge: Counter(v.word for o in outcomes for v in o.votes if v.judge == judge) for judge in judges}
    return {judge: dict(counted) for judge, counted in words.items()}


def _tag(tag: str, outcomes: Sequence[Outcome]) -> Rate:
    mine = [outcome for outcome in outcomes if outcome.tag == tag]
    return Rate.of(tag, len(mine), sum(not outcome.gate for outcome in mine))
