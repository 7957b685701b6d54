"""One live avatar on the gateway's side: lanes in, engine asked chunk by chunk, ticks out to every viewer.

The session emits every event that concerns media, through `on_event` and on the data channel `events`: a dict with
`type`, `time` (media time in seconds) and its fields. These are `session.state_updated` (connected, disconnected,
closed), `agent.state_updated`, `agent.speak_started`, `agent.speak_ended`, `audio_buffer.appended` (agent lane only),
`audio_buffer.gap`, `audio_buffer.full`, `audio_buffer.cleared`, `metrics` once a second, and `error`.
A callback must return at once: it runs between two ticks.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from av import VideoFrame
from numpy.typing import NDArray

from streamavatar.errors import UserError
from streamavatar.serving.clock import EARLY_SECONDS, MediaClock, Pacer
from streamavatar.serving.figures import Figures, Meter, Unmetered
from streamavatar.serving.lanes import AgentLane, Int16, LaneFull, Speech, UserLane
from streamavatar.serving.playout import Ask, Playout, Tick
from streamavatar.serving.rtc import set_bitrates
from streamavatar.serving.states import Agent, Hysteresis, Overlap, State, StateLabel, agent_in
from streamavatar.serving.timeline import Timeline
from streamavatar.serving.vad import VAD_THREAD, Vad, make_vad
from streamavatar.serving.viewers import USER, Viewers

__all__ = ["ChunkLike", "EngineLike", "Event", "LaneFull", "LiveSession", "LiveSettings", "State"]

logger = logging.getLogger(__name__)
Event = dict[str, Any]


class ChunkLike(Protocol):
    """What `make` returns: its number, I420 frames uint8 [F, H*3//2, W], and the seconds that each stage took."""

    @property
    def index(self) -> int: ...
    @property
    def frames(self) -> NDArray[np.uint8]: ...
    @property
    def seconds(self) -> Mapping[str, float]: ...


class InfoLike(Protocol):
    """Sizes that the session needs to know."""

    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def fps(self) -> int: ...
    @property
    def chunk_frames(self) -> int: ...


class EngineLike(Protocol):
    """The part of the engine's client that a session uses."""

    @property
    def info(self) -> InfoLike: ...
    async def encode(self, face: str, picture: NDArray[np.uint8]) -> None: ...
    async def forget(self, face: str) -> None: ...
    async def open(self, session: str, picture: NDArray[np.uint8], seed: int, face: str = "") -> None: ...
    async def make(self, session: str, index: int, agent: Int16, user: Int16) -> ChunkLike: ...
    async def rollback(self, session: str, index: int) -> None: ...
    async def close_session(self, session: str) -> None: ...
    async def memory(self) -> int: ...


@dataclass(frozen=True)
class LiveSettings:
    """How sessions behave.

    Attributes:
        overlap: who has the floor while both speak; it only names the state.
        server_barge_in: interrupt the agent after `barge_in_seconds` of the user's voice.
        voice_on_seconds, voice_off_seconds: how long a voice, or its absence, lasts until it counts.
        agent_buffer_seconds: of speech that may wait; more is refused with `LaneFull`.
        prebuffer_seconds: of an unfinished speech that stay in reserve when its first sample is taken.
        speech_timeout_seconds: after which a speech that ran dry, and of which no more came, counts as complete.
        lead_seconds: the next chunk is asked for this long before it is due; None for a whole chunk.
        ice_servers: each with `urls` and, where needed, `username` and `credential`, as browsers take them.
        max_viewers: besides the user.
        silent_peer_seconds: without any packet, after which a peer counts as gone.
    """

    overlap: Overlap = "agent"
    server_barge_in: bool = False
    barge_in_seconds: float = 0.2
    voice_on_seconds: float = 0.2
    voice_off_seconds: float = 0.4
    agent_buffer_seconds: float = 30.0
    prebuffer_seconds: float = 0.12
    speech_timeout_seconds: float = 2.0
    lead_seconds: float | None = None
    ice_servers: tuple[Mapping[str, Any], ...] = ()
    max_viewers: int = 8
    silent_peer_seconds: float = 10.0


class LiveSession:
    """See the module's docstring. Use on one event loop only.

    Args:
        engine: makes the chunks; the session opens and closes itself there.
        session_id: its name at the engine and in the trace.
        picture: uint8 RGB [H, W, 3] of the model's size.
        seed: of the noise.
        face: name of the picture, under which the engine keeps what it encoded; "" to keep nothing.
        settings: see `LiveSettings`.
        on_event: gets every event.
        phase: where in the span of a chunk this session's chunks begin, in seconds of the loop's clock, so that
            sessions take turns at the engine; None to begin at once.
        meter: counts over all sessions.

    Attributes:
        ended: resolves with the reason once the session is closed, by whom ever (also when the engine dies).
        server_barge_in: as in the settings; may be changed at any time.
    """

    def __init__(
        self,
        engine: EngineLike,
        session_id: str,
        picture: NDArray[np.uint8],
        *,
        seed: int,
        face: str = "",
        settings: LiveSettings,
        on_event: Callable[[Event], None],
        phase: float | None = None,
        meter: Meter | None = None,
    ) -> None:
        info = engine.info
        self._engine, self._id, self._picture, self._seed, self._face = engine, session_id, picture, seed, face
        self._settings, self._on_event, self._phase = settings, on_event, phase
        self._loop = asyncio.get_running_loop()
        self._clock = MediaClock(info.fps)
        self._chunk_ticks = info.chunk_frames
        gaps = [partial(self._gap, lane) for lane in ("agent", "user")]
        self._agent = AgentLane(
            info.fps,
            capacity=settings.agent_buffer_seconds,
            prebuffer=settings.prebuffer_seconds,
            timeout=settings.speech_timeout_seconds,
            gap=gaps[0],
        )
        self._user = UserLane(info.fps, gap=gaps[1])
        lead = info.chunk_frames if settings.lead_seconds is None else round(settings.lead_seconds * info.fps)
        self._playout = Playout(
            self._agent, self._user, _i420(picture), info.chunk_frames, min(max(lead, 1), info.chunk_frames)
        )
        ticks = partial(_ticks, fps=info.fps)
        self._voice = Hysteresis(ticks(settings.voice_on_seconds), ticks(settings.voice_off_seconds))
        self._label = StateLabel(settings.overlap, hold=ticks(settings.voice_off_seconds))
        self.server_barge_in = settings.server_barge_in
        self._overlap_ticks = 0
        self._vad: Vad | None = None
        self._viewers = Viewers(
            self._clock,
            microphone=self._hear,
            on_change=self._peer_changed,
            ice_servers=settings.ice_servers,
            silent_seconds=settings.silent_peer_seconds,
            most=settings.max_viewers,
        )
        self._timeline = Timeline(f"session {session_id}")
        self._figures = Figures(self._clock.tick_seconds * info.chunk_frames, meter or Unmetered())
        self._slot = self._metrics_slot = 0
        self._pacer: Pacer | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing: asyncio.Task[None] | None = None
        self.ended: asyncio.Future[str] = self._loop.create_future()

    # life ------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the session on the engine, ask for the first chunk and start the clock. Raises what the engine does."""
        self._figures.started_at = self._loop.time()
        self._vad = await self._loop.run_in_executor(VAD_THREAD, make_vad)
        await self._engine.open(self._id, self._picture, self._seed, self._face)
        if self._closing:
            await self._engine.close_session(self._id)
            raise UserError("the session was closed while it began: begin another")
        set_bitrates(self._engine.info.height, self._engine.info.width, self._clock.fps)
        self._pacer = Pacer(self._clock, self._loop.time())
        self._ask()
        self._spawn(self._run(self._pacer))

    async def close(self, reason: str) -> None:
        """End tasks, peers and the engine's session; may be called more than once."""
        if self._closing is None:
            self._closing = self._loop.create_task(self._close(reason))
        await asyncio.shield(self._closing)

    async def _close(self, reason: str) -> None:
        self._emit("session.state_updated", state="closed", reason=reason)
        tasks, self._tasks = self._tasks, set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._viewers.close("the session ended")
        with suppress(Exception):  # a dead engine has already forgotten it
            await self._engine.close_session(self._id)
        self._vad = None  # megabytes, which would wait for the garbage collector
        self.ended.set_result(reason)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a task of this session; one that fails ends the session instead of leaving it half alive."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            logger.error("session %s: %r", self._id, error, exc_info=error)
            self._fail("internal", "the session failed inside the server")

    def _fail(self, code: str, message: str) -> None:
        if self._closing is None:
            self._emit("error", code=code, message=message, retryable=True)
            self._closing = self._loop.create_task(self._close(message))

    # what comes in ---------------------------------------------------------------------------------

    def push_agent(self, samples: Int16, *, rate: int = 24000, index: int | None = None) -> float:
        """Queue speech, int16 mono [S]; returns the seconds queued now.

        `index` is the number of the first sample, counted at `rate` over the whole session. Raises LaneFull, UserError.
        """
        try:
            self._agent.push(samples, rate, index, self._loop.time())
        except LaneFull as error:
            self._emit("audio_buffer.full", lane="agent", retry_after=round(error.retry_after, 3))
            raise
        self._emit("audio_buffer.appended", lane="agent", queued_seconds=round(self.queued_seconds, 3))
        return self.queued_seconds

    def end_agent(self) -> None:
        """The speech being pushed is complete: it plays to its end, and the next push starts another."""
        self._agent.end()

    def push_user(self, samples: Int16, *, rate: int = 16000, index: int | None = None) -> None:
        """What the user says now, int16 mono [S]. Raises UserError."""
        self._user.push(samples, rate, index)

    def interrupt(self) -> float | None:
        """Stop speaking and drop what is queued.

        Returns the seconds of the current speech that were played, None if there was nothing to say.
        """
        return self._interrupt(by_server=False)

    def _gap(self, lane: str, samples: int) -> None:
        self._emit("audio_buffer.gap", lane=lane, samples=samples)

    def _interrupt(self, by_server: bool) -> float | None:
        now = self._loop.time()
        dropped = self._agent.clear(now, discard=by_server)
        speeches = self._playout.interrupt(dropped)
        for speech in speeches:
            self._speech_ended(speech, interrupted=True)
        if speeches:
            self._emit("audio_buffer.cleared", lane="agent")
            self._figures.interrupted(now)
        self._timeline.mark("speech", "interrupt", now, by_server=by_server, speeches=len(speeches))
        self._update_label("none")
        self._ask()
        return speeches[0].position if speeches else None

    # what is asked of the engine -------------------------------------------------------------------

    def _ask(self) -> None:
        if self._pacer and self._closing is None and (ask := self._playout.ask()):
            self._spawn(self._make(ask))

    async def _make(self, ask: Ask) -> None:
        begin = self._loop.time()
        try:
            if ask.again:
                await self._engine.rollback(self._id, ask.index)
            chunk = await self._engine.make(self._id, ask.index, ask.agent, ask.user)
        except Exception as error:
            # A chunk that was rolled back while it was being made may fail; nobody waits for it.
            if self._playout.wanted(ask):
                logger.warning("session %s: chunk %d: %r", self._id, ask.index, error)
                self._fail("engine", f"the engine failed: {error}")
            return
        now = self._loop.time()
        lead = self._playout.lead_ticks * self._clock.tick_seconds
        used = self._playout.made(ask, chunk.frames)
        self._timeline.span("engine", f"chunk {ask.index}", begin, now, used=used, again=ask.again)
        if used:
            self._timeline.count("lead", now, round(lead, 3))
        self._figures.chunk(chunk.seconds, lead if used else None)

    # the clock -------------------------------------------------------------------------------------

    async def _run(self, pacer: Pacer) -> None:
        while True:
            await asyncio.sleep(max(0.0, pacer.deadline - self._loop.time()))
            now = self._loop.time()
            self._slot, skipped = pacer.take(now)
            if skipped:
                self._figures.skipped(skipped)
                self._timeline.mark("playout", "the event loop was late", now, ticks=skipped)
            self._tick(now)

    def _tick(self, now: float) -> None:
        self._agent.expire(now)
        heard = self._user.tick()
        voice = self._vad is not None and self._vad.voice(heard)
        tick = self._playout.tick(hold=self._before_phase(now))
        self._viewers.put(self._slot, now, tick.frame, tick.samples)
        self._figures.tick(tick, now)
        self._report(tick, now)
        self._voice.update(voice)
        self._update_label(agent_in(tick))
        self._barge_in(voice and self._label.talking)
        self._ask()
        if self._slot >= self._metrics_slot:
            self._metrics_slot = self._slot + self._clock.fps
            self._emit("metrics", **self.stats())

    def _before_phase(self, now: float) -> bool:
        """Whether the first chunk should wait for this session's turn."""
        if self._phase is None:
            return False
        chunk = self._chunk_ticks * self._clock.tick_seconds
        return (now + EARLY_SECONDS - self._phase) % chunk >= self._clock.tick_seconds

    def _report(self, tick: Tick, now: float) -> None:
        """The events of one tick."""
        if tick.late:
            self._timeline.mark("playout", f"late chunk: {tick.kind}", now)
        if tick.started:
            self._timeline.mark("speech", f"speech {tick.started.id} starts", now)
            self._emit("agent.speak_started", speech=tick.started.id)
        for speech in tick.ended:
            self._speech_ended(speech, interrupted=False)

    def _speech_ended(self, speech: Speech, interrupted: bool) -> None:
        position = round(speech.position, 6)
        self._timeline.mark("speech", f"speech {speech.id} ends", self._loop.time(), interrupted=interrupted)
        self._emit("agent.speak_ended", speech=speech.id, playback_position=position, interrupted=interrupted)

    def _update_label(self, agent: Agent) -> None:
        if state := self._label.update(agent, self._voice.value, self._playout.interrupted):
            self._timeline.mark("state", state, self._loop.time())
            self._emit("agent.state_updated", state=state)

    def _barge_in(self, overlap: bool) -> None:
        """Interrupt the agent once the user has spoken over it for long enough."""
        self._overlap_ticks = self._overlap_ticks + 1 if overlap else 0
        if self.server_barge_in and self._overlap_ticks >= _ticks(self._settings.barge_in_seconds, self._clock.fps):
            self._overlap_ticks = 0
            self._interrupt(by_server=True)

    # peers -----------------------------------------------------------------------------------------

    async def offer(self, sdp: str) -> str:
        """Connect the user's peer (again); the answer's SDP. Raises UserError for an offer that cannot be answered."""
        return await self._viewers.offer(sdp)

    async def add_candidate(self, candidate: Mapping[str, Any] | None) -> None:
        """A trickled candidate of the user's peer (`candidate`, `sdpMid`, `sdpMLineIndex`), None at the end."""
        await self._viewers.add_candidate(candidate)

    async def whep(self, sdp: str) -> tuple[str, str]:
        """Add a viewer; its id and the answer's SDP. Raises UserError."""
        return await self._viewers.watch(sdp)

    async def drop_viewer(self, viewer: str) -> bool:
        """Remove a viewer; False if there is none of that id."""
        return await self._viewers.drop(viewer)

    def _hear(self, samples: Int16, rate: int) -> None:
        self._user.push(samples, rate, None)

    def _peer_changed(self, name: str, state: str, reason: str) -> None:
        self._timeline.mark("peers", f"{name} {state}", self._loop.time(), reason=reason)
        if name == USER and self._closing is None:
            self._emit(
                "session.state_updated", state="disconnected" if state == "closed" else "connected", reason=reason
            )

    # what is seen from outside ---------------------------------------------------------------------

    @property
    def state(self) -> State:
        return self._label.state

    @property
    def speech_id(self) -> int:
        """The speech that the last push went to, counted from 1; 0 before any."""
        return self._agent.speech_id

    @property
    def queued_seconds(self) -> float:
        """Speech that no chunk has taken yet."""
        return self._agent.queued_seconds

    @property
    def seconds(self) -> float:
        """Media time."""
        return self._clock.seconds(self._slot)

    @property
    def connected(self) -> bool:
        """Whether the user's peer is connected and heard of."""
        peer = self._viewers.user
        return peer is not None and peer.state == "connected"

    @property
    def heard_at(self) -> float:
        """When the user's peer was last heard of, on the loop's clock; 0 while there is none."""
        peer = self._viewers.user
        return peer.heard_at if peer else 0.0

    def stats(self) -> dict[str, Any]:
        """Figures under the metrics' names."""
        counts = self._playout.counts
        underruns = {**counts.late, "loop": self._figures.skips}
        return {
            **self._figures.stats(),
            "underrun_total": underruns,
            "underruns": sum(underruns.values()),
            "repeated_ticks": counts.repeated_ticks,
            "starved_ticks": counts.starved_ticks,
            "skipped_ticks": self._figures.skipped_ticks,
            "dropped_ticks": self._viewers.dropped,
            "rollbacks": counts.rollbacks,
            "queued_seconds": round(self.queued_seconds, 3),
            "lost_samples": {"agent": self._agent.intake.lost, "user": self._user.intake.lost},
            "repeated_samples": {"agent": self._agent.intake.repeated, "user": self._user.intake.repeated},
            "late_user_samples": self._user.late,
            "viewers": self._viewers.count,
        }

    def trace(self) -> dict[str, Any]:
        """The last minutes as a Chrome trace."""
        return self._timeline.trace()

    def _emit(self, kind: str, **fields: Any) -> None:
        event = {"type": kind, "time": round(self.seconds, 3), **fields}
        try:
            self._on_event(event)
        except Exception:
            logger.exception("session %s: the callback for events failed", self._id)
        if self._viewers.count:
            self._viewers.send(json.dumps(event))


def _ticks(seconds: float, fps: int) -> int:
    return max(1, round(seconds * fps))


def _i420(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB [H, W, 3] as the engine's frames are, uint8 [H*3//2, W]."""
    return np.asarray(
        VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p").to_ndarray(), np.uint8
    )
