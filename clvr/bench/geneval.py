"""GenEval (arXiv 2310.11513) and GenEval++ (arXiv 2508.09987): include and exclude lists as exact checks."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import FormatError
from ..trajectory import Check
from .questions import COLORS, REGIONS, RELATIONS, SIZES, Wanted, checks
from .reading import Row, lines
from .suite import Item, Suite

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
TASKS_PP = (
    "color_attr",
    "color_count_attr",
    "color_spatial_attr",
    "counting",
    "multi_object_count_attr",
    "size_spatial_attr",
    "spatial_count_attr",
)
_NEEDS = "tag, prompt and include, a list of {class, count, color?, position?, region?, size?}"
_ENTRY = "class and count; color, position [relation, index], region and size where they are asked for"
_COHERENT = Check(
    "natural",
    "Is it one natural, coherent, photo-like picture, and no drawing, collage or grid of panels?",
    "style",
)
"""Rule 2 of GenEval++'s judge."""


def geneval(path: Path) -> Suite:
    """The 553 prompts, or others of their form. The official overall score is the macro average."""
    rows = lines(path, _NEEDS)
    items = tuple(_item(i, row, exact=False) for i, row in enumerate(rows))
    official = "python evaluation/evaluate_images.py IMAGES --outfile results.jsonl (djghosh13/geneval)"
    return Suite("geneval", "GenEval", items, "task", official=official)


def genevalpp(path: Path) -> Suite:
    """The 280 prompts. Counts are exact where a prompt is about numbers, as its judge is told."""
    rows = lines(path, _NEEDS)
    items = tuple(_item_pp(i, row) for i, row in enumerate(rows, 1))
    official = "Eval-gpt-4.1-geneval++.py with image_dir = IMAGES (yejy53/Echo-4o, test_scripts)"
    return Suite("geneval++", "GenEval++", items, "task", official=official)


def _item(index: int, row: Row, exact: bool) -> Item:
    folder = f"{index:05}"
    metadata = {f"{folder}/metadata.jsonl": json.dumps(row.data)}
    task = row.choice("tag", TASKS)
    image = f"{folder}/samples/0000.png"
    return Item(folder, row.text("prompt"), {"task": task}, image, checks(_wanted(row, exact)), beside=metadata)


def _item_pp(number: int, row: Row) -> Item:
    task = row.choice("tag", TASKS_PP)
    asked = (*checks(_wanted(row, exact="count" in task)), _COHERENT)
    return Item(str(number), row.text("prompt"), {"task": task}, f"{number}.jpg", asked)


def _wanted(row: Row, exact: bool) -> list[Wanted]:
    entries = row.rows("include", _ENTRY)
    if not entries:
        raise row.error("'include' is empty")
    limits = _limits(row)
    return [_entry(entry, i, exact, limits) for i, entry in enumerate(entries)]


def _entry(row: Row, index: int, exact: bool, limits: dict[str, int]) -> Wanted:
    name, count = row.text("class"), row.number("count", 1, 50)
    limit = limits.get(name)
    if limit is not None and limit != count + 1:
        raise row.error(f"'exclude' forbids {limit} of what 'include' wants {count} of")
    return Wanted(
        name,
        count,
        color=row.choice("color", COLORS) if "color" in row.data else "",
        position=_position(row, index),
        region=row.choice("region", REGIONS) if "region" in row.data else "",
        size=row.choice("size", SIZES) if "size" in row.data else "",
        exact=exact or limit is not None,
    )


def _limits(row: Row) -> dict[str, int]:
    """Counts that a class must stay below."""
    if "exclude" not in row.data:
        return {}
    listed = row.rows("exclude", "class and count")
    wanted = {str(entry.data.get("class")) for entry in row.rows("include", _ENTRY)}
    limits = {entry.text("class"): entry.number("count", 1, 50) for entry in listed}
    foreign = [name for name in limits if name not in wanted]
    if foreign:
        raise row.error(f"'exclude' names {foreign[0]!r:.60}, which 'include' does not")
    return limits


def _position(row: Row, index: int) -> tuple[str, int] | None:
    if "position" not in row.data:
        return None
    value = row.data["position"]
    problem: FormatError = row.error(f"'position' should be [relation, index of an earlier entry], not {value!r:.60}")
    if not isinstance(value, list) or len(value) != 2:
        raise problem
    relation, target = value
    if relation not in RELATIONS or not isinstance(target, int) or isinstance(target, bool) or not 0 <= target < index:
        raise problem
    return relation, target
