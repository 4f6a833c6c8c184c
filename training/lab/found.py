"""What a chain's finished stages left, read back: rates with intervals, and what the paper claims against it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clvr.hub import read_json
from clvr.intervals import normal, wilson

from .. import book
from .chain import CLOCKED, MERGES, REPORT, Chain
from .config import GENEVAL
from .rows import BOOK, ROWS, Measured, Row


@dataclass(frozen=True)
class Rate:
    """Passes of tries, with a 95 % Wilson interval."""

    passed: int
    tries: int

    @classmethod
    def of(cls, runs: Sequence[Measured]) -> Rate:
        return cls(sum(run.passed for run in runs), len(runs))

    @property
    def share(self) -> float:
        return self.passed / self.tries if self.tries else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.passed, self.tries)

    def __str__(self) -> str:
        return f"{self.share:.2f} [{self.interval[0]:.2f}, {self.interval[1]:.2f}]" if self.tries else "–"


@dataclass(frozen=True)
class Found:
    """`rows`: every measured row's runs, by the row's key. `merges`: reports as JSON. `clocks`: timed runs by model.
    `folders`: of the stages that are done."""

    rows: Mapping[str, Sequence[Measured]]
    merges: Mapping[str, Mapping[str, Any]]
    clocks: Mapping[str, Sequence[Measured]]
    folders: Mapping[str, Path]
    seconds: Mapping[str, float]

    @classmethod
    def read(cls, chain: Chain, root: Path) -> Found:
        folders = {name: stage.folder(root) for name, stage in chain.stages.items() if stage.done(root)}
        rows = {row.key: folders.get(f"row-{row.key}") for row in ROWS}
        return cls(
            {key: book.read(folder / BOOK, Measured) for key, folder in rows.items() if folder},
            {name: read_json(folders[name] / REPORT) for name in MERGES if name in folders},
            {CLOCKED[name]: book.read(folders[name] / BOOK, Measured) for name in CLOCKED if name in folders},
            folders,
            {name: chain.stages[name].stamp(root)["seconds"] for name in folders},
        )

    def measured(self) -> list[Row]:
        return [row for row in ROWS if row.key in self.rows]

    def rate(self, row: str, categories: Sequence[str] = GENEVAL) -> Rate:
        return Rate.of([run for run in self.rows[row] if run.category in categories])

    def within(self, row: str, pictures: int) -> Rate:
        """Prompts of all categories that pass with at most so many pictures: a loop ends where all checks hold."""
        runs = self.rows[row]
        return Rate(sum(run.passed and run.images <= pictures for run in runs), len(runs))

    def macro(self, row: str) -> float:
        """The mean over GenEval's categories, as the paper's overall."""
        rates = [self.rate(row, (category,)) for category in GENEVAL]
        return statistics.fmean(rate.share for rate in rates if rate.tries) if any(r.tries for r in rates) else math.nan


@dataclass(frozen=True)
class Claim:
    """What the paper says, and the rows that they compare: `more` should pass more often than `less`."""

    said: str
    more: str
    less: str


CLAIMS = (
    Claim("the closed loop helps the untrained base (no row of the paper)", "base-loop", "base"),
    Claim("the closed loop helps the distilled model (0.81 to 0.86)", "few-loop", "few"),
    Claim("SFT and the loop beat the base in one shot (0.74 to 0.78)", "sft", "base"),
    Claim("PPRL improves on SFT at 28 steps (0.78 to 0.83)", "pprl", "sft"),
    Claim("PPRL improves on SFT after the merge (0.85 to 0.87)", "few-pprl", "few-sft"),
    Claim("simple RL falls behind SFT after the merge (0.85 to 0.84)", "few-sft", "few-simple"),
    Claim("PPRL beats simple RL after the merge (0.84 to 0.87)", "few-pprl", "few-simple"),
    Claim("the merge keeps PPRL's gain at 4 steps (0.83 to 0.87)", "few-pprl", "pprl"),
    Claim("the merge beats the distilled model (0.81 to 0.87)", "few-pprl", "few"),
    Claim("distillation alone beats the base (0.74 to 0.81)", "few", "base"),
    Claim("rewriting the prompt harms the distilled model (0.81 to 0.78)", "few", "few-rewritten"),
)


Difference = tuple[float, float, float]
"""A mean over prompts that two rows share, and its 95 % interval."""


def difference(found: Found, claim: Claim) -> Difference | None:
    """Of the pass rates, `more` less `less`; None where a row is missing."""
    return _difference(found, claim.more, claim.less, lambda run: float(run.passed), (-1.0, 1.0))


def saved(found: Found, claim: Claim) -> Difference | None:
    """Pictures a prompt that `more` saves against `less`; None where a row is missing or draws once."""
    looped = {row.key for row in ROWS if row.looped}
    if not {claim.more, claim.less} <= looped:
        return None
    return _difference(found, claim.less, claim.more, lambda run: float(run.images), (-math.inf, math.inf))


def _difference(
    found: Found, first: str, second: str, value: Callable[[Measured], float], bounds: tuple[float, float]
) -> Difference | None:
    if not {first, second} <= found.rows.keys():
        return None
    others = {run.task: value(run) for run in found.rows[second]}
    pairs = [value(run) - others[run.task] for run in found.rows[first] if run.task in others]
    if not pairs:
        return None
    low, high = normal(pairs) if len(set(pairs)) > 1 else (statistics.fmean(pairs),) * 2
    return statistics.fmean(pairs), max(low, bounds[0]), min(high, bounds[1])


def verdict(difference: Difference) -> str:
    _, low, high = difference
    return "agrees" if low > 0 else "disagrees" if high < 0 else "undecided"
