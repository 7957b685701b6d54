"""The renderer: a performance and an identity become pictures, with the truth about where everything is.

Still layers (body.py, hair.py) are moved by small affine maps; eyes, brows, nose and mouth are polygons on a
curved face, so that turning the head shifts them against its outline. A frame is painted at twice the size
and averaged down.

Needs OpenCV (extra `synth`).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from streamavatar.synth import body, features
from streamavatar.synth.artwork import Layer, Picture, Points, as_picture, blend, ellipse
from streamavatar.synth.features import Pose
from streamavatar.synth.hair import back_hair, front_hair
from streamavatar.synth.identity import PuppetIdentity
from streamavatar.synth.performance import Performance

__all__ = ["PuppetIdentity", "PuppetRenderer"]

_PIVOT_Y = 0.30  # the head rolls about the top of the neck, below its middle
_HAND_X, _HAND_UP, _HAND_DOWN = 0.845, 0.93, 1.27  # wrist: column, row when raised, row out of frame
_SUPER = 2  # painted at this many times the size; edges are anti-aliased before that
_BREATH = 0.006  # frame widths that the shoulders rise


@dataclass(frozen=True)
class _Placement:
    """Where the head is in one frame (frame widths, radians)."""

    x: float
    y: float
    roll: float

    def matrix(
        self, scale: float, layer: Layer, left: int, top: int, dx: float = 0.0, dy: float = 0.0
    ) -> NDArray[np.float64]:
        """Layer pixels -> pixels of a window whose corner is (left, top); (dx, dy) shifts within the head."""
        c, s = np.cos(self.roll), np.sin(self.roll)
        # Pixel centres sit at +0.5 in both spaces.
        ox = layer.x + 0.5 + dx * scale
        oy = layer.y + 0.5 + (dy - _PIVOT_Y) * scale
        tx = (self.x) * scale + c * ox - s * oy - 0.5 - left
        ty = (self.y + _PIVOT_Y) * scale + s * ox + c * oy - 0.5 - top
        return np.array([[c, -s, tx], [s, c, ty]])

    def place(self, points: Points) -> Points:
        """Head coordinates -> picture coordinates."""
        c, s = np.cos(self.roll), np.sin(self.roll)
        x, y = points[..., 0], points[..., 1] - _PIVOT_Y
        return np.stack([self.x + c * x - s * y, self.y + _PIVOT_Y + s * x + c * y], axis=-1)


class PuppetRenderer:
    """Paints one identity at one square size; holds only its still layers, so frames are independent."""

    def __init__(self, identity: PuppetIdentity, size: int = 128) -> None:
        if size < 32:
            raise ValueError(f"puppets are painted at 32 pixels or more, got {size}")
        self.identity = identity
        self.size = size
        self.scale = float(size * _SUPER)
        self._backdrop = body.backdrop(identity, self.scale)
        self._body = body.body(identity, self.scale)
        self._back_hair = back_hair(identity, self.scale)
        self._head = body.head(identity, self.scale)
        self._beard = body.beard(identity, self.scale)
        self._front_hair = front_hair(identity, self.scale)
        self._hand = body.hand(identity, self.scale)

    # pictures ------------------------------------------------------------------------------------------

    def render(self, performance: Performance, index: int) -> Picture:
        """Frame `index`, RGB uint8 [size, size, 3]."""
        pose = Pose.of(performance, index)
        place = self._placement(pose)
        lift = -_BREATH * pose.breath
        image = self._backdrop.copy()
        if self._back_hair is not None:
            shift = features.turned(np.zeros((1, 2)), pose)[0]
            self._lay(image, self._back_hair, place, -0.25 * shift[0], -0.25 * shift[1])
        self._move(image, self._body, 0.0, lift)
        self._lay_pixels(image, self._compose_head(pose), self._head, place)
        if pose.raise_ > 0:
            self._lay_hand(image, pose)
        return as_picture(cv2.resize(image, (self.size, self.size), interpolation=cv2.INTER_AREA))

    def render_clip(self, performance: Performance) -> Picture:
        """All frames, RGB uint8 [F, size, size, 3]."""
        out = np.empty((len(performance), self.size, self.size, 3), np.uint8)
        for index in range(len(performance)):
            out[index] = self.render(performance, index)
        return out

    def _placement(self, pose: Pose) -> _Placement:
        """The head follows its own turn a little, and the breath."""
        x = body.HEAD_X + 0.035 * np.sin(features.GAIN * pose.yaw)
        y = body.HEAD_Y + 0.055 * np.sin(features.GAIN * pose.pitch) - 0.8 * _BREATH * pose.breath
        return _Placement(float(x), float(y), pose.roll)

    def _compose_head(self, pose: Pose) -> Picture:
        """Head, beard, features and front hair, upright, as premultiplied RGBA."""
        base = self._head
        canvas = base.pixels.copy()
        split = round(features.JAW_SPLIT * self.scale) - base.y
        stretch = 1 + pose.jaw
        if pose.jaw > 0.002:
            lower = base.pixels[split:]
            # Pixel centres again: row r + 0.5 moves to (r + 0.5) * stretch.
            matrix = np.array([[1.0, 0.0, 0.0], [0.0, stretch, 0.5 * stretch - 0.5]])
            canvas[split:] = cv2.warpAffine(lower, matrix, (lower.shape[1], lower.shape[0]), flags=cv2.INTER_LINEAR)
        shift = features.turned(np.array([[0.0, 0.1], [0.0, -0.22]]), pose) - np.array([[0.0, 0.1], [0.0, -0.22]])
        if self._beard is not None:
            dx, dy = shift[0] * (0.8, 0.5) * self.scale
            ty = dy + (stretch - 1) * (self._beard.y + 0.5 - features.JAW_SPLIT * self.scale) + 0.5 * (stretch - 1)
            matrix = np.array([[1.0, 0.0, dx], [0.0, stretch, ty]])
            moved = cv2.warpAffine(self._beard.pixels, matrix, (canvas.shape[1], canvas.shape[0]))
            # Only on skin: the beard must not hang in the air beside a turned face.
            skin = cv2.extractChannel(canvas, 3)
            moved = cv2.multiply(moved, cv2.merge([skin] * 4), scale=1 / 255)
            blend(canvas, as_picture(moved))
        features.draw(canvas, self.identity, pose, self.scale, base.x / self.scale, base.y / self.scale)
        if self._front_hair is not None:
            dx, dy = shift[1] * 0.55 * self.scale
            matrix = np.array([[1.0, 0.0, dx], [0.0, 1.0, dy]])
            moved = cv2.warpAffine(self._front_hair.pixels, matrix, (canvas.shape[1], canvas.shape[0]))
            blend(canvas, as_picture(moved))
        features.draw_glasses(canvas, self.identity, pose, self.scale, base.x / self.scale, base.y / self.scale)
        return canvas

    def _lay(self, image: Picture, layer: Layer, place: _Placement, dx: float = 0.0, dy: float = 0.0) -> None:
        self._lay_pixels(image, layer.pixels, layer, place, dx, dy)

    def _lay_pixels(
        self, image: Picture, pixels: Picture, layer: Layer, place: _Placement, dx: float = 0.0, dy: float = 0.0
    ) -> None:
        """Blend a head layer into the picture, turned by the head's roll."""
        left, top = layer.x + int(place.x * self.scale), layer.y + int(place.y * self.scale)
        matrix = place.matrix(self.scale, layer, left, top, dx, dy)
        self._window(image, pixels, matrix, left, top)

    def _move(self, image: Picture, layer: Layer, dx: float, dy: float) -> None:
        matrix = np.array([[1.0, 0.0, dx * self.scale], [0.0, 1.0, dy * self.scale]])
        self._window(image, layer.pixels, matrix, layer.x, layer.y)

    def _window(self, image: Picture, pixels: Picture, matrix: NDArray[np.float64], left: int, top: int) -> None:
        """Warp `pixels` and blend the part inside the picture."""
        x0, y0 = max(0, left), max(0, top)
        x1, y1 = min(image.shape[1], left + pixels.shape[1]), min(image.shape[0], top + pixels.shape[0])
        if x1 <= x0 or y1 <= y0:
            return
        matrix = matrix.copy()
        matrix[:, 2] -= (x0 - left, y0 - top)
        moved = cv2.warpAffine(pixels, matrix, (x1 - x0, y1 - y0), flags=cv2.INTER_LINEAR)
        blend(image[y0:y1, x0:x1], as_picture(moved))

    def _wrist(self, pose: Pose) -> tuple[float, float, float]:
        """x, y of the wrist and the rotation in radians."""
        x = _HAND_X + 0.03 * pose.sway
        y = _HAND_DOWN + (_HAND_UP - _HAND_DOWN) * pose.raise_
        return x, y, pose.rotation + 0.10

    def _lay_hand(self, image: Picture, pose: Pose) -> None:
        x, y, turn = self._wrist(pose)
        c, s = np.cos(turn), np.sin(turn)
        layer = self._hand
        left, top = layer.x + int(x * self.scale), layer.y + int(y * self.scale)
        ox, oy = layer.x + 0.5, layer.y + 0.5
        tx = x * self.scale + c * ox - s * oy - 0.5 - left
        ty = y * self.scale + s * ox + c * oy - 0.5 - top
        self._window(image, layer.pixels, np.array([[c, -s, tx], [s, c, ty]]), left, top)

    # truth ---------------------------------------------------------------------------------------------

    def landmarks(self, performance: Performance) -> dict[str, NDArray[np.float32]]:
        """Truth in pixels of the finished picture, per frame.

        Returns:
            `mouth_center` [F,2], and boxes (x0, y0, x1, y1) [F,4]: `mouth`, `eye_left`, `eye_right` (as the
            viewer sees them), `face`, `hand` (zeros while out of frame), and `mouth_gap` [F], the height of
            the opening in pixels. Mouth and eye boxes keep their size while the mouth moves.
        """
        rows: dict[str, list[NDArray[np.float64]]] = {}
        for index in range(len(performance)):
            for name, value in self._landmarks_of(Pose.of(performance, index)).items():
                rows.setdefault(name, []).append(value)
        return {name: np.stack(values).astype(np.float32) for name, values in rows.items()}

    def mouth_box(self, performance: Performance, index: int) -> NDArray[np.float32]:
        """The box (x0, y0, x1, y1) around the mouth in frame `index`, in pixels."""
        return self.landmarks(performance.cut(index, 1))["mouth"][0]

    def _landmarks_of(self, pose: Pose) -> dict[str, NDArray[np.float64]]:
        place = self._placement(pose)
        who = self.identity
        gap = who.eye_gap
        centers = np.array([(0.0, body.MOUTH_Y), (-gap, features.EYE_Y), (gap, features.EYE_Y)])
        mouth, left, right = place.place(features.turned(centers, pose)) * self.size
        half = np.array([0.108, 0.074]) * self.size
        below = np.array([0.0, 0.018 * self.size])
        eye = np.array([0.060, 0.046]) * self.size
        outline = place.place(body.face_outline(who) * np.array([1.0, 1.0])) * self.size
        hand = np.zeros(4)
        if pose.raise_ > 0:
            x, y, turn = self._wrist(pose)
            middle = np.array([x + 0.08 * np.sin(turn), y - 0.08 * np.cos(turn)])
            reach = ellipse(middle[0], middle[1], 0.105, 0.135, turn) * self.size
            box = np.concatenate([reach.min(axis=0), np.minimum(reach.max(axis=0), self.size)])
            hand = box if box[3] > box[1] + 1 else hand
        return {
            "mouth_center": mouth, "mouth": np.concatenate([mouth + below - half, mouth + below + half]),
            "eye_left": np.concatenate([left - eye, left + eye]),
            "eye_right": np.concatenate([right - eye, right + eye]),
            "face": np.concatenate([outline.min(axis=0), outline.max(axis=0)]), "hand": hand,
            "mouth_gap": np.array(features.MOUTH_GAP * pose.mouth_open * self.size),
        }  # fmt: skip
