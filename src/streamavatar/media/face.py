"""The face in a picture, and the square around it that models know: as the bundled portraits are framed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from streamavatar import bundled
from streamavatar.errors import UserError

Pixels = NDArray[np.uint8]
SIDE = 640
"""Faces are looked for in a picture made no larger than that."""


class FaceError(UserError):
    """No face was found in a picture, or none could be looked for."""


@dataclass(frozen=True)
class Framing:
    """Where a face lies in a square picture: its width, and the height of its middle, as parts of the side."""

    share: float
    middle: float


def around_face(pixels: Pixels) -> Pixels:
    """The square around the largest face, shifted or smaller where the picture ends; a view of RGB [H, W, 3].

    Raises:
        FaceError: there is none, or dlib is not installed.
    """
    box = find_face(pixels)
    if box is None:
        raise FaceError("no face was found: give a picture of one person who looks at the camera, well lit")
    x, y, width, height = box
    framing = portrait_framing()
    side = round(min(max(width / framing.share, 1), min(pixels.shape[:2])))
    left = int(np.clip(x + width / 2 - side / 2, 0, pixels.shape[1] - side))
    top = int(np.clip(y + height / 2 - side * framing.middle, 0, pixels.shape[0] - side))
    return pixels[top : top + side, left : left + side]


@lru_cache(maxsize=1)
def portrait_framing() -> Framing:
    """How the bundled portraits are framed, which is what their model knows: the median of those with a found face."""
    seen = []
    for portrait in bundled.portraits().values():
        pixels = np.asarray(Image.open(portrait.path).convert("RGB"))
        if box := find_face(pixels):
            _, y, width, height = box
            seen.append((width / pixels.shape[1], (y + height / 2) / pixels.shape[0]))
    if not seen:
        return Framing(0.43, 0.47)
    share, middle = np.median(seen, axis=0)
    return Framing(float(share), float(middle))


def find_face(pixels: Pixels) -> tuple[int, int, int, int] | None:
    """The largest frontal face as x, y, width, height, or None (dlib's detector, whose model is part of it).

    Raises:
        FaceError: dlib is not installed.
    """
    scale = min(1.0, SIDE / max(pixels.shape[:2]))
    size = [max(1, round(scale * side)) for side in (pixels.shape[1], pixels.shape[0])]
    small = np.asarray(Image.fromarray(pixels).resize((size[0], size[1]), Image.Resampling.BOX))
    found = _detector()(np.ascontiguousarray(small), 1)
    if not found:
        return None
    box = max(found, key=lambda face: face.width())
    x, y, width, height = (round(v / scale) for v in (box.left(), box.top(), box.width(), box.height()))
    return x, y, width, height


@lru_cache(maxsize=1)
def _detector() -> Any:
    try:
        import dlib
    except ModuleNotFoundError as error:
        raise FaceError("finding faces needs dlib; install it with: pip install 'streamavatar[live]'") from error
    return dlib.get_frontal_face_detector()
