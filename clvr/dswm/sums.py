"""What a merge measures while it streams: sums over the weights of each block, from which the report is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Sums:
    """Sums over one block's weights, for K increments in the recipe's order (the distilled one first).

    W is the reference: the base, or the distilled model where no base was given (K then counts without it).
    Δ_k is increment k before its λ, θ the merged weights before rounding, R(·) the rounding to the output.

    elements: weights; energy: ΣW²; dots: K x K, ΣΔ_jΔ_k; merged: Σ(θ-W)²
    sampled: weights looked at for the rounding; asked: Σ(λ_kΔ_k)² and kept: Σ(R(θ)-R(θ-λ_kΔ_k))·λ_kΔ_k over
    them; unchanged: how many have R(θ) = R(θ-λ_kΔ_k); touched: how many have λ_kΔ_k ≠ 0
    conflicts: K x K, weights where Δ_j and Δ_k, both not zero, have other signs; chance: the same with Δ_k
    shifted against Δ_j (the random baseline); both: weights where both are not zero
    nonfinite: NaN and Inf by source, the output last."""

    increments: int
    elements: int = 0
    energy: float = 0.0
    merged: float = 0.0
    dots: list[list[float]] = field(default_factory=list)
    sampled: int = 0
    asked: list[float] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)
    unchanged: list[int] = field(default_factory=list)
    touched: list[int] = field(default_factory=list)
    conflicts: list[list[int]] = field(default_factory=list)
    chance: list[list[int]] = field(default_factory=list)
    both: list[list[int]] = field(default_factory=list)
    nonfinite: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        count = self.increments
        for name in ("dots", "conflicts", "chance", "both"):
            if not getattr(self, name):
                setattr(self, name, [[0] * count for _ in range(count)])
        for name in ("asked", "kept", "unchanged", "touched"):
            if not getattr(self, name):
                setattr(self, name, [0] * count)
        self.nonfinite = self.nonfinite or [0] * (count + 2)

    def __iadd__(self, other: Sums) -> Sums:
        for name, value in vars(other).items():
            if name != "increments":
                setattr(self, name, _plus(getattr(self, name), value))
        return self

    @classmethod
    def total(cls, parts: Sequence[Sums]) -> Sums:
        """All blocks together; there must be at least one."""
        found = cls(parts[0].increments)
        for part in parts:
            found += part
        return found


def _plus(one, other):  # noqa: ANN001, ANN202
    if isinstance(one, list):
        return [_plus(a, b) for a, b in zip(one, other, strict=True)]
    return one + other
