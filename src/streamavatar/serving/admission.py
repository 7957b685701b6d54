"""Who may come in, and who keeps the engine alive.

A session holds a slot. Slots are spread over the span of a chunk, so that sessions take turns at the engine instead of
asking all at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from streamavatar.serving.engine_client import Capacity, EngineClient, EngineDied, EngineSettings

logger = logging.getLogger(__name__)
_BACK_OFF = (0.0, 0.5, 1.0, 2.0, 5.0)  # seconds before each restart in a row


@dataclass(frozen=True)
class Slot:
    """The right to one session; `phase` is where in the span of a chunk its chunks begin, in seconds."""

    number: int
    phase: float


class Admission:
    """Hands out slots and never more than there are.

    Args:
        slots: how many.
        chunk_seconds: length of a chunk.
        retry_after: seconds after which it is worth asking again.
    """

    def __init__(self, slots: int, chunk_seconds: float, retry_after: float = 5.0) -> None:
        self.slots, self.retry_after = slots, retry_after
        self.draining = False
        self._chunk_seconds = chunk_seconds
        self._taken: set[int] = set()

    @property
    def active(self) -> int:
        return len(self._taken)

    def admit(self) -> Slot | None:
        """A slot, or None while all are taken or the server drains."""
        free = [number for number in range(self.slots) if number not in self._taken]
        if self.draining or not free:
            return None
        number = max(free, key=self._distance)
        self._taken.add(number)
        return Slot(number, number * self._chunk_seconds / self.slots)

    def release(self, slot: Slot) -> None:
        """Give a slot back; giving it back twice is no error."""
        self._taken.discard(slot.number)

    def _distance(self, number: int) -> tuple[int, int]:
        """How far a slot is from those taken, round the span of a chunk; the lower number among equals."""
        gaps = [min((number - other) % self.slots, (other - number) % self.slots) for other in self._taken]
        return min(gaps, default=self.slots), -number


class Supervisor:
    """Keeps one engine alive: when it dies, another is started, with what was measured before.

    Args:
        settings: of the engine.
        on_death: awaited with the reason before the restart; sessions of the dead engine end there.
    """

    def __init__(self, settings: EngineSettings, on_death: Callable[[str], Awaitable[None]] | None = None) -> None:
        self.settings, self._on_death = settings, on_death
        self.capacity: Capacity | None = None
        self.restarts = 0
        self._client: EngineClient | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        return self._client is not None and not self._client.died.done()

    @property
    def client(self) -> EngineClient:
        """The live engine.

        Raises:
            EngineDied: there is none at the moment.
        """
        if self._client is None or self._client.died.done():
            raise EngineDied("the engine is starting")
        return self._client

    async def start(self) -> EngineClient:
        """Start the engine, measure it, and watch it from then on.

        Raises:
            UserError: the model cannot be loaded.
        """
        self._client = await EngineClient.start(self.settings)
        self.capacity = self._client.capacity
        self._watch = asyncio.create_task(self._keep_alive(), name="engine supervisor")
        return self._client

    async def stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            with suppress(asyncio.CancelledError):
                await self._watch
        if self._client is not None:
            await self._client.stop()

    async def _keep_alive(self) -> None:
        failures = 0
        while True:
            assert self._client is not None
            reason = await asyncio.shield(self._client.died)
            logger.error("%s; starting another", reason)
            if self._on_death is not None and not failures:
                try:
                    await self._on_death(reason)
                except Exception:
                    logger.exception("ending the dead engine's sessions failed")
            await asyncio.sleep(_BACK_OFF[min(failures, len(_BACK_OFF) - 1)])
            try:
                self._client = await EngineClient.start(self.settings, self.capacity)
            except Exception:  # whatever it is, keep trying: the operator sees it in the log and in /readyz
                logger.exception("the engine does not start")
                failures += 1
            else:
                self.restarts += 1
                failures = 0
