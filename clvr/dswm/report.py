"""What a merge did to the weights, in plain numbers: per increment, globally and per block."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from .recipe import Source
from .sums import Sums

if TYPE_CHECKING:
    from .merge import Outcome

FORMAT, VERSION = "clvr-merge-report", 1
Share = float | None
"""None where it has no value: nothing to divide by, or NaN in the weights."""


@dataclass(frozen=True)
class Increment:
    """`mark`: its short name in tables and pictures: D, A1, A2, …; `strength`: λ as it was written;
    `varied`: whether λ is anything but 1 everywhere."""

    name: str
    mark: str
    path: str
    strength: str
    varied: bool


@dataclass(frozen=True)
class Figures:
    """The numbers of one block, or of the whole model. Tuples are by increment, or by pair of increments.

    shift: ‖Δ‖/‖W‖ (eq. 7) before λ, added: with λ; merged: ‖θ-W‖/‖W‖
    cosines: between increments; random: 1/√weights, what random directions would give
    retained: of λΔ, its projection after the rounding over that before; unchanged: share of the weights that λΔ
    touches whose rounded value stayed; both of sampled weights
    conflicts: share of weights where both increments are not zero that have other signs; chance: the same when
    one is shifted against the other; nonfinite: NaN and Inf in the reference, each increment and the output."""

    weights: int
    shift: tuple[Share, ...]
    added: tuple[Share, ...]
    merged: Share
    cosines: tuple[Share, ...]
    random: Share
    retained: tuple[Share, ...]
    unchanged: tuple[Share, ...]
    conflicts: tuple[Share, ...]
    chance: tuple[Share, ...]
    nonfinite: tuple[int, ...]


@dataclass(frozen=True)
class Report:
    """One merge. `blocks` in network order, empty like `whole` where nothing was measured; `pairs`: the marks of
    the increments that `Figures.cosines` compares; `reference`: what shifts are relative to."""

    path: str
    form: str
    dtype: str
    reference: str
    increments: tuple[Increment, ...]
    pairs: tuple[tuple[str, str], ...]
    whole: Figures | None
    blocks: Mapping[str, Figures]
    sources: tuple[str, ...]
    sample: int
    warn_shift: float
    energy: float | None
    seconds: float

    @classmethod
    def of(cls, outcome: Outcome) -> Report:
        recipe, sums = outcome.recipe, dict(outcome.blocks)
        sources = _sources(outcome)
        strengths = [source.strength for source in sources]
        lambdas = {block: [s.of(block) for s in strengths] for block in sums}
        increments = tuple(_increment(*pair) for pair in zip(outcome.increments, sources, strict=True))
        whole = None
        if sums:
            scaled = [
                sum(_scaled(part, lambdas[block], k) for block, part in sums.items()) for k in range(len(sources))
            ]
            whole = _figures(Sums.total(list(sums.values())), scaled)
        return cls(
            path=str(outcome.path),
            form=recipe.form,
            dtype=recipe.dtype,
            reference=outcome.reference,
            increments=increments,
            pairs=tuple(combinations([i.mark for i in increments], 2)),
            whole=whole,
            blocks={
                block: _figures(part, [_scaled(part, lambdas[block], k) for k in range(len(sources))])
                for block, part in sums.items()
            },
            sources=(outcome.reference, *outcome.increments, "output"),
            sample=recipe.sample,
            warn_shift=recipe.warn_shift,
            energy=outcome.energy,
            seconds=outcome.seconds,
        )

    def text(self) -> str:
        """For a terminal or a node: at most 100 columns."""
        from .words import text

        return text(self)

    def json(self) -> dict[str, object]:
        """Plain and versioned; holds no NaN. Shares are fractions, not percent."""
        from .words import notes, warnings

        fields = asdict(self)
        return {
            "format": FORMAT,
            "version": VERSION,
            **{name: fields[name] for name in ("path", "form", "dtype", "reference", "sample", "warn_shift")},
            "energy": _finite(self.energy),
            "seconds": round(self.seconds, 3),
            "increments": [
                {"name": i.name, "mark": i.mark, "path": i.path, "strength": i.strength} for i in self.increments
            ],
            "whole": self.whole and self._named(self.whole),
            "blocks": {block: self._named(figures) for block, figures in self.blocks.items()},
            "warnings": list(warnings(self)),
            "notes": list(notes(self)),
        }

    def _named(self, figures: Figures) -> dict[str, object]:
        marks = [i.mark for i in self.increments]
        pairs = ["·".join(pair) for pair in self.pairs]
        found: dict[str, object] = {"weights": figures.weights, "merged": figures.merged, "random": figures.random}
        for name in ("shift", "added", "retained", "unchanged"):
            found[name] = dict(zip(marks, getattr(figures, name), strict=True))
        for name in ("cosines", "conflicts", "chance"):
            found[name] = dict(zip(pairs, getattr(figures, name), strict=True))
        found["nonfinite"] = dict(zip(self.sources, figures.nonfinite, strict=True))
        return found


def _sources(outcome: Outcome) -> list[Source]:
    """The recipe's sources behind the increments: without the distilled model where it is the reference."""
    recipe = outcome.recipe
    first = [recipe.distilled] if recipe.distilled and len(outcome.increments) > len(recipe.align) else []
    return [*first, *recipe.align]


def _increment(name: str, source: Source) -> Increment:
    mark = "D" if name == "distilled" else f"A{name.rpartition(' ')[2]}"
    strength = source.strength
    plain = strength.constant and strength.value == 1
    return Increment(name, mark, str(source.path), strength.describe(), not plain)


def _scaled(sums: Sums, lambdas: Sequence[float], k: int) -> float:
    """Σ(λΔ)² of increment k in one block."""
    return lambdas[k] ** 2 * sums.dots[k][k]


def _figures(sums: Sums, scaled: Sequence[float]) -> Figures:
    each = range(sums.increments)
    pairs = list(combinations(each, 2))
    dots = sums.dots
    return Figures(
        weights=sums.elements,
        shift=tuple(_root(_over(dots[k][k], sums.energy)) for k in each),
        added=tuple(_root(_over(scaled[k], sums.energy)) for k in each),
        merged=_root(_over(sums.merged, sums.energy)),
        cosines=tuple(_cosine(dots[j][k], dots[j][j], dots[k][k]) for j, k in pairs),
        random=_root(_over(1, sums.elements)),
        retained=tuple(_over(sums.kept[k], sums.asked[k]) for k in each),
        unchanged=tuple(_over(sums.unchanged[k], sums.touched[k]) for k in each),
        conflicts=tuple(_over(sums.conflicts[j][k], sums.both[j][k]) for j, k in pairs),
        chance=tuple(_over(sums.chance[j][k], sums.both[j][k]) for j, k in pairs),
        nonfinite=tuple(int(n) for n in sums.nonfinite),
    )


def _over(part: float, whole: float) -> Share:
    return _finite(part / whole) if whole else None


def _root(share: Share) -> Share:
    return None if share is None or share < 0 else math.sqrt(share)


def _cosine(dot: float, one: float, other: float) -> Share:
    """The roots before the product: two tiny energies would underflow."""
    length = math.sqrt(one) * math.sqrt(other) if one > 0 and other > 0 else 0.0
    cosine = _over(dot, length)
    return None if cosine is None else max(-1.0, min(1.0, cosine))


def _finite(number: float | None) -> Share:
    return float(number) if number is not None and math.isfinite(number) else None
