"""The figures of one session, under the names of the metrics.

Each event goes to the meter as it happens; averages of the latest are for the page.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from statistics import mean
from typing import Any, Protocol

from streamavatar.serving.playout import FADE_SECONDS, Tick

RECENT = 50
"""Values that an average goes over."""
NOT_WORK = ("queue", "total")
"""Of a chunk's times: those that hold waiting."""
TIMES = ("lead_seconds", "speech_to_mouth_seconds", "interrupt_to_silence_seconds", "interrupt_to_rest_seconds")
"""That come again and again in a session."""


class Meter(Protocol):
    """Who counts over all sessions; `metrics.Metrics` is one."""

    def observe(self, name: str, seconds: float) -> None:
        """A time: `first_frame_seconds`, `lead_seconds`, `speech_to_mouth_seconds` and so on."""

    def stage(self, stage: str, seconds: float) -> None:
        """Of a chunk that was made."""

    def underrun(self, kind: str) -> None:
        """A chunk (`repeat`, `freeze`) or the event loop (`loop`) was late."""


class Unmetered:
    """For a session on its own."""

    def observe(self, name: str, seconds: float) -> None: ...
    def stage(self, stage: str, seconds: float) -> None: ...
    def underrun(self, kind: str) -> None: ...


class Figures:
    """Times in seconds of the loop's clock, lengths in seconds.

    Args:
        chunk_length: seconds of video in a chunk.
        meter: told of every event.
    """

    def __init__(self, chunk_length: float, meter: Meter) -> None:
        self._chunk_length, self._meter = chunk_length, meter
        self.started_at = 0.0
        self.skips = 0
        """How often the event loop was late by a tick or more."""
        self.skipped_ticks = 0
        self._first_frame: float | None = None
        self._times: dict[str, deque[float]] = {name: deque(maxlen=RECENT) for name in TIMES}
        self._stages: dict[str, deque[float]] = {}
        self._work: deque[float] = deque(maxlen=RECENT)
        self._interrupted_at: float | None = None
        self._fading = False

    def chunk(self, seconds: Mapping[str, float], lead: float | None) -> None:
        """A chunk was made; `lead` is what was left to play when it came, None if nobody wanted it any more."""
        for stage, value in seconds.items():
            self._stages.setdefault(stage, deque(maxlen=RECENT)).append(value)
            self._meter.stage(stage, value)
        self._work.append(sum(value for stage, value in seconds.items() if stage not in NOT_WORK))
        if lead is not None:
            self._note("lead_seconds", lead)

    def skipped(self, ticks: int) -> None:
        self.skips += 1
        self.skipped_ticks += ticks
        self._meter.underrun("loop")

    def interrupted(self, now: float) -> None:
        self._interrupted_at, self._fading = now, True

    def tick(self, tick: Tick, now: float) -> None:
        """A tick goes out."""
        if self._first_frame is None and tick.kind == "play":
            self._first_frame = now - self.started_at
            self._meter.observe("first_frame_seconds", self._first_frame)
        if tick.late:
            self._meter.underrun(tick.kind)
        if tick.started:
            self._note("speech_to_mouth_seconds", now - tick.started.pushed_at)
        if self._interrupted_at is not None and self._fading:
            self._note("interrupt_to_silence_seconds", now - self._interrupted_at + FADE_SECONDS)
            self._fading = False
        if self._interrupted_at is not None and tick.rested:
            self._note("interrupt_to_rest_seconds", now - self._interrupted_at)
            self._interrupted_at = None

    def _note(self, name: str, seconds: float) -> None:
        self._times[name].append(seconds)
        self._meter.observe(name, seconds)

    def stats(self) -> dict[str, Any]:
        """Averages of the latest values; None where there are none."""
        return {
            "first_frame_seconds": _rounded(self._first_frame),
            "chunk_seconds": {stage: _average(values) for stage, values in self._stages.items()},
            "rtf": _rounded(mean(self._work) / self._chunk_length) if self._work else None,
            **{name: _average(values) for name, values in self._times.items()},
        }


def _average(values: deque[float]) -> float | None:
    return _rounded(mean(values)) if values else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
