"""Pictures: every mode and mistake that a user's file can have."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from streamavatar.errors import UserError
from streamavatar.media import image_from_array, read_image
from streamavatar.media.image import BACKDROP

COLOUR = (200, 100, 50)


def save(path: Path, picture: Image.Image, **options: object) -> Path:
    picture.save(path, **options)
    return path


def plain(mode: str = "RGB", size: tuple[int, int] = (96, 80), colour: object = COLOUR) -> Image.Image:
    return Image.new(mode, size, colour)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif", "tiff", "ppm", "tga"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    frame = read_image(save(tmp_path / f"a.{suffix}", plain()), 64, 128)
    assert frame.shape == (64, 128, 3)
    assert frame.dtype == np.uint8
    assert np.abs(frame.astype(int) - COLOUR).max() <= 4


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (plain("L", colour=77), (77, 77, 77)),
        (plain("1", colour=1), (255, 255, 255)),
        (plain("LA", colour=(77, 255)), (77, 77, 77)),
        (plain("LA", colour=(77, 0)), BACKDROP),
        (plain("RGBA", colour=(*COLOUR, 255)), COLOUR),
        (plain("RGBA", colour=(*COLOUR, 0)), BACKDROP),
        (plain("RGBA", colour=(0, 0, 0, 128)), tuple(round(c * 127 / 255) for c in BACKDROP)),
        (plain().convert("P", palette=Image.Palette.ADAPTIVE), COLOUR),
        (plain("I;16", colour=32896), (128, 128, 128)),
        (plain("I;16", colour=65535), (255, 255, 255)),
    ],
    ids=["grey", "bilevel", "LA", "LA-clear", "RGBA", "RGBA-clear", "RGBA-half", "palette", "16-bit", "16-bit-white"],
)
def test_modes(tmp_path: Path, picture: Image.Image, expected: tuple[int, int, int]) -> None:
    frame = read_image(save(tmp_path / "a.png", picture), 64, 64)
    assert np.abs(frame.astype(int) - expected).max() <= 1


def test_cmyk_and_float(tmp_path: Path) -> None:
    cmyk = read_image(save(tmp_path / "a.tiff", plain("CMYK", colour=(0, 255, 255, 0))), 64, 64)
    assert cmyk[0, 0].tolist() == [255, 0, 0]
    grey = read_image(save(tmp_path / "b.tiff", plain("F", colour=0.5)), 64, 64)
    assert grey[0, 0].tolist() == [128, 128, 128]
    with pytest.raises(UserError, match="NaN"):
        read_image(save(tmp_path / "c.tiff", plain("F", colour=float("nan"))), 64, 64)


def test_palette_with_transparency(tmp_path: Path) -> None:
    picture = Image.new("P", (80, 80), 0)
    picture.putpalette([10, 20, 30, 40, 50, 60])
    frame = read_image(save(tmp_path / "a.gif", picture, transparency=0), 64, 64)
    assert (frame == BACKDROP).all()


def test_sixteen_bit_colour(tmp_path: Path) -> None:
    """A 16-bit RGB PNG, which Pillow cannot write: made by hand."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + struct.pack(">HHH", 200 * 257, 100 * 257, 50 * 257) * 80 for _ in range(80))
    header = part(b"IHDR", struct.pack(">IIBBBBB", 80, 80, 16, 2, 0, 0, 0))
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b""))
    assert read_image(path, 64, 64)[3, 3].tolist() == list(COLOUR)


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    path = save(tmp_path / "a.gif", plain(), save_all=True, append_images=[plain(colour=(0, 0, 255))])
    assert np.abs(read_image(path, 64, 64).astype(int) - COLOUR).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    """Stored turned so that, shown upright, the red patch is at the top left."""
    upright = plain(size=(96, 96), colour=(0, 0, 0))
    upright.paste((255, 0, 0), (0, 0, 48, 48))
    turned = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's Transpose that undoes what a viewer does
    stored = upright.transpose(Image.Transpose(turned[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    frame = read_image(save(tmp_path / "a.png", stored, exif=exif), 96, 96)
    assert frame[20, 20, 0] > 250
    assert frame[70:, 70:].max() < 5


def test_broken_exif_is_ignored(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", plain(), exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert np.abs(read_image(path, 64, 64).astype(int) - COLOUR).max() <= 4


def test_tall_pictures_keep_the_top_and_wide_ones_the_middle(tmp_path: Path) -> None:
    tall = plain(size=(100, 300), colour=(0, 0, 0))
    tall.paste((255, 255, 255), (0, 0, 100, 100))
    assert read_image(save(tmp_path / "tall.png", tall), 64, 64)[:62].min() > 250
    wide = plain(size=(300, 100), colour=(0, 0, 0))
    wide.paste((255, 255, 255), (100, 0, 200, 100))
    assert read_image(save(tmp_path / "wide.png", wide), 64, 64)[:, 2:62].min() > 250


def test_aspect_is_kept() -> None:
    """A disc stays a disc in any target."""
    y, x = np.mgrid[:300, :200]
    disc = np.repeat((((x - 100) ** 2 + (y - 100) ** 2 < 60**2) * 255).astype(np.uint8)[..., None], 3, axis=2)
    mask = image_from_array(disc, 128, 128)[..., 0] > 127
    assert abs(mask.any(0).sum() - mask.any(1).sum()) <= 1


@settings(max_examples=30, deadline=None)
@given(st.integers(64, 300), st.integers(64, 300), st.integers(1, 200), st.integers(1, 200))
def test_any_size_to_any_size(rows: int, columns: int, height: int, width: int) -> None:
    frame = image_from_array(np.full((rows, columns, 3), COLOUR, np.uint8), height, width)
    assert frame.shape == (height, width, 3)
    assert (frame == COLOUR).all()


def test_missing_folder_empty_and_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_image(tmp_path / "no.png", 64, 64)
    with pytest.raises(UserError, match="folder"):
        read_image(tmp_path, 64, 64)
    with pytest.raises(UserError, match="URL"):
        read_image("https://example.org/a.png", 64, 64)
    with pytest.raises(UserError):
        read_image("a\0b.png", 64, 64)
    path = tmp_path / "a.png"
    path.write_bytes(b"")
    with pytest.raises(UserError, match="empty"):
        read_image(path, 64, 64)
    path.write_text("this is no picture" * 10)
    with pytest.raises(UserError, match="not a picture"):
        read_image(path, 64, 64)


def test_not_a_regular_file() -> None:
    with pytest.raises(UserError, match="not a regular file"):
        read_image(os.devnull, 64, 64)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_unreadable(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", plain())
    path.chmod(0)
    with pytest.raises(UserError, match="permissions"):
        read_image(path, 64, 64)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff"])
@pytest.mark.parametrize("part", [0.05, 0.5, 0.9])
def test_truncated(tmp_path: Path, suffix: str, part: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(noise))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(UserError, match=r"damaged|not a picture") as caught:
        read_image(path, 64, 64)
    assert "\n" not in str(caught.value)


def test_too_small(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="63x100 pixels"):
        read_image(save(tmp_path / "a.png", plain(size=(63, 100))), 64, 64)


@pytest.mark.parametrize(("width", "height"), [(9000, 9000), (60000, 60000)])
def test_decompression_bomb_is_refused_on_its_header(tmp_path: Path, width: int, height: int) -> None:
    """The header claims a huge picture; there is no data behind it, so decoding would give another error."""
    buffer = io.BytesIO()
    plain().save(buffer, "png")
    data = bytearray(buffer.getvalue())
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path = tmp_path / "a.png"
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match="megapixels"):
        read_image(path, 64, 64)


def test_postscript_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="PostScript"):
        read_image(save(tmp_path / "a.eps", plain()), 64, 64)


@pytest.mark.parametrize(("height", "width"), [(0, 64), (64, -1)])
def test_target_size(tmp_path: Path, height: int, width: int) -> None:
    with pytest.raises(UserError, match="positive"):
        read_image(tmp_path / "a.png", height, width)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_bytes_never_raise_anything_else(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["png", "jpeg", "gif", "webp", "tiff", "bmp"]))
    buffer = io.BytesIO()
    plain().save(buffer, kind)
    raw = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.NamedTemporaryFile(suffix=f".{kind}") as file:
        file.write(raw)
        file.flush()
        with contextlib.suppress(UserError):
            assert read_image(file.name, 64, 64).shape == (64, 64, 3)


def test_arrays() -> None:
    array = np.full((80, 96, 3), COLOUR, np.uint8)
    assert (image_from_array(array, 64, 64) == COLOUR).all()
    assert (image_from_array(array[::-1, ::-1], 64, 64) == COLOUR).all()
    assert (image_from_array(array.astype(np.float32) / 255, 64, 64) == COLOUR).all()
    assert image_from_array(array, 80, 96) is not array


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((80, 80), np.uint8), "greyscale"),
        (np.zeros((80, 80, 4), np.uint8), "RGBA"),
        (np.zeros((3, 80, 80), np.uint8), "channels last"),
        (np.zeros((1, 80, 80, 3), np.uint8), "batch"),
        (np.zeros(5, np.uint8), "one RGB picture"),
        (np.zeros((80, 80, 3), np.int64), "int64"),
        (np.full((80, 80, 3), np.nan), "NaN"),
        (np.full((80, 80, 3), 200.0), "divide by 255"),
        (np.full((80, 80, 3), -0.5), "bring it into"),
        (np.zeros((63, 80, 3), np.uint8), "at least 64"),
        (np.broadcast_to(np.uint8(0), (9000, 9000, 3)), "megapixels"),
    ],
)
def test_bad_arrays(array: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        image_from_array(array, 64, 64)


def test_real_portraits(assets: Path) -> None:
    portraits = sorted((assets / "portraits").glob("*.jpg"))[:4]
    assert portraits
    for path in portraits:
        assert read_image(path, 128, 128).std() > 20
