"""ImagineBench (arXiv 2508.09987): fantasy changes to a thing that stays itself, three scores from 0 to 10."""

from __future__ import annotations

from pathlib import Path

from ..vlm.rating import Criterion, Rubric
from .reading import lines, unique
from .suite import Item, Measure, Overall, Suite, Values

GROUPS = {
    "COLOR": "Attribute shift",
    "SHAPE": "Attribute shift",
    "SIZE": "Attribute shift",
    "MATERIAL": "Hybridization",
    "COMBINATION": "Hybridization",
    "TIME": "Spatiotemporal",
    "ENVIRONMENT": "Spatiotemporal",
    "Multi-Object": "Multi-Object",
}
"""Types, as the official script merges them."""
OFFICIAL = {"Attribute shift": 3.0, "Hybridization": 2.0, "Spatiotemporal": 2.0}
"""The official script gives Multi-Object a weight under a name that no prompt has, and so leaves it out."""
_RUBRIC = Rubric("rate_imagine", (Criterion("fantasy"), Criterion("identity"), Criterion("aesthetic")))
_NEEDS = "id, instruction, note (what the image is to show) and type"
_MEASURES = (
    Measure("score", "0.8 · min(fantasy, identity) + 0.2 · aesthetic", highest=10),
    Measure("fantasy", "the change that was asked for", highest=10),
    Measure("identity", "the thing still itself", highest=10),
    Measure("aesthetic", "how it looks", highest=10),
)


def imaginebench(path: Path) -> Suite:
    rows = [(str(row.number("id", 0, 10**9)), row) for row in lines(path, _NEEDS)]
    unique(rows)
    items = []
    for name, row in rows:
        kind = row.choice("type", GROUPS)
        tags = {"type": kind, "group": GROUPS[kind]}
        note = row.text("note")
        items.append(Item(name, row.text("instruction"), tags, f"{name}.png", rubrics=(_RUBRIC,), explanation=note))
    overalls = (
        Overall("overall as the official script computes it (without Multi-Object)", "score", "group", OFFICIAL),
        Overall("overall with Multi-Object", "score", "group", {**OFFICIAL, "Multi-Object": 2.0}),
    )
    official = "Eval-gpt-4.1-Imagine.py --image_dir IMAGES (yejy53/Echo-4o, test_scripts)"
    return Suite("imaginebench", "ImagineBench", tuple(items), "type", _MEASURES, overalls, score, official)


def score(given: Values) -> Values:
    """Each score, and their combination where all three were given."""
    fantasy, identity, aesthetic = (given.get(name) for name in ("fantasy", "identity", "aesthetic"))
    if fantasy is None or identity is None or aesthetic is None:
        return {**given, "score": None}
    return {**given, "score": 0.8 * min(fantasy, identity) + 0.2 * aesthetic}
