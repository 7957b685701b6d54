"""Slow motion without a purpose: what keeps a person at rest from being a statue."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamavatar.synth.performance import FPS


def drift(frames: int, rng: np.random.Generator, low: float = 0.05, high: float = 0.25) -> NDArray[np.float64]:
    """A smooth curve [F] within -1..1, made of three sines between `low` and `high` Hz."""
    time = np.arange(frames)[:, None] / FPS
    waves = np.sin(2 * np.pi * (time * rng.uniform(low, high, 3) + rng.random(3)))
    return np.asarray(waves.mean(axis=1))
