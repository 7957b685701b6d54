"""The media clock: audio is the master, one tick of 40 ms is the unit, and wall time only paces the ticks.

Media time is samples played over their rate. Slot n of the stream holds one frame and its audio; the time stamps of
both follow from n alone, so picture and sound cannot drift apart whatever happens to either.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

AGENT_RATE = 24_000
"""Of the agent's lane and of the sound that goes out, in Hz."""
USER_RATE = 16_000
"""Of the user's lane, in Hz."""
VIDEO_CLOCK = 90_000
"""Time stamps per second of video in RTP."""
AUDIO_CLOCK = 48_000
"""Time stamps per second of Opus in RTP, at any rate of the samples."""
EARLY_SECONDS = 0.001
"""Timers wake this much too early at most; it counts as on time."""


@dataclass(frozen=True)
class MediaClock:
    """Time stamps of slots that last one frame."""

    fps: int

    @property
    def tick_seconds(self) -> float:
        return 1 / self.fps

    def tick_samples(self, rate: int) -> int:
        """Samples in one slot; the rate is a multiple of the frame rate."""
        return rate // self.fps

    def seconds(self, slot: int) -> float:
        """Media time at which a slot begins: samples before it over their rate."""
        return slot * self.tick_samples(AGENT_RATE) / AGENT_RATE

    def video_pts(self, slot: int) -> int:
        return round(VIDEO_CLOCK * slot / self.fps)

    def audio_pts(self, slot: int) -> int:
        return round(AUDIO_CLOCK * slot / self.fps)


class Pacer:
    """Says when the next slot goes out, and which one it is.

    A slot whose time has wholly passed (the event loop was late) is skipped: its time stamps are never sent, so the
    receiver sees the truth, a gap, and what is in the lanes waits instead of arriving in a burst. Two slots never go
    out less than half a tick apart.
    """

    def __init__(self, clock: MediaClock, now: float) -> None:
        self._tick = clock.tick_seconds
        self._origin = now
        self._next = 0
        self.deadline = now

    def take(self, now: float) -> tuple[int, int]:
        """The slot that goes out now, and how many were skipped before it."""
        due = floor((now + EARLY_SECONDS - self._origin) / self._tick)
        slot = max(self._next, due)
        skipped = slot - self._next
        self._next = slot + 1
        self.deadline = max(self._origin + self._next * self._tick, now + self._tick / 2)
        return slot, skipped
