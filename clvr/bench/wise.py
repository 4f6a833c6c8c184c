"""WISE (arXiv 2503.07265): prompts that take world knowledge, in the original form and in WISE_Verified's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import FormatError, MissingFileError
from ..vlm.rating import Criterion, Rubric
from .reading import Row, table, unique
from .suite import Item, Measure, Overall, Suite, Values

CATEGORIES = {
    "Cultural knowledge": "culture",
    "time": "time",
    "Space": "space",
    "Biology": "biology",
    "Physical Knowledge": "physics",
    "Chemistry": "chemistry",
}
LEGACY = {"culture": 0.4, "time": 0.167, "space": 0.133, "biology": 0.1, "physics": 0.1, "chemistry": 0.1}
VERIFIED = {"culture": 0.4, "time": 0.12, "space": 0.12, "biology": 0.12, "physics": 0.12, "chemistry": 0.12}
_NEEDS = "Prompt, Explanation, Category, Subcategory and prompt_id"
_LEGACY_RUBRIC = Rubric("rate_wise", tuple(Criterion(n, 2) for n in ("consistency", "realism", "aesthetic")))
_VERIFIED_RUBRIC = Rubric("rate_wise_verified", (Criterion("correct", 1),))
_MEASURES = (
    Measure("wiscore", "(0.7 · consistency + 0.2 · realism + 0.1 · aesthetic) / 2"),
    Measure("consistency", "the prompt's meaning", highest=2),
    Measure("realism", "how real it looks", highest=2),
    Measure("aesthetic", "how it looks", highest=2),
)


def wise(path: Path) -> Suite:
    """The original release: three scores from 0 to 2."""
    overall = Overall("overall WiScore (legacy weights)", "wiscore", "category", LEGACY)
    official = "WISE_legacy/gpt_eval.py --image_dir IMAGES (PKU-YuanGroup/WISE)"
    items = _items(path, _LEGACY_RUBRIC)
    return Suite("wise", "WISE", items, "category", _MEASURES, (overall,), wiscore, official)


def wise_verified(path: Path) -> Suite:
    """WISE_Verified: one score, 0 or 1."""
    measure = Measure("correct", "images that show what is meant, and are usable", yes_or_no=True)
    overall = Overall("overall WISE_Verified", "correct", "category", VERIFIED)
    official = "IMAGE_DIR=IMAGES bash eval_qwen.sh (PKU-YuanGroup/WISE)"
    items = _items(path, _VERIFIED_RUBRIC)
    return Suite("wise-verified", "WISE_Verified", items, "category", (measure,), (overall,), official=official)


def wiscore(given: Values) -> Values:
    consistency, realism, aesthetic = (given.get(name) for name in ("consistency", "realism", "aesthetic"))
    if consistency is None or realism is None or aesthetic is None:
        return {**given, "wiscore": None}
    return {**given, "wiscore": (0.7 * consistency + 0.2 * realism + 0.1 * aesthetic) / 2}


def _items(path: Path, rubric: Rubric) -> tuple[Item, ...]:
    rows = [(str(row.number("prompt_id", 1, 10**6)), row) for file in _files(path) for row in table(file, _NEEDS)]
    unique(rows)
    rows.sort(key=lambda entry: int(entry[0]))
    return tuple(_item(name, row, rubric) for name, row in rows)


def _item(name: str, row: Row, rubric: Rubric) -> Item:
    tags = {
        "category": CATEGORIES[row.choice("Category", CATEGORIES)],
        "subcategory": row.text("Subcategory"),
    }
    told = row.text("Explanation")
    return Item(name, row.text("Prompt"), tags, f"{name}.png", rubrics=(rubric,), explanation=told)


def _files(path: Path) -> Sequence[Path]:
    """A file as it is; of a folder its .json files without rewritten prompts and without the merged copy."""
    if not path.is_dir():
        return [path]
    files = [p for p in sorted(path.glob("*.json")) if not p.stem.endswith("_rewrite")]
    files = [p for p in files if p.stem != "merge"] or files
    if not files:
        raise MissingFileError(
            f"{path} holds no .json file of WISE.",
            "Get WISE_legacy/data or data_verified of github.com/PKU-YuanGroup/WISE, and name it with --prompts.",
        )
    _one_release(path, files)
    return files


def _one_release(path: Path, files: Sequence[Path]) -> None:
    verified = [p for p in files if p.stem.endswith("_verified")]
    if verified and len(verified) < len(files):
        other = next(p for p in files if p not in verified)
        raise FormatError(
            f"{path} mixes two releases of WISE: {verified[0].name} and {other.name}.",
            "Keep each in a folder of its own.",
        )
