"""What every voice gives: samples at 16 kHz and phones with times, whoever spoke."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
PAUSE = "pau"

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Phone:
    """One phone (flite's US English set, `pau` for silence), from `start` to `end` in seconds."""

    name: str
    start: float
    end: float

    def moved(self, seconds: float) -> Phone:
        return Phone(self.name, self.start + seconds, self.end + seconds)


def resample(samples: Samples, source: float, target: float) -> Samples:
    """Samples at rate `source` to rate `target`, float32."""
    if source == target:
        return samples
    import soxr

    return np.asarray(soxr.resample(samples, source, target), dtype=np.float32)


def tile(timed: Iterable[tuple[str, float]]) -> tuple[Phone, ...]:
    """(name, end in seconds) in order to phones without gaps; those of no length are dropped."""
    phones: list[Phone] = []
    start = 0.0
    for name, end in timed:
        if end > start:
            phones.append(Phone(name, start, end))
            start = end
    return tuple(phones)
