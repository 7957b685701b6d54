"""The figures of one session, under the names of the metrics."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from streamavatar.serving.playout import FADE_SECONDS, Tick

RECENT = 50
"""Values that an average goes over."""
NOT_WORK = ("queue", "total")
"""Of a chunk's times: those that hold waiting."""


def _recent() -> deque[float]:
    return deque(maxlen=RECENT)


@dataclass
class Figures:
    """Times in seconds of the loop's clock, lengths in seconds.

    Args:
        chunk_seconds: of video in a chunk.
    """

    chunk_length: float
    started_at: float = 0.0
    first_frame: float | None = None
    skips: int = 0
    """How often the event loop was late by a tick or more."""
    skipped_ticks: int = 0
    leads: deque[float] = field(default_factory=_recent)
    speech_to_mouth: deque[float] = field(default_factory=_recent)
    to_silence: deque[float] = field(default_factory=_recent)
    to_rest: deque[float] = field(default_factory=_recent)
    _stages: dict[str, deque[float]] = field(default_factory=dict)
    _work: deque[float] = field(default_factory=_recent)
    _interrupted_at: float | None = None
    _fading: bool = False

    def chunk(self, seconds: Mapping[str, float], lead: float | None) -> None:
        """A chunk was made; `lead` is what was left to play when it came, None if nobody wanted it any more."""
        for stage, value in seconds.items():
            self._stages.setdefault(stage, _recent()).append(value)
        self._work.append(sum(value for stage, value in seconds.items() if stage not in NOT_WORK))
        if lead is not None:
            self.leads.append(lead)

    def skipped(self, ticks: int) -> None:
        self.skips += 1
        self.skipped_ticks += ticks

    def interrupted(self, now: float) -> None:
        self._interrupted_at, self._fading = now, True

    def tick(self, tick: Tick, now: float) -> None:
        """A tick goes out."""
        if self.first_frame is None and tick.kind == "play":
            self.first_frame = now - self.started_at
        if tick.started:
            self.speech_to_mouth.append(now - tick.started.pushed_at)
        if self._interrupted_at is not None and self._fading:
            self.to_silence.append(now - self._interrupted_at + FADE_SECONDS)
            self._fading = False
        if self._interrupted_at is not None and tick.rested:
            self.to_rest.append(now - self._interrupted_at)
            self._interrupted_at = None

    def stats(self) -> dict[str, Any]:
        """Averages of the latest values; None where there are none."""
        return {
            "first_frame_seconds": _rounded(self.first_frame),
            "chunk_seconds": {stage: _average(values) for stage, values in self._stages.items()},
            "rtf": _rounded(mean(self._work) / self.chunk_length) if self._work else None,
            "lead_seconds": _average(self.leads),
            "speech_to_mouth_seconds": _average(self.speech_to_mouth),
            "interrupt_to_silence_seconds": _average(self.to_silence),
            "interrupt_to_rest_seconds": _average(self.to_rest),
        }


def _average(values: deque[float]) -> float | None:
    return _rounded(mean(values)) if values else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
