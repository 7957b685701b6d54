"""What the gateway and the processes that make pictures say to each other.

Apart from these themselves, so that the gateway need not load torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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


@dataclass(frozen=True)
class Request:
    """One call: its number, what to do, of which session, and the rest."""

    number: int
    call: Literal["open", "make", "rollback", "close", "memory", "stop"]
    session: str = ""
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Answer:
    """To the request of that number; `error` is a UserError's text. Number 0 is said once, when all is loaded."""

    number: int
    value: Any = None
    error: str | None = None
