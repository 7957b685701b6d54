"""Figures for Prometheus. Each app has a registry of its own, so that several can live in one process."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from streamavatar.serving.live_session import ChunkLike, EngineLike, InfoLike

__all__ = ["CONTENT_TYPE_LATEST", "Metrics", "engine_memory"]

_FINE = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.48, 0.75, 1.0, 2.0, 5.0)


class Metrics:
    """What the sessions report once a second, and what the gateway counts itself."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def histogram(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(name, text, labels, buckets=_FINE, registry=self.registry)

        self._stages = histogram("chunk_seconds", "Seconds per chunk", "stage")
        self._single = {
            "first_frame_seconds": histogram("first_frame_seconds", "From the session's start to its first frame"),
            "interrupt_to_silence_seconds": histogram("interrupt_to_silence_seconds", "From interrupt to silence"),
            "interrupt_to_rest_seconds": histogram("interrupt_to_rest_seconds", "From interrupt to a mouth at rest"),
            "speech_to_mouth_seconds": histogram("speech_to_mouth_seconds", "From agent audio to its frames"),
            "lead_seconds": histogram("lead_seconds", "Video made ahead when a chunk arrives"),
        }
        self._skew = Histogram(
            "av_skew_seconds",
            "Sound behind picture, as the client sees it",
            buckets=(-0.2, -0.1, -0.045, -0.02, 0.0, 0.02, 0.045, 0.1, 0.2),
            registry=self.registry,
        )
        self._underruns = Counter("underrun", "Ticks that were not ready in time", ("kind",), registry=self.registry)
        self.rejected = Counter("admission_rejected", "Sessions refused", ("reason",), registry=self.registry)
        self._sessions = Gauge("sessions", "Sessions by state", ("state",), registry=self.registry)
        self._memory = Gauge("device_memory_bytes", "Memory of the engine's process", registry=self.registry)
        self._restarts = Gauge("engine_restarts", "Times the engine was started again", registry=self.registry)
        self._seen: dict[str, Mapping[str, Any]] = {}

    def session(self, name: str, stats: Mapping[str, Any]) -> None:
        """Take over what a session reports; only what changed since its last report counts."""
        before = self._seen.get(name, {})
        for key, metric in self._single.items():
            if (value := stats.get(key)) is not None and value != before.get(key):
                metric.observe(value)
        late = before.get("underrun_total", {})
        for kind, count in stats.get("underrun_total", {}).items():
            self._underruns.labels(kind).inc(max(0, count - late.get(kind, 0)))
        self._seen[name] = stats

    def metered(self, engine: EngineLike) -> EngineLike:
        """The same engine; its chunks are timed here."""
        return _Metered(engine, self._stages)

    def skew(self, seconds: float) -> None:
        self._skew.observe(seconds)

    def forget(self, name: str) -> None:
        self._seen.pop(name, None)

    def text(self, states: Mapping[str, int], restarts: int, memory: int) -> bytes:
        """The exposition, with the present gauges: sessions by state, restarts, bytes."""
        for state in ("idle", "listening", "talking", "interrupting"):
            self._sessions.labels(state).set(states.get(state, 0))
        self._restarts.set(restarts)
        self._memory.set(memory)
        return generate_latest(self.registry)


class _Metered:
    """An engine whose chunks are observed."""

    def __init__(self, engine: EngineLike, stages: Histogram) -> None:
        self._engine, self._stages = engine, stages

    @property
    def info(self) -> InfoLike:
        return self._engine.info

    async def open(self, session: str, picture: NDArray[np.uint8], seed: int) -> None:
        await self._engine.open(session, picture, seed)

    async def make(self, session: str, index: int, agent: NDArray[np.int16], user: NDArray[np.int16]) -> ChunkLike:
        chunk = await self._engine.make(session, index, agent, user)
        for stage, seconds in chunk.seconds.items():
            self._stages.labels(stage).observe(seconds)
        return chunk

    async def rollback(self, session: str, index: int) -> None:
        await self._engine.rollback(session, index)

    async def close_session(self, session: str) -> None:
        await self._engine.close_session(session)


def engine_memory() -> int:
    """Bytes that the engine's process holds in main memory (what it holds on a GPU is not seen from here)."""
    engine = next((child for child in multiprocessing.active_children() if child.name == "engine"), None)
    try:
        pages = int(Path(f"/proc/{engine.pid}/statm").read_text().split()[1]) if engine else 0
    except OSError:  # it ended meanwhile, or this is no Linux
        pages = 0
    return pages * resource.getpagesize()
