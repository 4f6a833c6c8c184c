"""The colour of a patch of pixels, by name, with room for doubt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..trajectory import Box
from .questions import COLORS

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

MOST, LEAST = 0.4, 0.08
"""Share of a box's inner pixels from which a colour is there, and below which it is not."""
_INNER = 0.7  # of the box's sides: a detector's box has background at its edges
_SIDE = 96  # pixels to which a patch is reduced


def has_color(image: Image, box: Box, color: str) -> bool | None:
    """Whether what is in the box has the colour; None where it is between MOST and LEAST, or borders on it.

    Most of a box may be background, so that a colour of a small share is not denied."""
    found = shares(patch(image, box))
    sure, near = found[color], sum(found[name] for name in _BORDERS.get(color, ()))
    if sure >= MOST:
        return True
    return False if sure + near < LEAST else None


def patch(image: Image, box: Box) -> np.ndarray:
    """The inner pixels of a box as HSV [N, 3] uint8, reduced in size without mixing colours."""
    import numpy as np
    from PIL.Image import Resampling

    (x0, y0, x1, y1), (wide, high) = box, image.size
    across, down = (x1 - x0) * (1 - _INNER) / 2, (y1 - y0) * (1 - _INNER) / 2
    left, top = round((x0 + across) * wide), round((y0 + down) * high)
    right, bottom = max(left + 1, round((x1 - across) * wide)), max(top + 1, round((y1 - down) * high))
    inner = image.convert("RGB").crop((left, top, right, bottom))
    inner.thumbnail((_SIDE, _SIDE), Resampling.NEAREST)
    return np.asarray(inner.convert("HSV")).reshape(-1, 3)


def shares(pixels: np.ndarray) -> dict[str, float]:
    """Share of each of COLORS among HSV pixels [N, 3] uint8. They add up to 1."""
    import numpy as np

    hue, saturation, value = (pixels[:, i].astype(float) for i in range(3))
    hue, saturation, value = hue * 360 / 255, saturation / 255, value / 255
    dark, pale = value < 0.2, saturation < 0.15
    names = np.full(len(pixels), "red", dtype="U6")
    for name, start, end in _HUES:
        names[(hue >= start) & (hue < end)] = name
    names[(names == "orange") & (value < 0.62)] = "brown"
    names[(names == "red") & (hue > 8) & (hue < 20) & (value < 0.5)] = "brown"
    names[(names == "red") & (saturation < 0.55) & (value > 0.75)] = "pink"
    names[pale & (value >= 0.82)] = "white"
    names[pale & (value < 0.82)] = "gray"
    names[dark] = "black"
    return {color: float((names == color).mean()) for color in COLORS}


_HUES = (("orange", 16, 45), ("yellow", 45, 68), ("green", 68, 165), ("blue", 165, 258), ("purple", 258, 296),
         ("pink", 296, 342))  # fmt: skip
"""Degrees; red is the rest."""
_BORDERS = {
    "red": ("orange", "pink", "brown"),
    "orange": ("red", "yellow", "brown"),
    "yellow": ("orange", "brown"),
    "green": ("yellow",),
    "blue": ("purple",),
    "purple": ("blue", "pink"),
    "pink": ("red", "purple"),
    "brown": ("orange", "red", "black"),
    "black": ("gray", "brown"),
    "white": ("gray", "yellow"),
    "gray": ("white", "black", "blue"),
}
"""Colours that light and taste may turn into each other."""
