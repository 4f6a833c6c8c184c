"""Drawing figures with Pillow: smooth lines, marks, text, and round ticks on an axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

_FINE = 2
"""Drawn so many times larger and scaled down, because Pillow draws lines without smoothing."""
PAPER, INK, SOFT, GRID, WARN = "#ffffff", "#1a1c21", "#565b65", "#e3e1db", "#b93118"
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK)
"""Okabe and Ito's, which colour-blind people tell apart; shapes tell them apart without colour."""
_SHAPES = ("disc", "square", "triangle", "diamond")


@dataclass(frozen=True)
class Scale:
    """An axis: ticks with their labels, and where a value lies from 0 (bottom or left) to 1."""

    ticks: tuple[tuple[float, str], ...]
    place: Callable[[float], float]


def linear(low: float, high: float, label: Callable[[float], str]) -> Scale:
    """About five round ticks."""
    rough = (high - low) / 5.5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9)
    ticks = tuple((n * step, label(n * step)) for n in range(first, count + 1))
    return Scale(ticks, lambda v: (min(max(v, low), high) - low) / (high - low))


def logarithmic(low: float, high: float, label: Callable[[float], str]) -> Scale:
    """Ticks at powers of ten, and at multiples of them below three decades. Needs 0 < low < high."""
    start, wide = math.log10(low), math.log10(high / low)
    factors = (1,) if wide >= 3 else (1, 2, 5) if wide >= 1 else (1, 1.5, 2, 3, 4, 5, 7)
    powers = range(math.floor(start), math.ceil(start + wide) + 1)
    found = [factor * 10.0**power for power in powers for factor in factors]
    ticks = tuple((value, label(value)) for value in found if low <= value <= high)
    return Scale(ticks, lambda v: (math.log10(min(max(v, low), high)) - start) / wide)


class Pen:
    """Drawing in pixels of the finished picture."""

    def __init__(self, width: int, height: int) -> None:
        self._canvas = Image.new("RGB", (width * _FINE, height * _FINE), PAPER)
        self._pen = ImageDraw.Draw(self._canvas)

    def image(self) -> Image.Image:
        size = self._canvas.width // _FINE, self._canvas.height // _FINE
        return self._canvas.resize(size, Image.Resampling.LANCZOS)

    def text(self, at: tuple[float, float], text: str, size: int, color: str = INK, anchor: str = "la") -> None:
        self._pen.text((at[0] * _FINE, at[1] * _FINE), text, fill=color, font=_font(size * _FINE), anchor=anchor)

    def upright(self, at: tuple[float, float], text: str, size: int, color: str = INK) -> None:
        """Turned by a quarter, read upwards; `at` is the middle of its upper end."""
        font = _font(size * _FINE)
        left, top, right, bottom = font.getbbox(text)
        word = Image.new("L", (math.ceil(right - left), math.ceil(bottom - top)))
        ImageDraw.Draw(word).text((-left, -top), text, fill=255, font=font)
        word = word.rotate(90, expand=True)
        x, y = round(at[0] * _FINE - word.width / 2), round(at[1] * _FINE)
        self._canvas.paste(color, (x, y), word)

    def line(self, points: Sequence[tuple[float, float]], color: str, width: float = 1.0) -> None:
        scaled = [(x * _FINE, y * _FINE) for x, y in points]
        self._pen.line(scaled, fill=color, width=max(1, round(width * _FINE)), joint="curve")

    def dashes(self, left: float, right: float, y: float, color: str) -> None:
        x = left
        while x < right:
            self.line([(x, y), (min(x + 11, right), y)], color, 2)
            x += 19

    def mark(self, at: tuple[float, float], style: int, color: str, size: float) -> None:
        x, y, r = at[0] * _FINE, at[1] * _FINE, size * _FINE
        shape = _SHAPES[style % len(_SHAPES)]
        if shape == "disc":
            self._pen.ellipse((x - r, y - r, x + r, y + r), fill=color, outline=PAPER, width=_FINE)
        elif shape == "square":
            self._pen.rectangle((x - r, y - r, x + r, y + r), fill=color, outline=PAPER, width=_FINE)
        elif shape == "triangle":
            corners = [(x, y - 1.3 * r), (x + 1.2 * r, y + r), (x - 1.2 * r, y + r)]
            self._pen.polygon(corners, fill=color, outline=PAPER, width=_FINE)
        else:
            corners = [(x, y - 1.4 * r), (x + 1.4 * r, y), (x, y + 1.4 * r), (x - 1.4 * r, y)]
            self._pen.polygon(corners, fill=color, outline=PAPER, width=_FINE)


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def length(text: str, size: int) -> float:
    return _font(size * _FINE).getlength(text) / _FINE


def fitted(text: str, size: int, width: float) -> str:
    """Shortened in its middle."""
    if length(text, size) <= width:
        return text
    keep = len(text) - 1
    while keep > 2 and length(f"{text[: keep // 2]}…{text[-(keep - keep // 2) :]}", size) > width:
        keep -= 1
    return f"{text[: keep // 2]}…{text[-(keep - keep // 2) :]}"
