"""95 % intervals of measured rates and means (appendix A.9)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

Z = 1.959963984540054
"""Standard normal quantile of a two-sided 95 % interval."""


def wilson(passed: int, tries: int, z: float = Z) -> tuple[float, float]:
    """Wilson score interval of a rate, inside [0, 1]; (0, 1) without a try. Raises ValueError for more passes
    than tries."""
    if not 0 <= passed <= tries:
        raise ValueError(f"{passed} passes of {tries} tries")
    if tries == 0:
        return 0.0, 1.0
    rate, square = passed / tries, z * z
    centre = rate + square / (2 * tries)
    spread = z * math.sqrt(rate * (1 - rate) / tries + square / (4 * tries * tries))
    low, high = (centre - spread) / (1 + square / tries), (centre + spread) / (1 + square / tries)
    return max(0.0, low) if passed else 0.0, min(1.0, high) if passed < tries else 1.0


def normal(scores: Sequence[float], z: float = Z) -> tuple[float, float]:
    """Interval of a mean by the normal approximation, adequate from a few dozen scores on. Without a spread to
    estimate (fewer than two scores) it is unbounded. Raises ValueError for no scores."""
    mean = statistics.fmean(scores)
    if len(scores) < 2:
        return -math.inf, math.inf
    spread = z * statistics.stdev(scores) / math.sqrt(len(scores))
    return mean - spread, mean + spread
