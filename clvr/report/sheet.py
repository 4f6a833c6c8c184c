"""A run as one picture: the prompt, then a tile a round."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from ..trajectory import Step, Trajectory
from .figures import percent
from .pictures import Pictures, reference_labels
from .rounds import ACTIONS

_PAPER, _INK, _SOFT, _LINE = "#f5f4f0", "#1a1c21", "#575c66", "#d8d5cc"
_PASS, _FAIL, _MISSING = "#12724a", "#b93118", "#e4e1d9"
_MARGIN, _GAP, _CAPTION = 40, 28, 64  # pixels
_COLUMNS = 5
_NARROWEST = 150
"""A tile is at least this wide, in pixels: its caption must fit."""
_TILE = 256
"""Side in pixels that small pictures are enlarged to, by a whole factor."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class _Tile:
    """`state`: "best", "kept", "back" (rolled back) or "given" (a reference)."""

    image: Image.Image | None
    title: str
    score: str
    state: str


def contact_sheet(trajectory: Trajectory, images: Mapping[str, Image.Image]) -> Image.Image:
    """The sheet as RGB. `images`: the album; a round's tile is its chosen candidate.

    Tiles are about 256 px for small pictures and at most 384 px for large ones, up to five in a row."""
    tiles = _tiles(trajectory, Pictures(images))
    size = _tile_size([t.image for t in tiles if t.image])
    lines = math.ceil(len(tiles) / _COLUMNS)
    columns = max(2, math.ceil(len(tiles) / max(1, lines)))
    width = 2 * _MARGIN + columns * size[0] + (columns - 1) * _GAP
    title = _wrap(trajectory.goal.prompt or "(no prompt)", _font(30), width - 2 * _MARGIN, 6)
    facts = _wrap(_facts(trajectory), _font(18), width - 2 * _MARGIN, 3)
    top = _MARGIN + 40 * len(title) + 12 + 26 * len(facts) + 30
    height = top + lines * (size[1] + _CAPTION) + max(0, lines - 1) * _GAP + _MARGIN // 2
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    _write_lines(pen, title, _MARGIN, 40, _font(30), _INK)
    _write_lines(pen, facts, _MARGIN + 40 * len(title) + 12, 26, _font(18), _SOFT)
    for i, tile in enumerate(tiles):
        x = _MARGIN + (i % columns) * (size[0] + _GAP)
        y = top + (i // columns) * (size[1] + _CAPTION + _GAP)
        _place(sheet, pen, tile, (x, y), size)
    return sheet


def _tiles(trajectory: Trajectory, pictures: Pictures) -> list[_Tile]:
    given = [
        _Tile(pictures.images.get(label), f"Reference {i + 1}", "", "given")
        for i, label in enumerate(reference_labels(trajectory))
    ]
    return [*given, *(_round_tile(trajectory, step, pictures) for step in trajectory.steps)]


def _round_tile(trajectory: Trajectory, step: Step, pictures: Pictures) -> _Tile:
    score = trajectory.score(step)
    state = "best" if trajectory.best is step else "kept" if step.accepted else "back"
    title = f"{step.index + 1}  {ACTIONS[step.decision.action]}"
    return _Tile(pictures.image(step, step.chosen), title, "" if score is None else percent(score), state)


def _facts(trajectory: Trajectory) -> str:
    best = trajectory.best
    score = trajectory.score(best) if best else None
    rounds = len(trajectory.steps)
    facts = [f"seed {trajectory.seed}", f"{rounds} round{'' if rounds == 1 else 's'}"]
    if score is not None:
        facts.append(f"score {percent(score)}")
    if trajectory.stop_reason:
        facts.append(trajectory.stop_reason)
    return "  ·  ".join(facts)


def _tile_size(images: list[Image.Image]) -> tuple[int, int]:
    """Of the last picture's shape: the rounds share one, references may have others."""
    if not images:
        return _TILE, _TILE
    width, height = images[-1].size
    longest = max(width, height)
    scale = round(_TILE / longest) if longest <= _TILE else min(1.0, 384 / longest)
    return max(_NARROWEST, round(width * scale)), max(1, round(height * scale))


def _fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scaled to lie within `size`: hard pixels up, smooth down."""
    scale = min(size[0] / image.width, size[1] / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS)


def _place(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, tile: _Tile, corner: tuple[int, int], size: tuple[int, int]
) -> None:
    (x, y), (wide, high) = corner, size
    pen.rectangle((x, y, x + wide - 1, y + high - 1), fill=_MISSING)
    if tile.image is None:
        pen.text((x + wide / 2, y + high / 2), "not kept", fill=_SOFT, font=_font(18), anchor="mm")
    else:
        fitted = _fit(tile.image, size)
        sheet.paste(fitted, (x + (wide - fitted.width) // 2, y + (high - fitted.height) // 2))
    if tile.state == "best":
        pen.rectangle((x - 8, y - 8, x + wide + 7, y + high + 7), outline=_PASS, width=5)
    else:
        pen.rectangle((x - 1, y - 1, x + wide, y + high), outline=_FAIL if tile.state == "back" else _LINE)
    _caption(pen, tile, (x, y + high + 16), wide)


def _caption(pen: ImageDraw.ImageDraw, tile: _Tile, corner: tuple[int, int], width: int) -> None:
    x, y = corner
    color = {"best": _PASS, "back": _FAIL}.get(tile.state, _INK)
    pen.text((x, y), tile.title, fill=color, font=_font(20))
    pen.text((x + width, y), tile.score, fill=color, font=_font(20), anchor="ra")
    words = {"best": "final", "kept": "accepted", "back": "rolled back"}.get(tile.state)
    if words:
        _mark(pen, (x, y + 28), color, crossed=tile.state == "back")
        pen.text((x + 22, y + 27), words, fill=color if tile.state != "kept" else _SOFT, font=_font(16))


def _mark(pen: ImageDraw.ImageDraw, corner: tuple[int, int], color: str, crossed: bool) -> None:
    """A tick or a cross, 14 px; drawn, because the built-in font has neither."""
    x, y = corner
    if crossed:
        pen.line((x + 2, y + 4, x + 12, y + 14), fill=color, width=3)
        pen.line((x + 12, y + 4, x + 2, y + 14), fill=color, width=3)
    else:
        pen.line((x + 1, y + 9, x + 6, y + 14, x + 14, y + 4), fill=color, width=3, joint="curve")


@lru_cache(maxsize=8)
def _font(size: int) -> Font:
    return ImageFont.load_default(size)


def _wrap(text: str, font: Font, width: int, most: int) -> list[str]:
    """Lines of at most `width` pixels, at most `most` of them; a word longer than a line is broken."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        *full, rest = _pieces(word, font, width)
        lines[-1:] = [*full, rest]
    if len(lines) <= most:
        return lines
    last = lines[most - 1]
    while last and font.getlength(last + "…") > width:
        last = last[:-1]
    return [*lines[: most - 1], last.rstrip() + "…"]


def _pieces(word: str, font: Font, width: int) -> list[str]:
    pieces = [""]
    for letter in word:
        if pieces[-1] and font.getlength(pieces[-1] + letter) > width:
            pieces.append("")
        pieces[-1] += letter
    return pieces


def _write_lines(pen: ImageDraw.ImageDraw, lines: list[str], top: int, step: int, font: Font, color: str) -> None:
    for i, line in enumerate(lines):
        pen.text((_MARGIN, top + i * step), line, fill=color, font=font)
