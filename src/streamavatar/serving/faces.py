"""A client's own picture: checked, face found, cropped to the framing that models know, kept under a random id."""

from __future__ import annotations

import io
import secrets
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from streamavatar import bundled
from streamavatar.errors import UserError
from streamavatar.media import image_from_array, read_image
from streamavatar.serving.problems import ApiProblem

FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP"}
MEGAPIXELS = 40
LEAST_SIDE = 64
Crop = Literal["face", "centre"]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Face:
    """One avatar: its picture as PNG, or the file of a bundled one; `owner` is the address that uploaded it."""

    id: str
    name: str
    description: str
    own: bool
    png: bytes = b""
    file: Path | None = None
    owner: str = ""

    def picture(self, height: int, width: int) -> Pixels:
        """uint8 RGB [height, width, 3]."""
        if self.file is not None:
            return read_image(self.file, height, width)
        return image_from_array(np.asarray(Image.open(io.BytesIO(self.png))), height, width)

    def as_png(self) -> bytes:
        return self.png if self.file is None else self.file.read_bytes()


class Faces:
    """The bundled portraits and the uploads; nothing of a client's touches the disk.

    Uploads are not listed: whoever knows an id may use it.

    Args:
        most, most_per_client: uploads that are kept, of all clients and of each.
        keep_seconds: how long an upload is kept that nobody asks for.
        side: of the kept pictures, in pixels.
    """

    def __init__(self, most: int, most_per_client: int, keep_seconds: float, side: int = 512) -> None:
        self._most, self._most_per_client, self._keep_seconds, self._side = most, most_per_client, keep_seconds, side
        self._bundled = {
            p.name: Face(p.name, p.name.capitalize(), p.description, False, file=p.path)
            for p in bundled.portraits().values()
        }
        self._uploads: dict[str, Face] = {}
        self._used: dict[str, float] = {}

    @property
    def listed(self) -> list[Face]:
        """Those that everybody sees."""
        return list(self._bundled.values())

    def get(self, name: str) -> Face:
        """Raises ApiProblem 404."""
        face = self._bundled.get(name) or self._uploads.get(name)
        if face is None:
            raise ApiProblem(404, "no_avatar", f"there is no avatar {name!r}")
        if face.own:
            self._used[name] = monotonic()
        return face

    def find(self, name: str | None) -> Face:
        """The same, with a bundled one for no name."""
        return self.get(name or bundled.DEFAULT_AVATAR)

    def stale(self) -> list[str]:
        """The uploads that nobody has asked for as long as they are kept."""
        now = monotonic()
        return [name for name, used in list(self._used.items()) if now - used > self._keep_seconds]

    def add(self, data: bytes, kind: str, crop: Crop, owner: str = "") -> Face:
        """Check and keep an upload; slow, so not for the event loop.

        Raises:
            ApiProblem: 415 for what is no PNG, JPEG or WebP, 422 for a picture that cannot be used, 507 when full (for
                all or for this client).
        """
        picture = _decode(data, kind)
        if min(picture.size) < LEAST_SIDE:
            raise ApiProblem(422, "too_small", f"the picture must be at least {LEAST_SIDE} pixels on each side")
        pixels = np.asarray(picture)
        if crop == "face":
            pixels = _around_face(pixels)
        out = io.BytesIO()
        try:
            Image.fromarray(image_from_array(pixels, self._side, self._side)).save(out, "PNG")
        except UserError as error:
            raise ApiProblem(422, "bad_picture", str(error)) from error
        uploads = list(self._uploads.values())
        if len(uploads) >= self._most or sum(face.owner == owner for face in uploads) >= self._most_per_client:
            raise ApiProblem(507, "full", "the server keeps no more pictures: delete one first")
        face = Face(secrets.token_urlsafe(12), "Your picture", "Uploaded picture", True, out.getvalue(), owner=owner)
        self._uploads[face.id], self._used[face.id] = face, monotonic()
        return face

    def delete(self, name: str) -> None:
        """Raises ApiProblem 404, and 403 for a bundled portrait."""
        if not self.get(name).own:
            raise ApiProblem(403, "forbidden", "bundled portraits cannot be deleted")
        del self._uploads[name], self._used[name]


def _decode(data: bytes, kind: str) -> Image.Image:
    """The picture, upright, RGB. The real format counts, not the header."""
    if kind.partition(";")[0].strip().lower() not in FORMATS:
        raise ApiProblem(415, "unsupported_type", "send a PNG, JPEG or WebP picture")
    try:
        with Image.open(io.BytesIO(data), formats=tuple(FORMATS.values())) as picture:
            if picture.width * picture.height > MEGAPIXELS * 1_000_000:
                raise ApiProblem(422, "too_large", f"the picture has more than {MEGAPIXELS} megapixels")
            picture.load()
            upright = ImageOps.exif_transpose(picture)
            if upright.mode in ("RGBA", "LA", "P", "PA"):
                upright = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", upright.size, (200, 200, 200, 255)), upright)
            return upright.convert("RGB")
    except ApiProblem:
        raise
    except UnidentifiedImageError as error:
        raise ApiProblem(415, "unsupported_type", "this is no PNG, JPEG or WebP picture") from error
    except Exception as error:  # damaged files raise anything: OSError, SyntaxError, ValueError, struct.error, ...
        raise ApiProblem(422, "damaged", "the picture is damaged or cut short") from error


def _around_face(pixels: Pixels) -> Pixels:
    """The square around the largest face, repeated at the borders where the picture ends."""
    box = find_face(pixels)
    if box is None:
        raise ApiProblem(
            422, "no_face", "no face was found: give a picture of one person who looks at the camera, well lit"
        )
    x, y, width, height = box
    framing = portrait_framing()
    side = round(min(max(width / framing.share, 1), min(pixels.shape[:2])))
    left = int(np.clip(x + width / 2 - side / 2, 0, pixels.shape[1] - side))
    top = int(np.clip(y + height / 2 - side * framing.middle, 0, pixels.shape[0] - side))
    return pixels[top : top + side, left : left + side]


@dataclass(frozen=True)
class Framing:
    """Where a face lies in a square picture: its width, and the height of its middle, as parts of the side."""

    share: float
    middle: float


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
    """The largest frontal face as x, y, width, height, or None (dlib's detector, whose model is part of it)."""
    scale = min(1.0, 640 / max(pixels.shape[:2]))
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
    import dlib

    return dlib.get_frontal_face_detector()
