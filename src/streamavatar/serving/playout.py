"""What is shown and heard in each slot, and what the engine is asked for: the rules, without time or input/output.

Chunk k+1 is asked for while chunk k plays, so the lead is at most one chunk. A tick (frame and sound together) that is
not there in time is held back, never skipped and never played faster: in silence the last frame is repeated, in speech
picture and sound freeze together and then go on. An interruption fades what is heard next, silences the rest of the
chunk on screen, and has the chunk ahead made again without the speech.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from streamavatar.serving.clock import AGENT_RATE
from streamavatar.serving.lanes import AgentLane, AgentTick, Int16, Speech, UserLane

LOOK_AHEAD_TICKS = 2
"""Ticks of the agent's lane after a chunk that the chunk's mouth already hears."""
FADE_SECONDS = 0.01
"""How fast speech fades when it is interrupted: with the tick before it, silence comes within 50 ms."""

Kind = Literal["wait", "play", "repeat", "freeze"]
"""Of a tick: before the first chunk, as made, or one of the two ways of being late."""


@dataclass(frozen=True, eq=False)
class Ask:
    """A chunk that the engine is to make: int16 windows of both lanes, and what will be heard with its frames.

    `again`: an earlier ask of this chunk has to be rolled back first. `spoken`: speech that an interruption could
    remove is in the agent's window.
    """

    index: int
    ticks: list[AgentTick]
    agent: Int16
    user: Int16
    again: bool = False

    @property
    def spoken(self) -> bool:
        return bool(self.agent.any())


@dataclass(frozen=True)
class Tick:
    """What one slot shows (I420 uint8 [H*3//2, W]) and sounds like (int16 [T]), and what happens in it.

    Attributes:
        started: the speech whose first sample this is.
        ended: speeches whose last sample this is, or was.
        rested: the first tick of the first chunk made after an interruption.
        begun: the number of the chunk that begins here, else 0.
        late: this is the first tick that a chunk is late by.
    """

    kind: Kind
    frame: NDArray[np.uint8]
    samples: Int16
    speech: Speech | None = None
    started: Speech | None = None
    ended: tuple[Speech, ...] = ()
    starved: bool = False
    rested: bool = False
    begun: int = 0
    late: bool = False


@dataclass
class Counts:
    """Since the session began."""

    late: dict[str, int] = field(default_factory=lambda: {"repeat": 0, "freeze": 0})
    """Chunks that were late, by what was done meanwhile."""
    repeated_ticks: int = 0
    starved_ticks: int = 0
    rollbacks: int = 0


@dataclass
class _Playing:
    index: int
    ticks: list[AgentTick]
    frames: NDArray[np.uint8]
    cursor: int = 0

    @property
    def left(self) -> int:
        return len(self.ticks) - self.cursor


class Playout:
    """See the module's docstring.

    Args:
        agent, user: the lanes.
        picture: I420 of the reference, shown until the first chunk is there.
        chunk_ticks: frames per chunk.
        lead_ticks: the next chunk is asked for when so many ticks are left; a chunk at most.
    """

    def __init__(
        self, agent: AgentLane, user: UserLane, picture: NDArray[np.uint8], chunk_ticks: int, lead_ticks: int
    ) -> None:
        self._agent, self._user = agent, user
        self._chunk_ticks, self._lead_ticks = chunk_ticks, lead_ticks
        self._frame = picture
        self._silence = agent.take(1)[0].samples
        self._now: _Playing | None = None
        self._ahead: Ask | None = None
        self._made: NDArray[np.uint8] | None = None
        self._asked = False
        self._last_index = 0
        self._late = False
        self._tail: Int16 | None = None  # what fades in the next slot
        self._rest_index: int | None = None
        self._speech: Speech | None = None
        self.counts = Counts()

    # the engine ------------------------------------------------------------------------------------

    def ask(self) -> Ask | None:
        """What the engine has to make now, once; None while it has enough to do."""
        if self._ahead is None:
            if self._now and self._now.left > self._lead_ticks:
                return None
            self._last_index += 1
            ticks = self._agent.take(self._chunk_ticks)
            heard = [tick.samples for tick in ticks]
            agent = np.concatenate([*heard, self._agent.peek(LOOK_AHEAD_TICKS)])
            self._ahead = Ask(self._last_index, ticks, agent, self._user.take(self._chunk_ticks))
        elif self._asked:
            return None
        self._asked = True
        return self._ahead

    def made(self, ask: Ask, frames: NDArray[np.uint8]) -> bool:
        """Take what the engine made; False if an interruption has made it useless meanwhile."""
        if ask is not self._ahead:
            return False
        self._made = frames
        return True

    def wanted(self, ask: Ask) -> bool:
        """Whether the session still waits for this."""
        return ask is self._ahead

    @property
    def lead_ticks(self) -> int:
        """Ticks that can be played without the engine."""
        return (self._now.left if self._now else 0) + (0 if self._made is None else self._chunk_ticks)

    # the slots -------------------------------------------------------------------------------------

    def tick(self, hold: bool = False) -> Tick:
        """What the next slot plays. `hold`: do not begin the first chunk yet."""
        tick = self._next(hold)
        if self._tail is not None:
            tick, self._tail = replace(tick, samples=self._tail), None
        return tick

    def _next(self, hold: bool) -> Tick:
        if self._now and self._now.left:
            return self._play(self._now)
        if self._made is not None and self._ahead and not (hold and self._now is None):
            self._now = _Playing(self._ahead.index, self._ahead.ticks, self._made)
            self._ahead = self._made = None
            self._asked = False
            return self._play(self._now)
        ended = self._ended()
        if self._now is None:
            return Tick("wait", self._frame, self._silence, ended=ended)
        kind: Kind = "freeze" if self._ahead and self._ahead.ticks[0].speech else "repeat"
        late, self._late = not self._late, True
        self.counts.late[kind] += late
        self.counts.repeated_ticks += 1
        return Tick(kind, self._frame, self._silence, ended=ended, late=late)

    def _play(self, playing: _Playing) -> Tick:
        begun = 0 if playing.cursor else playing.index
        tick = playing.ticks[playing.cursor]
        self._frame = playing.frames[playing.cursor]
        playing.cursor += 1
        self._late = False
        self.counts.starved_ticks += tick.starved
        ended = self._ended()
        started = None
        if tick.speech:
            self._speech = tick.speech
            started = None if tick.speech.played else tick.speech
            tick.speech.played += tick.count
            ended += self._ended()
        rested = bool(begun) and self._rest_index is not None and begun >= self._rest_index
        if rested:
            self._rest_index = None
        return Tick(
            "play", self._frame, tick.samples, tick.speech, started, ended, tick.starved, rested=rested, begun=begun
        )

    def _ended(self) -> tuple[Speech, ...]:
        """The current speech, once all of it was heard and no more can come."""
        if self._speech and self._speech.done:
            speech, self._speech = self._speech, None
            return (speech,)
        return ()

    # barge-in --------------------------------------------------------------------------------------

    @property
    def interrupted(self) -> bool:
        """Whether the avatar has not come to rest since the last interruption."""
        return self._rest_index is not None

    def interrupt(self, dropped: list[Speech]) -> list[Speech]:
        """Stop speaking. `dropped`: what the lane still held.

        Returns the speeches that end by this, in order; `played` of each is final, with the fade of the next tick.
        """
        waiting = self._now.ticks[self._now.cursor :] if self._now else []
        waiting += self._ahead.ticks if self._ahead else []
        speeches = _speeches(waiting)
        if waiting and not self._late:
            self._tail = self._fade(waiting[0])
        if self._now:
            self._now.ticks[self._now.cursor :] = [AgentTick(self._silence)] * self._now.left
        if self._speech and not self._speech.done:
            speeches.insert(0, self._speech)
        self._speech = None
        ended = list(dict.fromkeys([*speeches, *dropped]))
        for speech in ended:
            speech.ended, speech.received = True, speech.played
        if self._ahead and self._ahead.spoken:
            self._ahead = self._without_speech(self._ahead)
        elif self._ahead:  # at most the silence of a recording: the chunk stays as it is, but belongs to no speech
            self._ahead.ticks[:] = [AgentTick(self._silence)] * len(self._ahead.ticks)
        if ended:
            self._rest_index = self._ahead.index if self._ahead else self._last_index + 1
        return ended

    def _fade(self, tick: AgentTick) -> Int16 | None:
        """The sound of the next slot, if it would go on with what is heard now: it counts as played."""
        if not tick.speech or not tick.speech.played:
            return None
        size = min(tick.count, round(FADE_SECONDS * AGENT_RATE))
        faded = np.zeros_like(tick.samples)
        faded[:size] = tick.samples[:size] * np.linspace(1, 0, size)
        tick.speech.played += size
        return faded

    def _without_speech(self, ask: Ask) -> Ask:
        """The same chunk with a silent agent; what was asked or made is to be rolled back if it was asked at all."""
        ticks = [AgentTick(self._silence)] * len(ask.ticks)
        again = ask.again or self._asked
        self._asked, self._made = False, None
        self.counts.rollbacks += again
        return Ask(ask.index, ticks, np.zeros_like(ask.agent), ask.user, again)


def _speeches(ticks: list[AgentTick]) -> list[Speech]:
    return [tick.speech for tick in ticks if tick.speech]
