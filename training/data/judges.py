"""Who compares a trajectory's picture with the baseline: VLMs by name, and two that measure the built-in world."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clvr.errors import GrammarError
from clvr.judges import ScoreComparer
from clvr.models import Choice, load_client
from clvr.ports import Comparer, Preference
from clvr.shapes.language import parse
from clvr.shapes.measure import measure
from clvr.shapes.planning import make_plan, slots, suits
from clvr.shapes.scene import Spec
from clvr.shapes.verifier import MeasuringVerifier
from clvr.trajectory import Evidence, Goal
from clvr.vlm.compare import VLMComparer

if TYPE_CHECKING:
    from PIL.Image import Image

SCORES, OBJECTS = "scores", "objects"


class ObjectComparer:
    """`ports.Comparer` for the built-in world: the picture whose objects agree better with the wanted ones, by the
    F1 of object against object, each match weighed by how clearly it is drawn. `margin`: a difference up to this is
    a tie. It counts objects, where the checklist's score counts questions."""

    def __init__(self, margin: float = 0.02) -> None:
        self._margin = margin

    @property
    def name(self) -> str:
        return "objects measured"

    def prefer(self, first: Image, second: Image, goal: Goal, references: Sequence[Image] = ()) -> Preference:
        """Unjudged for a goal outside the grammar."""
        try:
            spec = parse(goal.prompt)
        except GrammarError as error:
            return Preference(None, evidence=(Evidence(self.name, str(error)),))
        one, other = agreement(first, spec), agreement(second, spec)
        note = f"agreement {one:.2f} against {other:.2f}"
        lead = one - other
        preferred = 0.5 if abs(lead) <= self._margin else float(lead > 0)
        return Preference(preferred, evidence=(Evidence(self.name, note),))


def agreement(image: Image, spec: Spec) -> float:
    """F1 in [0, 1] of what is there against what is wanted, in its place where the prompt says one."""
    found = measure(image)
    plan = make_plan(spec, slots(spec, 0), found)
    matched = sum(
        p.found.confidence
        for p in plan.placements
        if p.found is not None and p.found.cell == p.cell and suits(spec, p.slot, p.found)
    )
    return 2 * matched / (len(found) + len(plan.placements))


def open_judge(name: str, choice: Choice) -> Comparer:
    """`scores`, `objects`, or a VLM: address, address#model, transformers:FOLDER. Raises what `load_client` raises."""
    if name == SCORES:
        return ScoreComparer(MeasuringVerifier())
    if name == OBJECTS:
        return ObjectComparer()
    address, _, model = name.partition("#")
    return VLMComparer(load_client(dataclasses.replace(choice, vlm=address, vlm_model=model)), logprobs=True)
