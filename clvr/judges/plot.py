"""A calibration as a picture: how far probabilities can be believed, and the accuracy over the threshold."""

from __future__ import annotations

from PIL import Image

from ..chart import Axis, Chart, Line, Point
from ..chart import draw as draw_charts
from .calibration import Calibration


def draw(found: Calibration, judge: str) -> Image.Image:
    """RGB, 1100 pixels wide."""
    bins = tuple(Point(b.mean, b.share, *b.interval) for b in found.bins)
    ideal = (Point(0.0, 0.0), Point(1.0, 1.0))
    unit = Axis("P(yes), as the judge gives it", 0.0, 1.0)
    reliability = Chart(
        "Reliability",
        unit,
        Axis("Share that is truly yes, 95 % intervals", 0.0, 1.0, label=_percent),
        (Line("this judge", bins), Line("perfectly calibrated", ideal, marked=False)),
    )
    curve = tuple(Point(threshold, accuracy) for threshold, accuracy in found.curve)
    low, high = found.threshold_interval
    chosen = (Point(found.threshold, found.accuracy, *found.accuracy_interval),)
    accuracy = Chart(
        "Balanced accuracy by threshold",
        Axis("Threshold: yes from this probability on", 0.0, 1.0),
        Axis("Balanced accuracy", 0.5, 1.0, label=_percent),
        (
            Line("balanced accuracy", curve, marked=False),
            Line(f"chosen: {found.threshold:.3f} ({low:.3f} to {high:.3f})", chosen, joined=False),
        ),
    )
    asked = found.yes + found.no
    said = f"{asked} answers; expected calibration error {found.ece:.3f}, Brier score {found.brier:.3f}"
    return draw_charts(f"Calibration of {judge}", (reliability, accuracy), said)


def _percent(value: float) -> str:
    return f"{value:.0%}"
