"""The two lanes at the gateway: what the agent will say, ahead of time, and what the user says, as it comes.

The agent's lane is a queue of speeches. Audio that arrives faster than it is spoken waits, up to a limit; where it
arrives too slowly a speech begins only when enough is there, and pauses between words, not inside them. The user's lane
is live: a short buffer against jitter, and what comes too late is dropped, since nothing ever waits for it.
Sample indices make gaps and repeats visible; a gap becomes silence, a repeat is dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamavatar.errors import UserError
from streamavatar.media.signal import MAX_RATE, MIN_RATE, StreamResampler
from streamavatar.serving.clock import AGENT_RATE, USER_RATE

Int16 = NDArray[np.int16]
Gap = Callable[[int], None]

MAX_GAP_SECONDS = 5.0
"""A longer jump of the sample index is a client that began to count anew: nothing is put in for it."""
QUIET_SEARCH_SECONDS = 0.3
QUIET_BLOCK_SECONDS = 0.01
QUIET_SHARE = 0.1
"""A block this much quieter than the loudest one is a gap between words."""
FADE_SECONDS = 0.005
"""Fade where speech has to stop inside a word because no more of it has come."""
DISCARD_SECONDS = 1.0
"""A pause between pushes that ends the rest of a speech which the server interrupted."""


class LaneFull(Exception):
    """The lane holds all that it may; try again after `retry_after` seconds. Nothing of the push was taken."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"the agent's lane is full: send the rest after {retry_after:.2f} s")
        self.retry_after = retry_after


# what comes in ---------------------------------------------------------------------------------------


class Intake:
    """Samples at any rate and with or without an index, as samples at the lane's rate without repeats.

    Args:
        rate: of the lane, Hz.
        fps: ticks per second.
        gap: called with the samples (at the lane's rate) that never came.

    Attributes:
        lost, repeated: samples that never came, and that came again, at the lane's rate.
    """

    def __init__(self, rate: int, fps: int, gap: Gap) -> None:
        self._rate, self._fps, self._gap = rate, fps, gap
        self._expected: int | None = None
        self._resampler = StreamResampler(rate, rate, fps)
        self.lost = self.repeated = 0

    def check(self, samples: Int16, rate: int) -> None:
        """Raise UserError for what cannot be taken."""
        if samples.ndim != 1 or samples.dtype != np.int16:
            raise UserError(f"audio must be mono int16 [S], got {samples.dtype} {list(samples.shape)}: convert it")
        if not MIN_RATE <= rate <= MAX_RATE or rate % self._fps:
            raise UserError(
                f"audio at {rate} Hz: send {MIN_RATE} to {MAX_RATE} Hz, a multiple of {self._fps}, best {self._rate}"
            )

    def take(self, samples: Int16, rate: int, index: int | None, fill: bool = True) -> Int16:
        """What a push adds to the lane; silence for a gap comes first if `fill`."""
        missing = 0
        if index is not None:
            missing = 0 if self._expected is None else index - self._expected
            if abs(missing) > MAX_GAP_SECONDS * rate:
                missing = 0
            repeated = min(max(-missing, 0), len(samples))
            self._expected = index + max(-missing, len(samples))
            self.repeated += round(repeated * self._rate / rate)
            samples = samples[repeated:]
        elif self._expected is not None:
            self._expected += len(samples)
        if missing > 0:
            lost = round(missing * self._rate / rate)
            self.lost += lost
            self._gap(lost)
            if fill:
                samples = np.concatenate((np.zeros(missing, np.int16), samples))
        return self._convert(samples, rate)

    def flush(self) -> Int16:
        """What the resampler still holds, at the end of a speech."""
        return _int16(self._resampler.flush())

    def _convert(self, samples: Int16, rate: int) -> Int16:
        tail = np.empty(0, np.int16)
        if rate != self._resampler.src:
            tail = self.flush()
            self._resampler = StreamResampler(rate, self._rate, self._fps)
        if rate == self._rate:
            return np.concatenate((tail, samples))
        return np.concatenate((tail, _int16(self._resampler.push(samples.astype(np.float32) / 32768))))


def _int16(signal: NDArray[np.float32]) -> Int16:
    return np.clip(np.rint(signal * 32768), -32768, 32767).astype(np.int16)


# the agent's lane ------------------------------------------------------------------------------------


@dataclass(eq=False)
class Speech:
    """One thing that the agent says. Counts are samples at 24 kHz.

    Attributes:
        pushed_at: when its first samples came.
        active_at: when it last got samples, or had enough to go on.
        received, taken, played: samples so far; `taken` of those received are part of a chunk, `played` were heard.
        ended: no more will come.
        flowing: it is being taken; else it waits until enough is there to go on without a pause.
    """

    id: int
    pushed_at: float
    active_at: float
    received: int = 0
    taken: int = 0
    played: int = 0
    ended: bool = False
    flowing: bool = False

    @property
    def waiting(self) -> int:
        return self.received - self.taken

    @property
    def done(self) -> bool:
        return self.ended and self.played == self.received

    @property
    def position(self) -> float:
        """Seconds of it that were heard."""
        return self.played / AGENT_RATE


