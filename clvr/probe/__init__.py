"""The complexity probe of appendix A.7: how much a prompt asks for, and how a model holds up as that grows.

Standard library alone; `rank`, the spectral capacity of weights, and `plot` are imported by who needs them."""

from .complexity import DEFAULT, Parts, Weights, complexity, of_spec, words
from .tiers import (
    TIERS,
    Rate,
    Scored,
    Shot,
    TierResult,
    auc,
    auc_pass,
    auc_recall,
    by_prompt,
    by_tier,
    edges,
    rate,
    recall,
    tier,
    tiers,
)

__all__ = [
    "DEFAULT",
    "TIERS",
    "Parts",
    "Rate",
    "Scored",
    "Shot",
    "TierResult",
    "Weights",
    "auc",
    "auc_pass",
    "auc_recall",
    "by_prompt",
    "by_tier",
    "complexity",
    "edges",
    "of_spec",
    "rate",
    "recall",
    "tier",
    "tiers",
    "words",
]
