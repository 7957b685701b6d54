"""Pictures in: any file Pillow reads, or an array, becomes one RGB frame of the size that the model wants.

The picture is cropped to the wanted aspect and resized, if so asked after it was cut to the square around its largest
face. A picture that is too wide loses both sides evenly; one that is too tall loses its *bottom* only, because a
portrait has its head at the top and a centre crop would cut it.
Colour profiles are not applied: values are taken as sRGB.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from streamavatar.errors import UserError
from streamavatar.media.face import around_face
from streamavatar.media.files import StrPath, existing_file

Crop = Literal["whole", "face"]
MIN_SIDE = 64
MAX_PIXELS = 64_000_000
BACKDROP = (238, 238, 238)
"""What shows through transparent pixels: a neutral grey-white, as in a studio."""


def read_image(path: StrPath, height: int, width: int, crop: Crop = "whole") -> NDArray[np.uint8]:
    """Read a picture, upright, as RGB, cropped and resized.

    EXIF orientation is applied; transparency is laid over :data:`BACKDROP`; greyscale, palette, 16-bit and
    CMYK pictures become RGB; of an animation the first frame is taken. For the crop see the module's text.

    Args:
        path: a file in any format that Pillow reads, PostScript excepted (it would run a program).
        height, width: the wanted size in pixels.
        crop: "face" takes the square around the largest face first (:func:`streamavatar.media.face.around_face`).

    Returns:
        uint8 `[height, width, 3]`.

    Raises:
        FaceError: if a face is asked for, and none is found or dlib is missing.
        UserError: if the file is missing, a folder, unreadable, no picture, truncated, smaller than 64 pixels
            on a side, or larger than 64 megapixels (checked on the header, before anything is decoded).
    """
    _check_target(height, width)
    file = existing_file(path, "picture")
    picture = _decode(file)
    return _fit(_to_rgb(picture, f"picture {str(file)!r}"), height, width, crop)


def image_from_array(array: ArrayLike, height: int, width: int, crop: Crop = "whole") -> NDArray[np.uint8]:
    """The same as :func:`read_image` for a picture that is already in memory.

    Args:
        array: RGB `[H, W, 3]`, uint8 (0..255) or floating point (0..1).
        height, width: the wanted size in pixels.
        crop: as there.

    Returns:
        uint8 `[height, width, 3]`, a new array.

    Raises:
        UserError: for another shape or type, values outside the range, NaN or infinity, a side under 64
            pixels or more than 64 megapixels.
    """
    _check_target(height, width)
    pixels = np.asarray(array)
    _check_shape(pixels.shape)
    _check_size(pixels.shape[1], pixels.shape[0], "the picture array")
    if pixels.dtype != np.uint8:
        pixels = _float_to_uint8(pixels)
    return _fit(Image.fromarray(np.ascontiguousarray(pixels)), height, width, crop)


def _check_target(height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise UserError(f"a picture cannot be {height}x{width} pixels: give a positive height and width")


def _check_size(width: int, height: int, what: str) -> None:
    """Refuse pictures too small to show a face, or so large that decoding them would fill the memory."""
    if min(width, height) < MIN_SIDE:
        raise UserError(f"{what} is {width}x{height} pixels: give one with at least {MIN_SIDE} pixels on each side")
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{what} is {width}x{height} pixels ({width * height / 1e6:.0f} megapixels): "
            f"scale it down to {MAX_PIXELS // 1_000_000} megapixels or less"
        )


def _decode(file: Path) -> Image.Image:
    """Check the header, then decode the first frame and turn it upright; the file is closed again."""
    what = f"picture {str(file)!r}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # Pillow's own size warning comes later than our limit; odd tags are harmless
            with Image.open(file) as picture:
                if picture.format == "EPS":
                    raise UserError(f"{what} is PostScript, a program rather than a picture: export it as PNG or JPEG")
                _check_size(*picture.size, what)
                picture.load()
                return _upright(picture)
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"{what} is not a picture in a known format: convert it to PNG or JPEG") from error
    except Image.DecompressionBombError as error:
        limit = MAX_PIXELS // 1_000_000
        raise UserError(f"{what} is far larger than {limit} megapixels: scale it down to {limit} or less") from error
    except Exception as error:  # each of Pillow's formats has its own errors for damaged data
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{what} is damaged or cut short ({reason}): save or download it again") from error


def _upright(picture: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; a picture whose EXIF block is itself damaged stays as it is stored."""
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # broken EXIF raises SyntaxError, struct.error, KeyError, ...; the pixels are sound
        return picture.copy()


def _to_rgb(picture: Image.Image, what: str) -> Image.Image:
    """Any mode to RGB; transparency over the backdrop; 16-bit and float greyscale scaled, not clipped."""
    if picture.mode.startswith("I"):
        grey = np.clip(np.asarray(picture).astype(np.int64), 0, 65535)
        return Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        values = np.asarray(picture)
        if not np.isfinite(values).all():
            raise UserError(f"{what} has NaN or infinite pixels: export it as PNG or JPEG")
        scale = 255.0 if values.max() <= 1.0 else 1.0
        return Image.fromarray(np.clip(values * scale + 0.5, 0, 255).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, (*BACKDROP, 255)), layer).convert("RGB")
    return picture.convert("RGB")


def _fit(picture: Image.Image, height: int, width: int, crop: Crop) -> NDArray[np.uint8]:
    """Crop to the aspect of `height` x `width` (sides evenly, else the bottom) and resize with Lanczos."""
    if crop == "face":
        picture = Image.fromarray(np.ascontiguousarray(around_face(np.asarray(picture))))
    full_width, full_height = picture.size
    keep_width = min(full_width, full_height * width / height)
    keep_height = min(full_height, full_width * height / width)
    left = (full_width - keep_width) / 2
    box = (left, 0.0, left + keep_width, keep_height)
    resized = picture.resize((width, height), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    return np.array(resized, dtype=np.uint8)


def _check_shape(shape: tuple[int, ...]) -> None:
    """Say which of the usual mistakes a shape is."""
    if len(shape) == 3 and shape[2] == 3:
        return
    if len(shape) == 2:
        hint = "it looks like greyscale; repeat it to three channels"
    elif len(shape) == 4:
        hint = "it looks like a batch; pass one picture"
    elif len(shape) == 3 and shape[2] == 4:
        hint = "it looks like RGBA; lay it over a background and drop the alpha channel"
    elif len(shape) == 3 and shape[0] == 3:
        hint = "it looks like [3, height, width]; move the channels last"
    else:
        hint = "pass one RGB picture"
    raise UserError(f"a picture array must be [height, width, 3], got {list(shape)}: {hint}")


def _float_to_uint8(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Floating point 0..1 to 0..255, rounded."""
    if not np.issubdtype(pixels.dtype, np.floating):
        raise UserError(f"a picture array must be uint8 (0..255) or float (0..1), got {pixels.dtype}: convert it")
    if not np.isfinite(pixels).all():
        raise UserError("the picture array has NaN or infinite values: clean it first")
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0.0 or high > 1.0:
        hint = "divide by 255 or pass uint8" if low >= 0.0 and high > 2.0 else "bring it into 0..1"
        raise UserError(f"a float picture array must lie in 0..1, got {low:g}..{high:g}: {hint}")
    return (pixels * 255.0 + 0.5).astype(np.uint8)
