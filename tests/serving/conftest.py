"""Fakes for the live server: an event loop whose time is virtual, and an engine that marks its frames."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

TICK, USER_TICK, CHUNK = 960, 640, 12
SIZE = 64
REAL_WAIT_SECONDS = 5.0


class VirtualSelector(selectors.DefaultSelector):
    """Never waits: moves the loop's time on instead. Without a timer (a thread is at work) it waits for real."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[Any]:
        events = super().select(REAL_WAIT_SECONDS if timeout is None else 0)
        if not events and timeout is None:
            raise RuntimeError("nothing will ever happen on this loop")
        if not events and timeout:
            self.loop.now += timeout
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that jumps from timer to timer."""

    def __init__(self) -> None:
        selector = VirtualSelector()
        super().__init__(selector)
        selector.loop = self
        self.now = 100.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def virtual() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """virtual(coroutine) runs it in virtual time and checks that it leaves no task behind."""

    def run(work: Coroutine[Any, Any, Any]) -> Any:
        loop = VirtualLoop()
        try:
            result = loop.run_until_complete(work)
            assert asyncio.all_tasks(loop) == set()
            return result
        finally:
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    return run


@dataclass
class Made:
    """One chunk that the fake was asked for."""

    index: int
    agent: NDArray[np.int16]
    user: NDArray[np.int16]


@dataclass
class FakeEngine:
    """Holds callers to the contract. Each frame carries its number, and is bright where the agent is loud.

    Attributes:
        cost: seconds per chunk; `slow` has other costs by chunk, used once each.
        calls: ("open" | "make" | "rollback" | "close", index) in order.
        made: all asks, those that were rolled back too; `kept` those that still count.
    """

    cost: float = 0.07
    slow: dict[int, float] = field(default_factory=dict)
    calls: list[tuple[str, int]] = field(default_factory=list)
    made: list[Made] = field(default_factory=list)
    kept: list[Made] = field(default_factory=list)
    dead: str = ""
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    info: Any = field(
        default_factory=lambda: SimpleNamespace(height=SIZE, width=SIZE, fps=25, chunk_frames=CHUNK, model="fake")
    )

    async def open(self, session: str, picture: NDArray[np.uint8], seed: int, face: str = "") -> None:
        assert picture.shape == (SIZE, SIZE, 3)
        self.calls.append(("open", seed))

    async def make(self, session: str, index: int, agent: NDArray[np.int16], user: NDArray[np.int16]) -> Any:
        assert agent.shape == ((CHUNK + 2) * TICK,)
        assert user.shape == (CHUNK * USER_TICK,)
        assert agent.dtype == user.dtype == np.int16
        assert index == len(self.kept) + 1
        made = Made(index, agent.copy(), user.copy())
        self.calls.append(("make", index))
        self.made.append(made)
        self.kept.append(made)
        seconds = self.slow.pop(index, self.cost)
        await self.sleep(seconds)
        if self.dead:
            raise ConnectionError(self.dead)
        if not any(made is kept for kept in self.kept):
            raise RuntimeError("rolled back while it was made")
        return SimpleNamespace(index=index, frames=frames_of(index, agent), seconds={"transformer": seconds})

    async def rollback(self, session: str, index: int) -> None:
        assert index == len(self.kept)
        self.calls.append(("rollback", index))
        self.kept.pop()

    async def close_session(self, session: str) -> None:
        self.calls.append(("close", 0))

    async def memory(self) -> int:
        return 2**20


def frames_of(index: int, agent: NDArray[np.int16]) -> NDArray[np.uint8]:
    """I420 frames of a chunk: black, white where the tick is loud; the chunk's number and the frame's in a corner."""
    frames = np.full((CHUNK, SIZE * 3 // 2, SIZE), 128, np.uint8)
    for i, frame in enumerate(frames):
        loud = np.abs(agent[i * TICK : (i + 1) * TICK].astype(int)).max() > 1000
        frame[:SIZE] = 235 if loud else 16
        frame[0, :2] = index, i
    return frames


@pytest.fixture
def make_engine() -> Callable[..., FakeEngine]:
    """make_engine(cost=0.07, slow={chunk: seconds}) -> a fake."""
    return FakeEngine


@pytest.fixture
def frame_number() -> Callable[[NDArray[np.uint8]], int]:
    """frame_number(frame of the fake) -> which frame of the session it is, from 0."""
    return lambda frame: (int(frame[0, 0]) - 1) * CHUNK + int(frame[0, 1])


@pytest.fixture
def speech() -> Callable[..., NDArray[np.int16]]:
    """speech(seconds, rate=24000, seed=0) -> loud noise without pauses, never zero."""

    def make(seconds: float, rate: int = 24_000, seed: int = 0) -> NDArray[np.int16]:
        drawn = np.random.default_rng(seed).integers(2000, 8000, round(seconds * rate))
        return (drawn * np.where(np.arange(len(drawn)) % 2, 1, -1)).astype(np.int16)

    return make


@pytest.fixture
def open_app(make_engine: Callable[..., FakeEngine]) -> Iterator[Callable[..., Any]]:
    """See `gateway_app.Open`."""
    from gateway_app import opened

    with ExitStack() as clients:
        yield lambda **wishes: clients.enter_context(opened(make_engine, **wishes))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch, make_engine: Callable[..., FakeEngine]) -> Callable[..., Any]:
    """recorder(**engine) -> a `session_recorder.Recorder` on a fake engine."""
    from session_recorder import Recorder

    return lambda **engine: Recorder(monkeypatch, make_engine(**engine))