@dataclass(frozen=True)
class AgentTick:
    """One tick of the lane: int16 samples [T], the first `count` of them from `speech`, the rest silence.

    `starved`: silent because a speech that has begun goes on too slowly.
    """

    samples: Int16
    speech: Speech | None = None
    count: int = 0
    starved: bool = False


class AgentLane:
    """See the module's docstring.

    Args:
        fps: ticks per second.
        capacity: seconds that may wait.
        prebuffer: seconds of an unfinished speech that stay behind when its first tick is taken, against pauses.
        timeout: seconds after which a speech that ran dry counts as finished.
        gap: called with the samples that were lost.
    """

    def __init__(self, fps: int, *, capacity: float, prebuffer: float, timeout: float, gap: Gap) -> None:
        self._tick = AGENT_RATE // fps
        self._capacity = round(capacity * AGENT_RATE)
        self._prebuffer = round(prebuffer * AGENT_RATE)
        self._timeout = timeout
        self.intake = Intake(AGENT_RATE, fps, gap)
        self._samples = bytearray()  # of all speeches, those that are taken removed
        self._speeches: deque[Speech] = deque()
        self._discard_until = 0.0
        self.speech_id = 0

    # in

    @property
    def open(self) -> Speech | None:
        """The speech that the next push continues."""
        return self._speeches[-1] if self._speeches and not self._speeches[-1].ended else None

    @property
    def queued_seconds(self) -> float:
        return len(self._samples) / 2 / AGENT_RATE

    def push(self, samples: Int16, rate: int, index: int | None, now: float) -> None:
        """Add to the open speech, or begin one. Raises LaneFull, UserError; the lane is then as before."""
        self.intake.check(samples, rate)
        size = round(len(samples) * AGENT_RATE / rate)
        if size > self._capacity:
            raise UserError(f"send at most {self._capacity / AGENT_RATE:.0f} s of audio at once, in pieces if longer")
        if (excess := len(self._samples) // 2 + size - self._capacity) > 0:
            raise LaneFull(excess / AGENT_RATE)
        if now < self._discard_until:
            self.intake.take(samples, rate, index, fill=False)
            self._discard_until = now + DISCARD_SECONDS
            return
        speech = self.open
        fresh = self.intake.take(samples, rate, index, fill=speech is not None)
        if speech is None:
            if not len(samples):
                return
            self.speech_id += 1
            speech = Speech(self.speech_id, pushed_at=now, active_at=now)
            self._speeches.append(speech)
        speech.active_at = now
        self._add(speech, fresh)

    def end(self) -> None:
        """The open speech is complete."""
        self._discard_until = 0.0
        if speech := self.open:
            self._add(speech, self.intake.flush())
            speech.ended = True

    def expire(self, now: float) -> None:
        """End a speech that has run dry and whose sender has gone quiet without saying so; call it every tick."""
        if speech := self.open:
            if speech.flowing:
                speech.active_at = now
            elif now - speech.active_at > self._timeout:
                self.end()

    def clear(self, now: float, discard: bool) -> list[Speech]:
        """Forget all that waits, and return its speeches, ended. With `discard`, drop what still comes of the last."""
        if discard and self.open:
            self._discard_until = now + DISCARD_SECONDS
        self.intake.flush()
        self._samples.clear()
        dropped = list(self._speeches)
        self._speeches.clear()
        for speech in dropped:
            speech.ended = True
        return dropped

    def _add(self, speech: Speech, samples: Int16) -> None:
        self._samples += samples.tobytes()
        speech.received += len(samples)

    # out

    def take(self, ticks: int) -> list[AgentTick]:
        """The next ticks, silence where nothing is to be said."""
        taken: list[AgentTick] = []
        while len(taken) < ticks:
            self._forget_taken()
            room = ticks - len(taken)
            if not self._speeches:
                taken += self._silence(room)
                break
            speech = self._speeches[0]
            if not speech.flowing:
                wait = self._wait(speech, room)
                taken += self._silence(wait, starved=speech.taken > 0)
                if wait == room:
                    break
                speech.flowing = True
            taken += self._flow(speech, ticks - len(taken))
        return taken

    def peek(self, ticks: int) -> Int16:
        """What :meth:`take` would bring next as far as it is known, int16 [ticks * T]."""
        ahead = np.zeros(ticks * self._tick, np.int16)
        tick, offset = 0, 0
        for speech in self._speeches:
            if speech.waiting and not speech.flowing:
                tick += self._wait(speech, ticks - tick)
            size = max(0, min(speech.waiting, (ticks - tick) * self._tick))
            begin = tick * self._tick
            ahead[begin : begin + size] = np.frombuffer(
                bytes(self._samples[2 * offset : 2 * (offset + size)]), np.int16
            )
            tick += -(-size // self._tick)
            offset += size
            if tick >= ticks or not speech.ended:
                break
        return ahead

    def _forget_taken(self) -> None:
        while self._speeches and self._speeches[0].ended and not self._speeches[0].waiting:
            self._speeches.popleft()

    def _wait(self, speech: Speech, room: int) -> int:
        """Ticks of silence before a speech begins or resumes, so that it fills the room and the prebuffer remains."""
        if speech.ended:
            return 0
        spare = max(0, speech.waiting - self._prebuffer) // self._tick
        return room - min(room, spare)

    def _flow(self, speech: Speech, room: int) -> list[AgentTick]:
        """Ticks of one speech, at least one; fewer than the room where it ends."""
        if speech.waiting >= room * self._tick:
            return self._ticks(speech, room * self._tick)
        if speech.ended:
            return self._ticks(speech, speech.waiting)
        speech.flowing = False
        size = self._pause(speech)
        return [*self._ticks(speech, size), *self._silence(room - -(-size // self._tick), starved=True)]

    def _ticks(self, speech: Speech, size: int) -> list[AgentTick]:
        samples = np.frombuffer(bytes(self._samples[: 2 * size]), np.int16)
        del self._samples[: 2 * size]
        speech.taken += size
        padded = np.zeros(-(-size // self._tick) * self._tick, np.int16)
        padded[:size] = samples
        if not speech.flowing and size:  # it stops here for lack of more
            fade = min(size, round(FADE_SECONDS * AGENT_RATE))
            padded[size - fade : size] = (padded[size - fade : size] * np.linspace(1, 0, fade)).astype(np.int16)
        pieces = padded.reshape(-1, self._tick)
        return [AgentTick(piece, speech, min(self._tick, size - i * self._tick)) for i, piece in enumerate(pieces)]

    def _pause(self, speech: Speech) -> int:
        """Samples of an unfinished speech to say before pausing: to the last gap between words, else all."""
        size = speech.waiting
        block = round(QUIET_BLOCK_SECONDS * AGENT_RATE)
        blocks = min(size, round(QUIET_SEARCH_SECONDS * AGENT_RATE)) // block
        if blocks < 2:
            return size
        tail = np.frombuffer(bytes(self._samples[2 * (size - blocks * block) : 2 * size]), np.int16)
        level = np.abs(tail.astype(np.float32)).reshape(blocks, block).mean(1)
        quiet = np.flatnonzero(level <= QUIET_SHARE * level.max())
        return size if not len(quiet) else size - (blocks - 1 - int(quiet[-1])) * block

    def _silence(self, ticks: int, starved: bool = False) -> list[AgentTick]:
        return [AgentTick(np.zeros(self._tick, np.int16), starved=starved)] * ticks


# the user's lane -------------------------------------------------------------------------------------


class UserLane:
    """See the module's docstring.

    Args:
        fps: ticks per second.
        least, most: seconds that are buffered before anything is heard, and how far behind it may fall.
        gap: called with the samples that were lost.
    """

    def __init__(self, fps: int, *, least: float = 0.04, most: float = 0.08, gap: Gap) -> None:
        self._tick = USER_RATE // fps
        self._least, self._most = round(least * USER_RATE), round(most * USER_RATE)
        self._limit = USER_RATE
        self.intake = Intake(USER_RATE, fps, gap)
        self._samples = bytearray()
        self._playing = False
        self._spare: deque[int] = deque(maxlen=fps // 2)
        self._recent: deque[Int16] = deque(maxlen=fps)
        self._unheard = 0
        self.late = 0
        """Samples dropped because they came too late."""

    def push(self, samples: Int16, rate: int, index: int | None) -> None:
        """Raises UserError for a rate that cannot be taken."""
        self.intake.check(samples, rate)
        self._samples += self.intake.take(samples, rate, index).tobytes()
        self._drop(len(self._samples) // 2 - self._limit)

    def tick(self) -> Int16:
        """The next tick, int16 [T]; silence where the user's audio is not there yet."""
        waiting = len(self._samples) // 2
        self._playing = waiting >= (self._tick if self._playing else max(self._tick, self._least))
        heard = np.zeros(self._tick, np.int16)
        if self._playing:
            heard = np.frombuffer(bytes(self._samples[: 2 * self._tick]), np.int16)
            del self._samples[: 2 * self._tick]
            self._catch_up()
        else:
            self._spare.clear()
        self._recent.append(heard)
        self._unheard = min(self._unheard + 1, len(self._recent))
        return heard

    def take(self, ticks: int) -> Int16:
        """The newest ticks that no chunk has heard, int16 [ticks * T], silence before them."""
        count = min(self._unheard, ticks)
        self._unheard = 0
        window = np.zeros(ticks * self._tick, np.int16)
        if count:
            window[-count * self._tick :] = np.concatenate(list(self._recent)[-count:])
        return window

    def _catch_up(self) -> None:
        """Drop what even the emptiest moment of the last half second did not need."""
        self._spare.append(len(self._samples) // 2)
        if len(self._spare) == self._spare.maxlen and (spare := min(self._spare)) > self._most:
            self._drop(spare - self._least)
            self._spare.clear()

    def _drop(self, size: int) -> None:
        if size > 0:
            self.late += size
            del self._samples[: 2 * size]
