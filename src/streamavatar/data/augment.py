"""Where clips have the face, and how clips that come again look as if others had made them: another camera's place,
lamp and skin, left for right.

Only pixels and the mouth's box change, which are all that training reads of the picture's truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from streamavatar.data.reader import Window

TONES = 0.08
"""Standard deviation of the logarithm of a colour's gain; of its gamma twice that."""
NEARER = 1.2
"""Largest zoom of faces that may be anywhere; such pictures are never made smaller, since nothing is known beyond their
borders."""
ASIDE, ZOOMS = 6, (0.93, 1.1)
"""Of faces that have a place: how many pixels they may be from it, each way, and how much smaller or larger."""
MOUTH, EYES = "landmarks.mouth", ("landmarks.eye_left", "landmarks.eye_right")


def in_place(window: Window, face: Sequence[int], rng: np.random.Generator | None = None) -> Window:
    """The window with the first frame's face where a codec wants it, by whole pixels; borders are repeated.

    Args:
        face: right and down of the middle between eyes and mouth, in pixels.
        rng: draws up to `ASIDE` pixels to add to that; exactly there if None.
    """
    aside = 0 if rng is None else rng.uniform(-ASIDE, ASIDE, 2)
    shift = np.round(np.asarray(face) + aside - _face(window))
    return _turned(window, np.concatenate((np.eye(2), shift[:, None]), axis=1))


def augmented(window: Window, rng: np.random.Generator, *, mirrored: bool, face: Sequence[int] = ()) -> Window:
    """The window nearer, aside, in other colours and perhaps mirrored, alike in all frames.

    Args:
        face: the face stays near this place, see :func:`in_place`; anywhere if empty.
    """
    height, width = window.frames.shape[1:3]
    zoom = rng.uniform(*ZOOMS) if face else rng.uniform(1, NEARER)
    flip = -1 if mirrored else 1
    turn = np.array([[flip * zoom, 0, 0], [0, zoom, 0]])
    if face:
        turn[:, 2] = face + rng.uniform(-ASIDE, ASIDE, 2) - turn[:, :2] @ _face(window)
    else:
        turn[:, 2] = -rng.uniform(0, zoom - 1, 2) * (width, height)
        turn[0, 2] += zoom * width if mirrored else 0
    tones = _tones(rng)
    changed = _turned(window, turn)
    return replace(changed, frames=np.stack([_toned(frame, tones) for frame in changed.frames]))


def cropped(window: Window, rows: slice, columns: slice) -> Window:
    """A part of all frames."""
    corner = np.array((columns.start, rows.start) * 2, np.float32)
    truth = {**window.truth, MOUTH: window.truth[MOUTH] - corner}
    return replace(window, frames=window.frames[:, rows, columns], truth=truth)


def _face(window: Window) -> NDArray[np.float64]:
    """The middle between eyes and mouth of the first frame, right and down in pixels."""
    mouth, *eyes = (window.truth[name][0].astype(np.float64).reshape(2, 2).mean(0) for name in (MOUTH, *EYES))
    return np.asarray((mouth + (eyes[0] + eyes[1]) / 2) / 2)


def _turned(window: Window, turn: NDArray[np.float64]) -> Window:
    """All frames, and the mouth's box, by an affine map of pixels' edges [2, 3] that keeps axes."""
    height, width = window.frames.shape[1:3]
    # Boxes have whole numbers at the edges of pixels, OpenCV at their centres.
    centred = turn.copy()
    centred[:, 2] += turn[:, :2].sum(1) / 2 - 0.5
    frames: NDArray[np.uint8] = np.stack(
        [cv2.warpAffine(frame, centred, (width, height), borderMode=cv2.BORDER_REPLICATE) for frame in window.frames]
    ).astype(np.uint8)
    box = window.truth[MOUTH]
    x, y = (np.sort(turn[i, i] * box[:, i::2] + turn[i, 2], axis=1) for i in (0, 1))
    moved = np.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), axis=1).astype(box.dtype)
    return replace(window, frames=frames, truth={**window.truth, MOUTH: moved})


def _tones(rng: np.random.Generator) -> NDArray[np.uint8]:
    """What each of 256 values of each colour becomes, uint8 [256, 3]."""
    gain, gamma = np.exp(rng.normal(0, TONES, 3)), np.exp(rng.normal(0, 2 * TONES))
    table = 255 * np.clip((np.arange(256)[:, None] / 255) ** gamma * gain, 0, 1)
    return table.round().astype(np.uint8)


def _toned(frame: NDArray[np.uint8], tones: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.stack([tones[:, c][frame[..., c]] for c in range(3)], axis=-1)
