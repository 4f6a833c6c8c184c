"""Results over complexity, and areas over spectral capacity, as a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image

from ..chart import Axis, Chart, Line, Point, draw
from .fit import PowerLaw
from .results import Result
from .tiers import Rate, TierResult


def picture(results: Sequence[Result], capacities: Sequence[float] = (), law: PowerLaw | None = None) -> Image.Image:
    """Pass rate and recall by tier with their 95 % intervals; with `law`, each area over its capacity too."""
    charts = [_by_tier("Pass rate by complexity", results, lambda tier: tier.passed)]
    if all(tier.recall for result in results for tier in result.tiers):
        charts.append(_by_tier("Recall of constraints by complexity", results, lambda tier: tier.recall))
    if law is not None:
        charts.append(_capacity(results, capacities, law))
    prompts = len({one.prompt for result in results for one in result.scored})
    images = sum(result.images for result in results)
    said = f"{prompts} prompts, {images} images; bars are 95 % intervals"
    return draw("Complexity probe", charts, said)


def _by_tier(title: str, results: Sequence[Result], rate: Callable[[TierResult], Rate | None]) -> Chart:
    lines = tuple(
        Line(result.name, tuple(_point(tier, found) for tier in result.tiers if (found := rate(tier))))
        for result in results
    )
    share = Axis("mean over prompts", 0.0, 1.0, label=lambda value: f"{value:.0%}")
    return Chart(title, Axis("complexity (median of the tier)"), share, lines)


def _point(tier: TierResult, rate: Rate) -> Point:
    return Point(tier.median, rate.mean, *rate.interval)


def _capacity(results: Sequence[Result], capacities: Sequence[float], law: PowerLaw) -> Chart:
    models = [Line(result.name, (Point(x, result.area),)) for result, x in zip(results, capacities, strict=True)]
    ends = (min(capacities), max(capacities))
    said = f"AUC ~ I_eff^{law.exponent:.3f}, R^2 {law.r_squared:.3f}"
    line = Line(said, tuple(Point(x, law(x)) for x in ends), marked=False)
    return Chart("Area over spectral capacity", Axis("I_eff", log=True), Axis("AUC", log=True), (*models, line))
