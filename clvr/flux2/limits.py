"""What a FLUX.2 [klein] can take: sizes of pictures, of references, and the longest text."""

from __future__ import annotations

import math

from PIL import Image

from ..context import Context
from ..errors import ImageError, SettingError
from ..ports import Size

LONGEST_TEXT = 8192
"""Tokens; klein's text encoders read more, but attention over the text grows with the square of it."""
SMALLEST_REFERENCE = 64
MOST_ELONGATED = 8
"""Pixels of a side, and ratio of sides, that Flux2ImageProcessor accepts."""
REFERENCE_PIXELS = 1024 * 1024
"""Flux2KleinPipeline shrinks a larger reference to this area."""
TOKEN = 16
"""Pixels of the side of one token."""


def check_size(size: Size, side: int = TOKEN) -> None:
    """Raises SettingError for a size that is not made of whole tokens."""
    if any(s <= 0 or s % side for s in size):
        nearest = " x ".join(str(max(side, round(s / side) * side)) for s in size)
        raise SettingError(
            f"FLUX.2 cannot draw {size[0]} x {size[1]} pixels.",
            f"Both sides must be multiples of {side}, for example {nearest}.",
        )


def references(context: Context) -> tuple[list[Image.Image], list[str]]:
    """The chosen images as a pipeline takes them, and what was done to them. Raises ImageError."""
    images, notes = [], []
    for label, image in context.images:
        image = image if image.mode == "RGB" else image.convert("RGB")
        short, long = sorted(image.size)
        if short == 0 or long > MOST_ELONGATED * short:
            raise ImageError(
                f"{label} is {image.width} x {image.height} pixels; FLUX.2 takes sides of at most 1 to 8.",
                "Crop the image.",
            )
        if short < SMALLEST_REFERENCE:
            scale = SMALLEST_REFERENCE / short
            size = (math.ceil(image.width * scale), math.ceil(image.height * scale))
            image = image.resize(size, Image.Resampling.LANCZOS)
            notes.append(f"{label} was enlarged to {size[0]} x {size[1]}, the least that FLUX.2 reads")
        images.append(image)
    return images, notes


def scaled(image: Image.Image) -> Image.Image:
    """A reference as Flux2KleinPipeline encodes it: at most a megapixel, of whole tokens, the middle of what
    does not divide."""
    if image.width * image.height > REFERENCE_PIXELS:
        scale = math.sqrt(REFERENCE_PIXELS / (image.width * image.height))
        image = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.LANCZOS)
    width, height = (side // TOKEN * TOKEN for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
