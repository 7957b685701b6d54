"""The gateway's handle on an engine process: calls become messages, and a dead process becomes an error at once.

Nothing here computes or waits: one thread writes to the pipe, as an engine that hangs does not read, and one reads
from it, copies frames out of shared memory and wakes the event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.shared_memory import SharedMemory
from threading import Thread
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamavatar.errors import UserError
from streamavatar.serving.protocol import Answer, EngineInfo, EngineSettings, Exchange, Request

__all__ = ["Capacity", "Chunk", "EngineClient", "EngineDied", "EngineInfo", "EngineSettings"]

SHARE = 0.8
"""Of a chunk's length that the slowest chunk may take."""
_STOP_SECONDS = 3.0
_PROBE_CHUNKS = 10
"""Measured per number of sessions, at least."""
CROWDED = 1.2
"""How much longer a worker's share of a chunk takes while the other worker is busy as well."""
ENGINE = "streamavatar.serving.engine_process"
"""Loaded once, by a process from which engines fork: one that follows a dead engine need not load torch again."""
_STEADY_CHUNKS = 4
"""After which a session's cache is full."""

logger = logging.getLogger(__name__)
Int16 = NDArray[np.int16]


class EngineDied(Exception):
    """The engine's process ended; all its sessions are lost."""


@dataclass(frozen=True)
class Chunk:
    """One chunk as it leaves the engine.

    Attributes:
        index: its number, from 1.
        frames: uint8 I420 [F, H * 3 / 2, W].
        seconds: that each stage took: audio, transformer, decode, encode (to I420), queue (waiting for workers).
    """

    index: int
    frames: NDArray[np.uint8]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Timing:
    """Seconds from request to frames.

    Attributes:
        p50, p99: percentiles.
        quickest: what the last of the sessions waited in the best round.
    """

    p50: float
    p99: float
    quickest: float


@dataclass(frozen=True)
class Capacity:
    """How many sessions keep up.

    Attributes:
        sessions: at a time.
        budget: seconds that a chunk may take.
        chunk_seconds: measured, by number of sessions that ask at the same moment; empty if not measured.
    """

    sessions: int
    budget: float
    chunk_seconds: dict[int, Timing] = field(default_factory=dict)


