from __future__ import annotations

import contextlib
import io
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clvr import images
from clvr.errors import ImageError, MissingFileError, RunFolderError
from clvr.images import decode_image, load_image, png_bytes, save_png, to_rgb


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def huge_png(width, height):
    """A PNG of a few bytes that claims to be large."""
    body = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", body), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
    packed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def test_what_is_written_loads_as_the_same_pixels(tmp_path):
    image = Image.effect_noise((17, 9), 90).convert("RGB")
    save_png(image, tmp_path / "deep" / "x.png", {"prompt": "ein Bild ✓"})
    loaded = load_image(tmp_path / "deep" / "x.png")
    assert (loaded.mode, loaded.tobytes()) == ("RGB", image.tobytes())
    assert Image.open(tmp_path / "deep" / "x.png").text["prompt"] == "ein Bild ✓"
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["x.png"]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_kind_of_image_becomes_what_its_png_loads_as(mode):
    image = Image.new(mode, (6, 4), 0)
    rgb = to_rgb(image)
    assert rgb.mode == "RGB"
    assert decode_image(png_bytes(rgb)).tobytes() == rgb.tobytes()


def test_transparency_is_laid_on_white_and_sixteen_bits_are_scaled():
    assert to_rgb(Image.new("RGBA", (1, 1), (255, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)
    assert decode_image(encoded(Image.new("P", (1, 1)), transparency=0)).getpixel((0, 0)) == (255, 255, 255)
    assert decode_image(encoded(Image.new("I;16", (1, 1), 65535))).getpixel((0, 0)) == (255, 255, 255)


def test_a_photo_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(encoded(Image.new("RGB", (8, 2)), "JPEG", exif=exif)).size == (2, 8)


def test_a_missing_image_is_told(tmp_path):
    with pytest.raises(MissingFileError, match=r"no\.png"):
        load_image(tmp_path / "no.png")


@pytest.mark.parametrize(
    "data",
    [b"", b"not an image", b"\x89PNG\r\n\x1a\n", encoded(Image.effect_noise((64, 64), 9))[:900],
     encoded(Image.effect_noise((64, 64), 9), "JPEG")[:500], b"%PDF-1.4", b"%!PS-Adobe-3.0 EPSF-3.0"],
)  # fmt: skip
def test_what_is_no_whole_image_is_refused_by_name(tmp_path, data):
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(ImageError, match=r"x\.png"):
        load_image(tmp_path / "x.png")


@pytest.mark.parametrize("side", [9_000, 15_000, 60_000])
def test_a_decompression_bomb_is_refused_unopened(side):
    with pytest.raises(ImageError, match=r"too many|unpack"):
        decode_image(huge_png(side, side))


def test_a_huge_file_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_BYTES", 10)
    (tmp_path / "x.png").write_bytes(bytes(11))
    with pytest.raises(ImageError, match="MB"):
        load_image(tmp_path / "x.png")


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(ImageError):
        load_image(tmp_path)


@settings(max_examples=100, deadline=None)
@pytest.mark.filterwarnings("ignore::UserWarning")
@given(st.integers(0, 600), st.integers(0, 255), st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]))
def test_a_flipped_byte_gives_an_image_or_an_image_error(place, value, kind):
    data = bytearray(encoded(Image.linear_gradient("L").resize((16, 16)).convert("RGB"), kind))
    data[place % len(data)] = value
    with contextlib.suppress(ImageError):
        assert decode_image(bytes(data)).mode == "RGB"


def test_an_unwritable_place_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="Cannot write"):
        save_png(Image.new("RGB", (2, 2)), tmp_path / "file" / "x.png")


def test_a_failed_write_leaves_the_old_image(tmp_path, monkeypatch):
    save_png(Image.new("RGB", (2, 2), "red"), tmp_path / "x.png")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunFolderError, match="No space left"):
        save_png(Image.new("RGB", (2, 2), "blue"), tmp_path / "x.png")
    assert load_image(tmp_path / "x.png").getpixel((0, 0)) == (255, 0, 0)
    assert len(list(tmp_path.iterdir())) == 1
