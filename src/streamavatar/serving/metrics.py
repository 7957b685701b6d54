"""Figures for Prometheus. Each app has a registry of its own, so that several can live in one process."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from streamavatar.serving.figures import TIMES

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

_FINE = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.48, 0.75, 1.0, 2.0, 5.0)

_TEXTS = {
    "first_frame_seconds": "From the session's start to its first frame",
    "lead_seconds": "Video still to play when a chunk arrives",
    "speech_to_mouth_seconds": "From pushing a speech to showing it",
    "interrupt_to_silence_seconds": "From an interruption to silence",
    "interrupt_to_rest_seconds": "From an interruption to a mouth at rest",
}


class Metrics:
    """What happens in the sessions (it is their `Meter`), and what the gateway counts itself."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def histogram(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(name, text, labels, buckets=_FINE, registry=self.registry)

        self._stages = histogram("chunk_seconds", "Seconds per chunk", "stage")
        self._times = {name: histogram(name, _TEXTS[name]) for name in ("first_frame_seconds", *TIMES)}
        self._skew = Histogram(
            "av_skew_seconds",
            "Sound behind picture, as the client sees it",
            buckets=(-0.2, -0.1, -0.045, -0.02, 0.0, 0.02, 0.045, 0.1, 0.2),
            registry=self.registry,
        )
        self._underruns = Counter("underrun", "Late chunks, and late event loops", ("kind",), registry=self.registry)
        self.rejected = Counter("admission_rejected", "Sessions refused", ("reason",), registry=self.registry)
        self._sessions = Gauge("sessions", "Sessions by state", ("state",), registry=self.registry)
        self._memory = Gauge(
            "device_memory_bytes", "Memory that the engine holds on its device", registry=self.registry
        )
        self._restarts = Gauge("engine_restarts", "Times the engine was started again", registry=self.registry)

    def observe(self, name: str, seconds: float) -> None:
        """See `figures.Meter`, also for the next two."""
        self._times[name].observe(seconds)

    def stage(self, stage: str, seconds: float) -> None:
        self._stages.labels(stage).observe(seconds)

    def underrun(self, kind: str) -> None:
        self._underruns.labels(kind).inc()

    def skew(self, seconds: float) -> None:
        self._skew.observe(seconds)

    def text(self, states: Mapping[str, int], restarts: int, memory: int) -> bytes:
        """The exposition, with the present gauges: sessions by state, restarts, bytes."""
        for state in ("idle", "listening", "talking", "interrupting"):
            self._sessions.labels(state).set(states.get(state, 0))
        self._restarts.set(restarts)
        self._memory.set(memory)
        return generate_latest(self.registry)
