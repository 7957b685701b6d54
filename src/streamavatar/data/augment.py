"""Clips that come again look as if others had made them: another camera's place, lamp and skin, left for right."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from streamavatar.data.reader import Window

TONES = 0.08
"""Standard deviation of the logarithm of a colour's gain; of its gamma twice that."""
NEARER = 1.2
"""Largest zoom; pictures are never made smaller, since nothing is known beyond their borders."""
MOUTH = "landmarks.mouth"


def augmented(window: Window, rng: np.random.Generator, *, mirrored: bool) -> Window:
    """The window nearer, aside, in other colours and perhaps mirrored, alike in all frames.

    Only pixels and the mouth's box change, which are all that training reads of the picture's truth.
    """
    height, width = window.frames.shape[1:3]
    zoom = rng.uniform(1, NEARER)
    aside = -rng.uniform(0, zoom - 1, 2) * (width, height)
    turn = np.array([[-zoom if mirrored else zoom, 0, aside[0]], [0, zoom, aside[1]]])
    if mirrored:
        turn[0, 2] += zoom * width
    # Boxes have whole numbers at the edges of pixels, OpenCV at their centres.
    centred = turn.copy()
    centred[:, 2] += turn[:, :2].sum(1) / 2 - 0.5
    tones = _tones(rng)
    frames = np.stack(
        [
            _toned(cv2.warpAffine(frame, centred, (width, height), borderMode=cv2.BORDER_REPLICATE), tones)
            for frame in window.frames
        ]
    )
    box = window.truth[MOUTH]
    x, y = (np.sort(turn[i, i] * box[:, i::2] + turn[i, 2], axis=1) for i in (0, 1))
    moved = np.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), axis=1).astype(box.dtype)
    return replace(window, frames=frames, truth={**window.truth, MOUTH: moved})


def _tones(rng: np.random.Generator) -> np.ndarray:
    """What each of 256 values of each colour becomes, uint8 [256, 3]."""
    gain, gamma = np.exp(rng.normal(0, TONES, 3)), np.exp(rng.normal(0, 2 * TONES))
    table = 255 * np.clip((np.arange(256)[:, None] / 255) ** gamma * gain, 0, 1)
    return np.asarray(table.round().astype(np.uint8))


def _toned(frame: np.ndarray, tones: np.ndarray) -> np.ndarray:
    return np.stack([tones[:, c][frame[..., c]] for c in range(3)], axis=-1)
