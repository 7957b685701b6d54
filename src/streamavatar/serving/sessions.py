"""The sessions of this server: opened within capacity, watched while they live, ended with a reason."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from streamavatar.errors import UserError
from streamavatar.serving.admission import Admission, Slot
from streamavatar.serving.bodies import SessionWish
from streamavatar.serving.engine_client import Capacity, EngineDied
from streamavatar.serving.faces import Face, Faces
from streamavatar.serving.live_session import EngineLike, Event, LiveSession, LiveSettings
from streamavatar.serving.metrics import Metrics
from streamavatar.serving.problems import ApiProblem
from streamavatar.serving.security import ice_servers, same_secret
from streamavatar.serving.settings import ServerSettings

logger = logging.getLogger(__name__)
OUTBOX = 512
_CLOSE_SECONDS = 5.0
SPARE = frozenset({"metrics", "audio_buffer.appended"})
"""Events that a slow listener can do without."""


class Keeper(Protocol):
    """Whoever keeps an engine alive; `admission.Supervisor` is one."""

    @property
    def ready(self) -> bool: ...
    @property
    def client(self) -> EngineLike: ...
    @property
    def capacity(self) -> Capacity | None: ...
    @property
    def restarts(self) -> int: ...


class Outbox:
    """Events on their way to one listener; bounded, so that a slow one cannot fill the memory."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._news = asyncio.Event()
        self.overflown = False

    def put(self, event: Event) -> None:
        if len(self._events) >= OUTBOX:
            spare = next((e for e in self._events if e["type"] in SPARE), None)
            if spare is None and event["type"] not in SPARE:
                self.overflown = True
            elif spare is not None:
                self._events.remove(spare)
            else:
                return
        self._events.append(event)
        self._news.set()

    async def take(self) -> Event:
        while not self._events:
            self._news.clear()
            await self._news.wait()
        return self._events.popleft()


@dataclass(eq=False)
class Entry:
    """One session as the gateway knows it.

    Attributes:
        seen: when the client was last heard of, on the loop's clock.
        feeder: feeds a speech that is longer than the lane.
        closed: its last event was sent.
    """

    id: str
    token: str = field(repr=False)
    address: str
    slot: Slot
    live: LiveSession
    began: float
    seen: float
    outboxes: set[Outbox] = field(default_factory=set)
    feeder: asyncio.Task[None] | None = None
    closed: bool = False

    @property
    def feeding(self) -> bool:
        return self.feeder is not None and not self.feeder.done()

    def touch(self) -> None:
        """The client is there."""
        self.seen = asyncio.get_running_loop().time()

    def event(self, kind: str, **fields: Any) -> Event:
        """An event of the gateway's own, in the session's time."""
        return {"type": kind, "time": round(self.live.seconds, 3), **fields}