class EngineClient:
    """See the module's docstring. Make one with `start`; use it on one event loop.

    Attributes:
        info: sizes.
        capacity: how many sessions keep up.
        died: resolves with the reason when the process has ended.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self.info: EngineInfo
        self.capacity: Capacity
        self._loop = asyncio.get_running_loop()
        self.died: asyncio.Future[str] = self._loop.create_future()
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count(1)
        self._exchanges: dict[str, Exchange] = {}
        self._making: dict[int, str] = {}
        self._process: BaseProcess
        self._pipe: Connection
        self._writer = ThreadPoolExecutor(1, "engine-requests")

    @classmethod
    async def start(cls, settings: EngineSettings, capacity: Capacity | None = None) -> EngineClient:
        """Start the process, load the model, warm up.

        Args:
            capacity: known from an earlier start; measured if None (or `settings.sessions`, if that is given).

        Raises:
            UserError: the model cannot be loaded, or the process ended meanwhile.
        """
        client = cls(settings)
        ready: asyncio.Future[Any] = client._loop.create_future()
        client._calls[0] = ready
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([ENGINE])
        client._pipe, theirs = context.Pipe()
        client._process = context.Process(target=_run, args=(theirs, settings), name="engine", daemon=True)
        await asyncio.to_thread(client._process.start)
        theirs.close()
        Thread(target=client._listen, name="engine-answers", daemon=True).start()
        watchdog = client._loop.call_later(settings.start_seconds, client._give_up, "start")
        try:
            client.info = await ready
            watchdog.cancel()
            client.capacity = await client._warm_up(capacity)
        except EngineDied as error:
            raise UserError(f"the engine did not start: {error}; its log says more") from error
        except BaseException:
            await client.stop()
            raise
        finally:
            watchdog.cancel()
        return client

    async def _warm_up(self, capacity: Capacity | None) -> Capacity:
        """Let every shape be seen once before somebody waits for it; the capacity as known, set or measured."""
        probe = _Probe(self)
        try:
            await probe.warm_up(1)
            if capacity is not None:
                return capacity
            if self.settings.sessions is not None:
                return Capacity(self.settings.sessions, self._budget)
            return await self._calibrate(probe)
        finally:
            await probe.close()

    @property
    def _budget(self) -> float:
        return SHARE * self.info.chunk_frames / self.info.fps

    async def _calibrate(self, probe: _Probe) -> Capacity:
        """Measure how many sessions keep up when all ask at the same moment, the worst case.

        First one alone, then as many as its times promise, then more or fewer until it is known where they stop to fit.
        """
        budget, most = self._budget, self.settings.most_sessions
        timings: dict[int, Timing] = {}

        async def fit(count: int) -> bool:
            try:
                timings[count] = await probe.measure(count)
                if timings[count].quickest <= budget < timings[count].p99:  # something else may have been in the way
                    timings[count] = await probe.measure(count)
            except UserError as error:  # no memory for one more
                if count == 1:
                    raise
                logger.warning("the engine cannot hold %d sessions: %s", count, error)
                return False
            return timings[count].p99 <= budget

        count = 1
        if not await fit(1):
            logger.warning("one session does not keep up: a chunk takes %.2f s of %.2f s", timings[1].p99, budget)
        elif most > 1:
            count = min(most, max(2, 1 + int((budget - timings[1].p50) / (CROWDED * probe.longest_share))))
            if await fit(count):
                while count < most and await fit(count + 1):
                    count += 1
            else:
                count -= 1
                while count > 1 and not await fit(count):
                    count -= 1
        return Capacity(count, budget, dict(sorted(timings.items())))

    # calls -----------------------------------------------------------------------------------------

    async def encode(self, face: str, picture: NDArray[np.uint8]) -> None:
        """Encode a picture, as `open` takes it, and keep it under a name. Raises as `open` does."""
        await self._call("encode", "", face, np.ascontiguousarray(picture))

    async def forget(self, face: str) -> None:
        """Keep that picture no longer; sessions that show it go on. Unknown names are no error. Raises EngineDied."""
        await self._call("forget", "", face)

    async def open(self, session: str, picture: NDArray[np.uint8], seed: int, face: str = "") -> None:
        """Start a session on a picture, uint8 RGB [H, W, 3] of the model's size.

        Args:
            face: name of the picture. What is kept under it is used instead of encoding the picture again.

        Raises:
            UserError: the picture or the name is no good; EngineDied.
        """
        name = await self._call("open", session, np.ascontiguousarray(picture), int(seed), face)
        memory = SharedMemory(name)
        memory.unlink()  # nobody else needs the name, and now nothing is left behind however we end
        self._exchanges[session] = Exchange(self.info, memory)

    async def make(self, session: str, index: int, agent: Int16, user: Int16) -> Chunk:
        """Make the next chunk of a session.

        Args:
            index: 1, 2, 3, ...
            agent: int16 24 kHz, the chunk's ticks and the look-ahead, [`info.agent_samples`].
            user: int16 16 kHz, [`info.user_samples`].

        Raises:
            UserError: a wrong index or length, or the chunk could not be made; EngineDied.
        """
        begun = perf_counter()
        if session in self._making.values():
            raise UserError(f"session {session}: a chunk is still being made")
        if exchange := self._exchanges.get(session):
            for name, room, samples in zip(("agent", "user"), exchange.sound, (agent, user), strict=True):
                if samples.shape != room.shape or samples.dtype != room.dtype:
                    found = f"not {samples.size} of {samples.dtype}"
                    raise UserError(f"the {name} lane of a chunk has {len(room)} samples of int16, {found}")
                room[:] = samples
            del room
        frames, seconds = await self._call("make", session, index)
        return Chunk(index, frames, {**seconds, "total": perf_counter() - begun})

    async def rollback(self, session: str, index: int) -> None:
        """Take chunk `index`, the last one made or being made, back; it will be made again.

        Raises:
            UserError: it is not the last one, or was taken back already; EngineDied.
        """
        await self._call("rollback", session, index)

    async def close_session(self, session: str) -> None:
        """End a session; unknown ones and those of a dead engine are no error."""
        with suppress(EngineDied):
            await self._call("close", session)
        exchange = self._exchanges.pop(session, None)
        if exchange is not None:
            exchange.memory.close()

    async def memory(self) -> int:
        """Bytes that the engine holds on its device; of the process where that is the CPU."""
        return int(await self._call("memory", ""))

    async def stop(self) -> None:
        """End the process, politely and then not."""
        if not self.died.done():
            self._writer.submit(self._pipe.send, Request(0, "stop"))
        await asyncio.to_thread(self._process.join, _STOP_SECONDS)
        if self._process.is_alive():
            self._process.kill()
        await self.died
        for exchange in self._exchanges.values():
            exchange.memory.close()
        self._exchanges.clear()

    async def _call(self, call: Any, session: str, *arguments: Any) -> Any:
        if self.died.done():
            raise EngineDied(self.died.result())
        number = next(self._numbers)
        answer = self._calls[number] = self._loop.create_future()
        if call == "make":
            self._making[number] = session
        watchdog = self._loop.call_later(self.settings.answer_seconds, self._give_up, call)
        try:
            # Not awaited: requests keep their order, and an answer or the end of the process comes in any case.
            self._writer.submit(self._pipe.send, Request(number, call, session, arguments))
            return await answer
        finally:
            watchdog.cancel()
            self._calls.pop(number, None)
            self._making.pop(number, None)

    def _give_up(self, call: str) -> None:
        logger.error("the engine does not answer to %r: it is killed", call)
        self._process.kill()

    # answers ---------------------------------------------------------------------------------------

    def _listen(self) -> None:
        """The reading thread: runs until the pipe ends."""
        with suppress(EOFError, OSError):
            while True:
                answer: Answer = self._pipe.recv()
                value = answer.value
                session = self._making.get(answer.number)
                exchange = self._exchanges.get(session) if session is not None else None
                if exchange is not None and answer.error is None:
                    value = (exchange.frames.copy(), answer.value)
                self._tell(self._resolve, answer.number, value, answer.error)
        self._process.join()
        self._pipe.close()
        self._tell(self._bury, f"the engine's process ended (exit status {self._process.exitcode})")

    def _tell(self, what: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(what, *arguments)

    def _resolve(self, number: int, value: Any, error: str | None) -> None:
        call = self._calls.get(number)
        if call is None or call.done():  # its caller was cancelled
            return
        if error is None:
            call.set_result(value)
        else:
            call.set_exception(UserError(error))

    def _bury(self, reason: str) -> None:
        self._writer.shutdown(wait=False)
        if not self.died.done():
            self.died.set_result(reason)
        for call in self._calls.values():
            if not call.done():
                call.set_exception(EngineDied(reason))


def _run(pipe: Connection, settings: EngineSettings) -> None:
    """The new process's main function; only there the model's code is loaded."""
    from streamavatar.serving.engine_process import run_engine

    run_engine(pipe, settings)


class _Probe:
    """Sessions of its own with noise for sound, to measure with."""

    def __init__(self, client: EngineClient) -> None:
        self._client, info = client, client.info
        rng = np.random.default_rng(0)
        self._agent = (rng.normal(0, 2000, info.agent_samples)).astype(np.int16)
        self._user = (rng.normal(0, 2000, info.user_samples)).astype(np.int16)
        self._picture = rng.integers(0, 255, (info.height, info.width, 3), dtype=np.uint8)
        self._made: list[int] = []
        self._shares: list[float] = []

    @property
    def longest_share(self) -> float:
        """Seconds by which one more session is likely to delay the others: of the busier worker, for one chunk."""
        return float(np.median(self._shares))

    async def warm_up(self, count: int) -> None:
        """Have that many sessions, each with a full cache."""
        for index in range(len(self._made), count):
            await self._client.open(f"probe-{index}", self._picture, 0)
            self._made.append(0)
        while cold := [index for index in range(count) if self._made[index] < _STEADY_CHUNKS]:
            await asyncio.gather(*map(self._make, cold))

    async def measure(self, count: int) -> Timing:
        """Seconds per chunk of `count` sessions that ask together."""
        await self.warm_up(count)
        rounds = [
            await asyncio.gather(*(self._make(index) for index in range(count)))
            for _ in range(-(-_PROBE_CHUNKS // count))
        ]
        p50, p99 = np.percentile(rounds, (50, 99))
        return Timing(float(p50), float(p99), min(map(max, rounds)))

    async def close(self) -> None:
        for index in range(len(self._made)):
            await self._client.close_session(f"probe-{index}")

    async def _make(self, index: int) -> float:
        self._made[index] += 1
        chunk = await self._client.make(f"probe-{index}", self._made[index], self._agent, self._user)
        spent = chunk.seconds
        workers = spent["audio"] + spent["transformer"], spent["decode"] + spent["encode"]
        # On a GPU these are the host's times, and both workers share the device.
        self._shares.append(max(workers) if self._client.info.device == "cpu" else spent["total"])
        return spent["total"]
