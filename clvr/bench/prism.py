"""PRISM-Bench (arXiv 2509.09680): seven tracks, alignment and aesthetics from 0 to 10, told in percent."""

from __future__ import annotations

from pathlib import Path

from ..errors import MissingFileError
from ..vlm.rating import Criterion, Rubric
from ..vlm.templates import RubricName
from .reading import lines
from .suite import Item, Measure, Suite, Values

TRACKS: dict[str, RubricName] = {
    "imagination": "rate_prism_imagination",
    "entity": "rate_prism_entity",
    "text_rendering": "rate_prism_text_rendering",
    "style": "rate_prism_style",
    "affection": "rate_prism_affection",
    "composition": "rate_prism_composition",
    "long_text": "rate_prism_long_text",
}
_AESTHETIC = Rubric("rate_prism_aesthetic", (Criterion("aesthetic"),))
_MEASURES = (
    Measure("average", "mean of alignment and aesthetic", highest=100),
    Measure("alignment", "what the track asks of the image", highest=100),
    Measure("aesthetic", "how it looks", highest=100),
)


def prism(folder: Path) -> Suite:
    """The tracks that the folder holds, each from <track>.jsonl. The official overall is the macro average."""
    files = {track: folder / f"{track}.jsonl" for track in TRACKS}
    there = {track: path for track, path in files.items() if path.is_file()}
    if not there:
        raise MissingFileError(
            f"{folder} holds no track of PRISM-Bench ({', '.join(p.name for p in files.values())}).",
            "Name the folder captions/en of its repository with --prompts.",
        )
    items = tuple(item for track, path in there.items() for item in _track(track, path))
    official = "evaluation/eval_qwen25.py --image_path IMAGES (PRISM-Bench)"
    return Suite("prism", "PRISM-Bench", items, "track", _MEASURES, values=percent, official=official)


def percent(given: Values) -> Values:
    """Scores of 0 to 10 in percent, as the leaderboard has them."""
    alignment, aesthetic = given.get("alignment"), given.get("aesthetic")
    both = None if alignment is None or aesthetic is None else 5 * (alignment + aesthetic)
    return {
        "alignment": None if alignment is None else 10 * alignment,
        "aesthetic": None if aesthetic is None else 10 * aesthetic,
        "average": both,
    }


def _track(track: str, path: Path) -> list[Item]:
    rubrics = (Rubric(TRACKS[track], (Criterion("alignment"),)), _AESTHETIC)
    rows = lines(path, "prompt")
    return [
        Item(f"{track}-{i}", row.text("prompt"), {"track": track}, f"{track}/{i}.png", rubrics=rubrics)
        for i, row in enumerate(rows)
    ]
