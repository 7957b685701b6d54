"""A client's own picture: checked, face found, cropped to the framing that models know, kept under a random id."""

from __future__ import annotations

import io
import secrets
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from streamavatar import bundled
from streamavatar.errors import UserError
from streamavatar.media import image_from_array, read_image
from streamavatar.media.face import FaceError, around_face
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
            try:
                pixels = around_face(pixels)
            except FaceError as error:
                raise ApiProblem(422, "no_face", str(error)) from error
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
