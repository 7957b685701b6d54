"""Read mouth and eyes back from pixels, so that generated video can be compared with the truth.

Mouth: a closed mouth is cut along the line between the lips; the upper part is slid up and the lower part
down until both explain the picture best, and what neither explains is the inside. So the lips' own texture
is the ruler, whatever the skin, beard or light, and blur or compression hardly matter. The closed mouth is a
reference picture if there is one (always pass it for generated video: blur hides which frame is closed),
else the frames of the clip with the lowest mouth.
Eyes: how far each frame lies between the clip's usual (open) eye and its most unusual (closed) one.

Values are relative: compare them by correlation. Needs OpenCV (extra `synth`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
Boxes = NDArray[np.floating]
Patches = NDArray[np.float32]

_COLUMNS, _ROWS = 36, 26  # the straightened box
_MIDDLE = slice(12, 24)  # columns that even a rounded mouth reaches
_LINE = slice(8, 11)  # rows where the line between closed lips may lie
_UP, _DOWN, _STEP = 6.0, 12.0, 0.5  # rows that the lips may slide, and the step of the search
_INSIDE = 46.0**2  # price of a pixel called inside: squared colour distance
_CAP = 70.0**2  # no pixel may cost more
_GROUP = 8  # frames whose median is taken for the closed mouth


def mouth_opening(
    frames: Frames, mouth_box: Boxes, *, reference: Frames | None = None, reference_box: Boxes | None = None
) -> NDArray[np.float64]:
    """How open the mouth is in each frame, [F], 0 (closed) .. about 1 (wide open), from pixels alone.

    Args:
        frames: uint8 RGB [F,H,W,3].
        mouth_box: (x0, y0, x1, y1) in pixels around the lips, as `PuppetRenderer.landmarks` gives it
            (it follows the head but does not grow with the opening), [F,4] or [4].
        reference: a picture [H,W,3] with a closed mouth, if there is one.
        reference_box: its box [4]; the first of `mouth_box` if None.
    """
    patches = _patches(frames, mouth_box)[:, :, _MIDDLE]
    if reference is not None:
        box = np.asarray(mouth_box).reshape(-1, 4)[:1] if reference_box is None else np.asarray(reference_box)[None]
        return _slide(patches, _patches(reference[None], box)[0, :, _MIDDLE])[0]
    return _slide(patches, np.median(patches[_likely_closed(patches)], axis=0))[0]


def _likely_closed(patches: Patches) -> NDArray[np.int64]:
    """The frames whose mouth is lowest: whose colours unlike the skin above and below spread over fewest rows."""
    away = np.full(patches.shape[:3], np.inf)
    for rows in (slice(0, 2), slice(-3, None)):
        skin = np.median(patches[:, rows].reshape(len(patches), -1, 3), axis=1)[:, None, None]
        away = np.minimum(away, np.sqrt(((patches - skin) ** 2).sum(axis=-1)))
    weight = np.clip(away - 12.0, 0, 40).mean(axis=2)
    row = np.arange(patches.shape[1])
    total = weight.sum(axis=1) + 1e-6
    middle = (weight * row).sum(axis=1) / total
    spread = (weight * (row - middle[:, None]) ** 2).sum(axis=1) / total
    return np.argsort(spread)[:_GROUP]


def _slide(patches: Patches, closed: Patches) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Opening [F], and what is left unexplained [F], with each patch made of the two halves of `closed`."""
    line = _LINE.start + int(np.argmin(closed.mean(axis=(1, 2))[_LINE]))
    up, cost_up = _shift_of(patches[:, line::-1], closed[line::-1], _UP)
    down, cost_down = _shift_of(patches[:, line:], closed[line:], _DOWN)
    # A mouth that is wide open shows 0.55 of the box's height.
    return (up + down) / (0.55 * _ROWS), cost_up + cost_down


def _shift_of(patches: Patches, half: Patches, most: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rows by which `half` [R,C,3] has slid away from row 0, per patch [F,R,C,3], and the unexplained rest."""
    rows = len(half)
    shifts = np.arange(0.0, most + 1e-6, _STEP)
    prices = np.empty((len(shifts), len(patches)))
    at = np.arange(rows)
    for index, shift in enumerate(shifts):
        source = np.clip(at - shift, 0, rows - 1)
        low = np.floor(source).astype(int)
        part = (source - low).astype(np.float32)[:, None, None]
        moved = half[low] * (1 - part) + half[np.minimum(low + 1, rows - 1)] * part
        square = np.minimum(((patches - moved) ** 2).sum(axis=-1), _CAP).mean(axis=2)
        inside = np.clip(shift - at, 0, 1)
        prices[index] = (square * (1 - inside) + _INSIDE * inside).sum(axis=1)
    # A soft minimum gives fractions of a step.
    weight = np.exp(-(prices - prices.min(axis=0)) / 250.0)
    best = (weight * shifts[:, None]).sum(axis=0) / weight.sum(axis=0)
    return best, prices.min(axis=0) - _INSIDE * best


def eye_opening(frames: Frames, eye_box: Boxes) -> NDArray[np.float64]:
    """How open an eye is in each frame, [F], about 0 (closed) .. 1 (as open as in most frames of the clip).

    Needs a blink in the clip to have a scale. Args as in `mouth_opening`.
    """
    patches = _patches(frames, eye_box).astype(np.float64).reshape(len(frames), -1)
    usual = np.median(patches, axis=0)
    away = patches - usual
    far = np.argsort((away**2).sum(axis=1))[-max(1, len(frames) // 40) :]
    closing = away[far].mean(axis=0)
    return 1.0 - away @ closing / max(float(closing @ closing), 1e-6)


def _patches(frames: Frames, boxes: Boxes) -> Patches:
    """The boxes, straightened to one small size, [F, rows, columns, 3], lightly blurred."""
    import cv2

    boxes = np.broadcast_to(np.asarray(boxes, np.float64), (len(frames), 4))
    out = np.empty((len(frames), _ROWS, _COLUMNS, 3), np.float32)
    for index, (frame, (x0, y0, x1, y1)) in enumerate(zip(frames, boxes, strict=True)):
        sx, sy = _COLUMNS / max(x1 - x0, 1e-3), _ROWS / max(y1 - y0, 1e-3)
        matrix = np.array([[sx, 0, (0.5 - x0) * sx - 0.5], [0, sy, (0.5 - y0) * sy - 0.5]])
        patch = cv2.warpAffine(
            frame, matrix, (_COLUMNS, _ROWS), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        out[index] = cv2.GaussianBlur(patch, (3, 3), 0)
    return out
