"""What the gateway and the processes that make pictures say to each other.

Apart from these themselves, so that the gateway need not load torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from streamavatar.serving.clock import AGENT_RATE, USER_RATE

if TYPE_CHECKING:
    from streamavatar.avatar import Precision

VIDEO = "video.mp4"
"""Name of an offline video in its folder."""


@dataclass(frozen=True)
class EngineSettings:
    """What the engine runs.

    Attributes:
        model: folder; the bundled default if None.
        device, precision, threads, decoder, decoder_device: as for `Avatar.load`.
        sessions: how many at a time; measured at the start if None.
        most_sessions: limit of that measurement.
        start_seconds, answer_seconds: after which an engine that says nothing is killed.
    """

    model: Path | None = None
    device: str = "cpu"
    precision: Precision = "auto"
    threads: int | None = None
    sessions: int | None = None
    most_sessions: int = 8
    start_seconds: float = 120.0
    answer_seconds: float = 20.0
    decoder: Literal["full", "light", "pruned"] = "full"
    decoder_device: str | None = None


@dataclass(frozen=True)
class EngineInfo:
    """What the engine makes: sizes, and how it makes it; `ahead_frames` are those of the agent's look-ahead."""

    height: int
    width: int
    fps: int
    chunk_frames: int
    model: str
    device: str
    precision: str
    ahead_frames: int = 2

    @property
    def agent_samples(self) -> int:
        """Of one request: the chunk and its look-ahead."""
        return (self.chunk_frames + self.ahead_frames) * AGENT_RATE // self.fps

    @property
    def user_samples(self) -> int:
        return self.chunk_frames * USER_RATE // self.fps

    @property
    def frames_shape(self) -> tuple[int, int, int]:
        """Of a chunk's I420 pictures."""
        return self.chunk_frames, self.height * 3 // 2, self.width


class Exchange:
    """The memory that gateway and engine share for a session: a chunk's pictures one way, its sound the other.

    A session has one chunk in the making at a time, so there is room for one. The arrays are views, made when asked
    for: memory cannot be closed while there are any.
    """

    def __init__(self, info: EngineInfo, memory: SharedMemory) -> None:
        self.memory, self._info = memory, info

    @staticmethod
    def create(info: EngineInfo) -> Exchange:
        """On new memory."""
        return Exchange(
            info, SharedMemory(create=True, size=prod(info.frames_shape) + 2 * (info.agent_samples + info.user_samples))
        )

    @property
    def frames(self) -> NDArray[np.uint8]:
        """I420, `info.frames_shape`."""
        return np.ndarray(self._info.frames_shape, np.uint8, self.memory.buf)

    @property
    def sound(self) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
        """Of agent and user, [`info.agent_samples`] and [`info.user_samples`]."""
        lengths, at = (self._info.agent_samples, self._info.user_samples), prod(self._info.frames_shape)
        both = np.ndarray(sum(lengths), np.int16, self.memory.buf, at)
        return both[: lengths[0]], both[lengths[0] :]


@dataclass(frozen=True)
class Request:
    """One call: its number, what to do, of which session, and the rest."""

    number: int
    call: Literal["encode", "forget", "open", "make", "rollback", "close", "memory", "stop"]
    session: str = ""
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Answer:
    """To the request of that number; `error` is a UserError's text. Number 0 is said once, when all is loaded."""

    number: int
    value: Any = None
    error: str | None = None
