"""Runs live sessions and keeps what comes out of them."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from streamavatar.serving import live_session
from streamavatar.serving.live_session import LiveSession, LiveSettings
from streamavatar.serving.viewers import Viewers

PICTURE = np.full((64, 64, 3), 90, np.uint8)


class LoudVad:
    def voice(self, samples: NDArray[np.int16]) -> bool:
        return bool(samples.any())


class Recorder:
    """Runs a session and keeps its ticks and events."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, engine: Any) -> None:
        self.engine = engine
        self.events: list[dict[str, Any]] = []
        self.slots: list[int] = []
        self.times: list[float] = []
        self.frames: list[NDArray[np.uint8]] = []
        self.sound: list[NDArray[np.int16]] = []
        monkeypatch.setattr(live_session, "make_vad", LoudVad)
        monkeypatch.setattr(Viewers, "put", self._put)

    def _put(self, slot: int, now: float, frame: NDArray[np.uint8], samples: NDArray[np.int16]) -> None:
        self.slots.append(slot)
        self.times.append(now)
        self.frames.append(frame)
        self.sound.append(samples)

    async def start(self, settings: LiveSettings | None = None, phase: float | None = None) -> LiveSession:
        session = LiveSession(
            self.engine,
            "a",
            PICTURE,
            seed=7,
            settings=settings or LiveSettings(),
            on_event=self.events.append,
            phase=phase,
        )
        await session.start()
        return session

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]

    @property
    def heard(self) -> NDArray[np.int16]:
        return np.concatenate(self.sound)


async def talk_to(session: LiveSession, voice: NDArray[np.int16], rate: int = 16_000) -> None:
    """Push the user's voice in 20 ms pieces in real time."""
    for piece in np.split(voice, range(rate // 50, len(voice), rate // 50)):
        session.push_user(piece, rate=rate)
        await asyncio.sleep(0.02)