class Registry:
    """Opens, finds, watches and closes sessions.

    Args:
        settings: limits.
        keeper: of the engine.
        faces: pictures by name.
        metrics: told what happens in the sessions.
    """

    def __init__(self, settings: ServerSettings, keeper: Keeper, faces: Faces, metrics: Metrics) -> None:
        self.settings, self.keeper, self.faces, self.metrics = settings, keeper, faces, metrics
        self.admission: Admission | None = None
        self.slow_work = asyncio.Semaphore(2)
        """Decoding and synthesis at a time: they share the machine with the engine."""
        self._entries: dict[str, Entry] = {}
        self._held: dict[Slot, str] = {}  # whose slots; also of sessions that are being opened
        self._draining = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def entries(self) -> list[Entry]:
        return list(self._entries.values())

    @property
    def draining(self) -> bool:
        return self._draining

    @property
    def active(self) -> int:
        """Places that are taken."""
        return len(self._held)

    @property
    def has_room(self) -> bool:
        """Whether another session would be let in."""
        capacity = self.keeper.capacity
        return not self._draining and self.keeper.ready and capacity is not None and self.active < capacity.sessions

    def find(self, name: str, token: str) -> Entry:
        """Raises ApiProblem: 404 for an unknown session, 401 for a wrong token."""
        entry = self._entries.get(name)
        if entry is None:
            raise ApiProblem(404, "no_session", "there is no such session, or it is over")
        if not same_secret(token, entry.token):
            raise ApiProblem(401, "unauthorized", "this needs the session's token: Authorization: Bearer TOKEN")
        entry.touch()
        return entry

    async def prepare(self, face: Face) -> None:
        """Have an upload encoded once for all its sessions; an engine that is just starting does it for the first.

        Raises:
            ApiProblem: 422, the model cannot take it, and the face is not kept.
        """
        with suppress(EngineDied):
            client = self.keeper.client
            picture = await asyncio.to_thread(face.picture, client.info.height, client.info.width)
            try:
                await client.encode(face.id, picture)
            except UserError as error:
                self.faces.delete(face.id)
                raise ApiProblem(422, "bad_picture", str(error)) from error

    async def forget(self, face: str) -> None:
        """Delete an upload here and in the engine; its sessions go on. Raises ApiProblem as `Faces.delete` does."""
        self.faces.delete(face)
        await self._let_go(face)

    async def _let_go(self, face: str) -> None:
        with suppress(EngineDied):
            await self.keeper.client.forget(face)

    async def open(self, wish: SessionWish, address: str) -> Entry:
        """Admit and start a session.

        Raises:
            ApiProblem: 404 for an unknown avatar, 429 when full (for all or for this client), 503 while the engine
                starts or the server drains.
        """
        face = self.faces.find(wish.avatar)
        slot, client = self._admit(address)
        info, name = client.info, secrets.token_urlsafe(12)
        try:
            picture = await asyncio.to_thread(face.picture, info.height, info.width)
            outbound: list[Callable[[Event], None]] = []
            live = LiveSession(
                client,
                name,
                picture,
                seed=wish.seed,
                face=face.id,
                settings=LiveSettings(
                    overlap=wish.overlap,
                    server_barge_in=wish.server_barge_in,
                    ice_servers=tuple(ice_servers(self.settings, name)),
                ),
                on_event=lambda event: outbound[0](event) if outbound else None,
                phase=slot.phase if self.admission and self.admission.slots > 1 else None,
                meter=self.metrics,
            )
            now = asyncio.get_running_loop().time()
            entry = Entry(name, secrets.token_urlsafe(24), address, slot, live, began=now, seen=now)
            outbound.append(lambda event: self._event(entry, event))
            await live.start()
            entry.touch()
        except EngineDied as error:
            self._release(slot)
            self.metrics.rejected.labels("engine").inc()
            raise ApiProblem(503, "engine_starting", str(error), retry_after=1) from error
        except BaseException:
            self._release(slot)
            raise
        self._entries[name] = entry
        self._spawn(self._end(entry))
        return entry

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _admit(self, address: str) -> tuple[Slot, EngineLike]:
        if self._draining:
            self.metrics.rejected.labels("draining").inc()
            raise ApiProblem(503, "draining", "the server is going down: no new sessions", retry_after=30)
        if not self.keeper.ready or self.keeper.capacity is None:
            self.metrics.rejected.labels("engine").inc()
            raise ApiProblem(503, "engine_starting", "the engine is starting", retry_after=1)
        client = self.keeper.client
        if self.admission is None:
            self.admission = Admission(self.keeper.capacity.sessions, client.info.chunk_frames / client.info.fps)
        if sum(held == address for held in self._held.values()) >= self.settings.sessions_per_client:
            self.metrics.rejected.labels("client").inc()
            raise ApiProblem(429, "too_many_sessions", "this client has all the sessions it may have", retry_after=10)
        slot = self.admission.admit()
        if slot is None:
            self.metrics.rejected.labels("full").inc()
            raise ApiProblem(
                429, "full", f"all {self.admission.slots} places are taken", retry_after=self.admission.retry_after
            )
        self._held[slot] = address
        return slot, client

    def _release(self, slot: Slot) -> None:
        self._held.pop(slot, None)
        if self.admission is not None:
            self.admission.release(slot)

    def _event(self, entry: Entry, event: Event) -> None:
        if event["type"] == "audio_buffer.cleared" and entry.feeder is not None:
            entry.feeder.cancel()
        if event["type"] == "session.state_updated" and event["state"] == "closed":
            entry.closed = True
        for outbox in entry.outboxes:
            outbox.put(event)

    async def _end(self, entry: Entry) -> None:
        """Clean up behind a session, whoever ended it."""
        reason = await entry.live.ended
        logger.info("session %s ended: %s", entry.id, reason)
        self._entries.pop(entry.id, None)
        self._release(entry.slot)
        if entry.feeder is not None:
            entry.feeder.cancel()

    # watching --------------------------------------------------------------------------------------

    async def watch(self, every: float = 0.5) -> None:
        """Runs for ever: ends sessions whose client has gone or whose time is over, and forgets stale uploads."""
        while True:
            await asyncio.sleep(every)
            for face in self.faces.stale():
                self.faces.delete(face)
                self._spawn(self._let_go(face))
            now = asyncio.get_running_loop().time()
            for entry in self.entries:
                live = entry.live
                if entry.closed:
                    continue
                entry.seen = max(entry.seen, live.heard_at)
                if now - entry.began > 60 * self.settings.max_minutes:
                    self._spawn(live.close("The session's time is over."))
                elif now - entry.seen > self.settings.grace_seconds and not live.connected:
                    self._spawn(live.close("The client has gone."))

    async def close_all(self, reason: str) -> None:
        closing = [asyncio.create_task(entry.live.close(reason)) for entry in self.entries]
        if closing:
            await asyncio.wait(closing, timeout=_CLOSE_SECONDS)

    def stop_admission(self) -> None:
        """No new sessions from now on; those there are hear of it."""
        self._draining = True
        for entry in self.entries:
            self._warn(entry, "draining", "the server is going down: this session will end soon")

    async def engine_died(self) -> None:
        """End all sessions: their state went with the engine. Does not wait, since the next engine waits for this."""
        for entry in self.entries:
            self._warn(entry, "engine_died", "the engine stopped: a new session works again in a few seconds")
            self._spawn(entry.live.close("The engine stopped. A new session works again in a few seconds."))

    def _warn(self, entry: Entry, code: str, message: str) -> None:
        if not entry.closed:
            self._event(entry, entry.event("error", code=code, message=message, retryable=True))

    async def drain(self, patient: Callable[[], bool]) -> None:
        """Wait for the sessions to end by themselves, for as long as the settings say and `patient` does; end them."""
        self.stop_admission()
        loop = asyncio.get_running_loop()
        end = loop.time() + self.settings.drain_seconds
        while self._held and loop.time() < end and patient():
            await asyncio.sleep(0.1)
        await self.close_all("The server went down.")


def states(entries: list[Entry]) -> dict[str, int]:
    """How many sessions are in each state."""
    counts: dict[str, int] = {}
    for entry in entries:
        counts[entry.live.state] = counts.get(entry.live.state, 0) + 1
    return counts


def summary(entry: Entry) -> dict[str, Any]:
    """What `GET /v1/sessions/{id}` says."""
    live = entry.live
    return {
        "id": entry.id,
        "state": "connected" if live.connected else "waiting",
        "agent_state": live.state,
        "connected": live.connected,
        "seconds": live.seconds,
        "queued_seconds": live.queued_seconds,
        "stats": live.stats(),
    }
