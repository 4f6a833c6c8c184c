"""What a run will take, told before it starts; and what it took, kept for the next time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .common import say

if TYPE_CHECKING:
    from ..budget import Budget
    from ..loop import Ports
    from ..models import Choice
    from ..past import Recorder
    from ..ports import Size


def forecast(choice: Choice, budget: Budget, size: Size | None) -> str:
    """One line, from past runs on this machine. Raises as `models.outline`."""
    from .. import models
    from ..estimate import estimate
    from ..past import History

    setup = models.outline(choice, size)
    steps, warning = History().read()
    if warning:
        say(f"clvr: {warning}")
    return f"estimate: {estimate(budget, setup, steps).line()}"


def recorder(ports: Ports) -> Recorder:
    from ..past import Recorder, vlm_name

    return Recorder(ports.generator.name, lambda: vlm_name(ports.controller, ports.verifier))
