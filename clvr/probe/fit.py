"""The power law between a model's spectral capacity and its area over complexity (appendix A.7, figure 5)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import SettingError


@dataclass(frozen=True)
class PowerLaw:
    """y = factor * x ** exponent. `r_squared` is that of the straight line through the logarithms."""

    factor: float
    exponent: float
    r_squared: float

    def __call__(self, x: float) -> float:
        return self.factor * x**self.exponent


def power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw:
    """Least squares in log-log. Raises SettingError for fewer than two different x, or values that are not above 0."""
    if len(x) != len(y) or len(set(x)) < 2:
        raise SettingError(f"{len(set(x))} different capacities fit no law.", "Give two at least, one for each area.")
    if min(*x, *y) <= 0:
        raise SettingError("A power law holds between values above 0.", "Leave out models that never pass.")
    a, b = [math.log(value) for value in x], [math.log(value) for value in y]
    slope, start = statistics.linear_regression(a, b)
    mean = statistics.fmean(b)
    total = math.fsum((value - mean) ** 2 for value in b)
    left = math.fsum((value - start - slope * place) ** 2 for place, value in zip(a, b, strict=True))
    return PowerLaw(math.exp(start), slope, 1 - left / total if total else 1.0)
