"""From phones to mouth shapes: the Oculus viseme set, how far each phone opens and spreads the mouth.

Coarticulation: targets are smoothed over about 90 ms and move 40 ms before the sound, as lips do; but
closures (m, b, p) must really close, so they cut through the smoothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from streamavatar.synth.speech import Phone

VISEMES = ("sil", "PP", "FF", "TH", "DD", "kk", "CH", "SS", "nn", "RR", "aa", "E", "I", "O", "U")
GRID = 200  # samples per second on which targets are smoothed
_ANTICIPATION = 0.04  # seconds
_WINDOW = 0.09  # seconds, full width of the Hann window
_CLOSURE_HOLD = 0.055  # seconds of full closure: longer than a frame, so that one frame always shows it
_CLOSURE_RAMP = 0.035  # seconds
_GAP = 0.12  # seconds of silence up to which the mouth does not rest between two phones

Array = NDArray[np.float64]

# phone -> (viseme, opening 0..1, width -1 round .. 1 spread)
SHAPES: dict[str, tuple[str, float, float]] = {
    "p": ("PP", 0.0, 0.0), "b": ("PP", 0.0, 0.0), "m": ("PP", 0.0, 0.0),
    "f": ("FF", 0.10, 0.15), "v": ("FF", 0.10, 0.15), "th": ("TH", 0.22, 0.2), "dh": ("TH", 0.22, 0.2),
    "t": ("DD", 0.20, 0.25), "d": ("DD", 0.22, 0.25), "dx": ("DD", 0.22, 0.2),
    "k": ("kk", 0.28, 0.1), "g": ("kk", 0.28, 0.1), "ng": ("kk", 0.25, 0.1), "hh": ("kk", 0.40, 0.1),
    "ch": ("CH", 0.22, -0.55), "jh": ("CH", 0.22, -0.55), "sh": ("CH", 0.20, -0.6), "zh": ("CH", 0.20, -0.6),
    "s": ("SS", 0.14, 0.45), "z": ("SS", 0.14, 0.45), "n": ("nn", 0.20, 0.2), "l": ("nn", 0.32, 0.15),
    "r": ("RR", 0.25, -0.4), "er": ("RR", 0.36, -0.35), "axr": ("RR", 0.33, -0.3),
    "aa": ("aa", 1.0, 0.0), "ae": ("aa", 0.88, 0.35), "ah": ("aa", 0.70, 0.05), "ax": ("aa", 0.45, 0.0),
    "ay": ("aa", 0.90, 0.25), "aw": ("aa", 0.88, -0.25),
    "eh": ("E", 0.62, 0.4), "ey": ("E", 0.52, 0.6), "ih": ("I", 0.38, 0.5), "iy": ("I", 0.28, 0.85),
    "ao": ("O", 0.75, -0.55), "ow": ("O", 0.58, -0.75), "oy": ("O", 0.66, -0.5),
    "uh": ("U", 0.34, -0.6), "uw": ("U", 0.24, -1.0), "w": ("U", 0.15, -0.95), "y": ("I", 0.24, 0.5),
}  # fmt: skip
VOWELS = frozenset(
    ("aa", "ae", "ah", "ax", "axr", "ay", "aw", "eh", "ey", "ih", "iy", "ao", "ow", "oy", "uh", "uw", "er")
)
_UNKNOWN = ("kk", 0.25, 0.0)


def mouth_tracks(phones: Sequence[Phone], frames: int, fps: int) -> tuple[Array, Array, Array]:
    """Visemes [F,15] (rows sum to 1), opening [F] in 0..1 and width [F] in -1..1 at the middle of each frame."""
    size = round(frames / fps * GRID) + GRID
    hot = np.zeros((size, len(VISEMES)))
    hot[:, 0] = 1.0
    opening = np.zeros(size)
    width = np.zeros(size)
    shut = np.ones(size)
    times = np.arange(size) / GRID
    ordered = sorted(phones, key=lambda p: p.start)
    for index, phone in enumerate(ordered):
        name, target, spread = SHAPES.get(phone.name, _UNKNOWN)
        end = phone.end
        if index + 1 < len(ordered) and 0 < ordered[index + 1].start - end < _GAP and name != "PP":
            end = ordered[index + 1].start
        low, high = (max(0, round((t - _ANTICIPATION) * GRID)) for t in (phone.start, end))
        hot[low:high] = 0.0
        hot[low:high, VISEMES.index(name)] = 1.0
        opening[low:high] = target
        width[low:high] = spread
        if name == "PP":
            middle = (phone.start + phone.end) / 2 - _ANTICIPATION / 2
            hold = max(_CLOSURE_HOLD, phone.end - phone.start) / 2
            low, high = (max(0, round((middle + s * (hold + _CLOSURE_RAMP)) * GRID)) for s in (-1, 1))
            away = (np.abs(times[low:high] - middle) - hold) / _CLOSURE_RAMP
            shut[low:high] = np.minimum(shut[low:high], 0.5 - 0.5 * np.cos(np.pi * np.clip(away, 0, 1)))
    window = np.hanning(round(_WINDOW * GRID) + 2)
    window /= window.sum()
    smooth = np.stack([np.convolve(column, window, "same") for column in (*hot.T, opening, width)], axis=1)
    at = np.minimum(((np.arange(frames) + 0.5) / fps * GRID).astype(int), size - 1)
    visemes = np.clip(smooth[at, : len(VISEMES)], 0, 1)
    closed = 1.0 - shut[at]
    visemes *= (1.0 - closed)[:, None]
    visemes[:, 1] += closed
    visemes /= visemes.sum(axis=1, keepdims=True)
    mouth = np.clip(smooth[at, -2] * shut[at], 0, 1)
    mouth[mouth < 0.02] = 0.0
    return visemes, mouth, np.clip(smooth[at, -1], -1, 1)
