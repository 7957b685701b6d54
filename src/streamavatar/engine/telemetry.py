"""How long things took: seconds per chunk and stage, kept in constant memory."""

from __future__ import annotations

import resource
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

import numpy as np


class Telemetry:
    """Seconds per stage of the last `window` chunks, and totals of all.

    Stages are "audio", "transformer", "decode" and "chunk"; the last is from the moment a chunk's audio was complete
    to its frames.
    """

    def __init__(self, window: int = 4096) -> None:
        self._window = window
        self._seconds: dict[str, deque[float]] = {}
        self._totals: dict[str, float] = {}
        self.first_frame: float | None = None
        """Seconds from the first chunk's audio to its frames."""

    def add(self, stage: str, seconds: float) -> None:
        self._seconds.setdefault(stage, deque(maxlen=self._window)).append(seconds)
        self._totals[stage] = self._totals.get(stage, 0.0) + seconds
        if stage == "chunk" and self.first_frame is None:
            self.first_frame = seconds

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        begin = perf_counter()
        yield
        self.add(stage, perf_counter() - begin)

    def latest(self) -> dict[str, float]:
        """Seconds of every stage, the last time it ran."""
        return {stage: values[-1] for stage, values in self._seconds.items()}

    def summary(self) -> dict[str, dict[str, float]]:
        """Median, 99th percentile and total seconds per stage."""
        return {
            stage: {
                "p50": float(np.percentile(values, 50)),
                "p99": float(np.percentile(values, 99)),
                "total": self._totals[stage],
            }
            for stage, values in self._seconds.items()
        }


def peak_memory() -> int:
    """Most bytes of memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
