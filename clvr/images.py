"""Reading images that nobody vouches for, and writing PNGs. Pillow is loaded only when one of these runs."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ImageError, MissingFileError
from .files import write_atomic

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_BYTES = 256 * 2**20
MAX_PIXELS = 64_000_000
"""About 8000 x 8000; decoded to RGB that is 192 MB."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")


def load_image(path: str | Path) -> Image:
    """An image file as upright 8-bit RGB. Raises MissingFileError, and ImageError for what is no image, is
    truncated, or is larger than MAX_BYTES or MAX_PIXELS."""
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ImageError(
                f"{path} has {size / 2**20:.0f} MB, more than the {MAX_BYTES / 2**20:.0f} MB that are read.",
                "Give a smaller file.",
            )
        data = path.read_bytes()
    except FileNotFoundError:
        raise MissingFileError(f"There is no image {path}.", "Check the path.") from None
    except OSError as error:
        raise ImageError(f"Cannot read {path}: {error.strerror or error}.", "Check the file's rights.") from error
    return decode_image(data, str(path))


def decode_image(data: bytes, name: str = "the image") -> Image:
    """The bytes of an image file as upright 8-bit RGB. Raises ImageError naming `name`."""
    from PIL import Image, UnidentifiedImageError

    remedy = f"Save it again as PNG or JPEG with at most {MAX_PIXELS / 1e6:.0f} megapixels."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ImageError(f"{name} has {image.width} x {image.height} pixels: too many.", remedy)
                image.load()
                return to_rgb(image)
    except UnidentifiedImageError:
        raise ImageError(f"{name} is not an image in {', '.join(FORMATS)}.", remedy) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"{name} would unpack to too many pixels.", remedy) from None
    except ImageError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise ImageError(f"{name} is damaged: {error}.", remedy) from error


def to_rgb(image: Image) -> Image:
    """Upright 8-bit RGB without metadata, transparency laid on white: exactly what a PNG of it loads as."""
    from PIL import Image, ImageOps

    if image.mode == "RGB" and not image.info and not image.getexif():
        return image
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda v: v / 257).convert("L")
    if "A" in image.getbands() or "transparency" in image.info:
        top = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", top.size, "white"), top)
    image = image.convert("RGB")
    return Image.frombytes("RGB", image.size, image.tobytes())


def png_bytes(image: Image, text: Mapping[str, str] | None = None) -> bytes:
    """`image` as an 8-bit RGB PNG with `text` as its tEXt/iTXt chunks."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, value in (text or {}).items():
        info.add_text(key, value)
    buffer = io.BytesIO()
    to_rgb(image).save(buffer, "PNG", pnginfo=info, compress_level=4)
    return buffer.getvalue()


def save_png(image: Image, path: Path, text: Mapping[str, str] | None = None) -> None:
    """Atomic. Raises RunFolderError."""
    write_atomic(path, png_bytes(image, text))
