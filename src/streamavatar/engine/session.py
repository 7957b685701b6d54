"""A live avatar: push audio, get frames with their audio, chunk by chunk, for as long as audio comes.

The session owns all state that changes: lanes and clock here, cache and decoder state in its `ChunkMaker`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from streamavatar.engine.lane import Lane, Samples
from streamavatar.engine.maker import open_maker
from streamavatar.engine.pipeline import Pipeline
from streamavatar.engine.telemetry import Telemetry
from streamavatar.errors import UserError
from streamavatar.models.audio import AFTER, BEFORE
from streamavatar.models.avatar import AvatarModel

LANES = ("agent", "user")
IN_FLIGHT = 2
"""Chunks in the pipeline at a time: one in the transformer, one in the decoder."""


@dataclass(frozen=True)
class Output:
    """One chunk as it is shown and heard.

    Attributes:
        frames: uint8 RGB [F, H, W, 3]; 12, or fewer at the very end.
        audio: the agent's own samples of these frames, float32 [F * rate / fps]; silence where the agent has none.
        chunk: its number, from 1.
    """

    frames: NDArray[np.uint8]
    audio: Samples
    chunk: int


@dataclass(frozen=True)
class _Job:
    """What a chunk needs from the lanes: 16 kHz windows for the features, own samples for the output."""

    chunk: int
    agent: Samples
    user: Samples
    audio: Samples
    frames: int
    complete: float


class Session:
    """See the module's docstring. Make one with `Avatar.session`.

    Args:
        model: shared weights, in evaluation mode.
        pipeline: shared workers.
        reference: uint8 RGB [H, W, 3] of the model's size.
        agent_rate, user_rate: of the audio to be pushed, in Hz; multiples of the frame rate.
        lanes: those that will be pushed; the others are silent and never waited for.
        seed: of the noise.
    """

    def __init__(
        self,
        model: AvatarModel,
        pipeline: Pipeline,
        reference: NDArray[np.uint8],
        *,
        agent_rate: int = 16000,
        user_rate: int = 16000,
        lanes: Sequence[str] = LANES,
        seed: int = 0,
    ) -> None:
        if not lanes:
            raise UserError("a session needs at least one lane, 'agent' or 'user'; push zeros for silence")
        if unknown := set(lanes) - set(LANES):
            raise UserError(f"unknown lane {min(unknown)!r}; lanes are 'agent' and 'user'")
        geometry, audio = model.config.geometry, model.config.audio
        self.model, self.pipeline = model, pipeline
        self.telemetry = Telemetry()
        self.agent_rate = agent_rate
        self._lanes = {
            name: Lane(rate, audio.sample_rate, geometry.fps)
            for name, rate in zip(LANES, (agent_rate, user_rate), strict=True)
        }
        for name in set(LANES) - set(lanes):
            self._lanes[name].close()
        self._chunk = 0
        self._in_flight: deque[Future[Output]] = deque()
        self._complete: deque[float] = deque()
        """When the audio of each chunk that is not in the pipeline yet became complete."""
        self._maker = open_maker(pipeline, model, reference, seed, self.telemetry)

    # public ----------------------------------------------------------------------------------------

    def push(self, agent: ArrayLike | None = None, user: ArrayLike | None = None) -> Iterator[Output]:
        """Add audio to the lanes and get what can be shown now.

        A chunk is made once every open lane has its audio and two frames (80 ms) more. Audio is taken and work begins
        at once, also if the iterator is not read; what is not read now comes with the next call. Reading waits until
        all that can be made is made; :meth:`poll` does not wait.

        Args:
            agent, user: mono float samples [S] at the lane's rate, or nothing.

        Raises:
            UserError: if a lane is closed or the samples are not finite mono floats; neither lane has changed then.
        """
        given = {name: samples for name, samples in (("agent", agent), ("user", user)) if samples is not None}
        checked = {name: self._lanes[name].check(samples) for name, samples in given.items()}
        for name, samples in checked.items():
            self._lanes[name].push(samples)
        self._begin()
        return self._drain()

    def poll(self) -> list[Output]:
        """The chunks that are finished by now, without waiting."""
        outputs = []
        while self._in_flight and self._in_flight[0].done():
            outputs.append(self._in_flight.popleft().result())
            self._begin()
        return outputs

    def close_lane(self, name: str) -> None:
        """No more audio will come on this lane; it is silent from its end on and is no longer waited for."""
        if name not in LANES:
            raise UserError(f"unknown lane {name!r}; lanes are 'agent' and 'user'")
        self._lanes[name].close()

    def finish(self) -> Iterator[Output]:
        """Close all lanes and get the rest, to the last frame that has audio."""
        for name in LANES:
            self.close_lane(name)
        self._begin()
        return self._drain()

    def tick_samples(self, lane: str) -> int:
        """Samples of a lane that one frame lasts."""
        return self._lanes[lane].tick_samples

    @property
    def ticks_made(self) -> int:
        """Frames handed to the pipeline so far."""
        return self._chunk * self.model.config.geometry.chunk_frames

    # one chunk -------------------------------------------------------------------------------------

    def _drain(self) -> Iterator[Output]:
        while self._in_flight:
            output = self._in_flight.popleft().result()
            self._begin()
            yield output

    def _begin(self) -> None:
        """Note which chunks' audio is complete, and keep two chunks in the pipeline."""
        while self._ready(self._chunk + len(self._complete)):
            self._complete.append(perf_counter())
        while len(self._in_flight) < IN_FLIGHT and self._complete:
            self._submit(self._complete.popleft())

    def _ready(self, chunks: int) -> bool:
        """Whether the audio of the chunk after `chunks` is known; with all lanes closed, whether any is left."""
        lanes = self._lanes.values()
        size = self.model.config.geometry.chunk_frames
        if all(lane.closed for lane in lanes):
            return chunks * size < max(lane.ticks for lane in lanes)
        return all(lane.ready((chunks + 1) * size + AFTER) for lane in lanes)

    def _submit(self, complete: float) -> None:
        """Take the next chunk's audio and put the chunk into the pipeline."""
        geometry = self.model.config.geometry
        begin = self.ticks_made
        end = begin + geometry.chunk_frames
        if all(lane.closed for lane in self._lanes.values()):
            end = min(end, max(lane.ticks for lane in self._lanes.values()))
        self._chunk += 1
        window = self._maker.heard_ticks(self._chunk)
        job = _Job(
            chunk=self._chunk,
            agent=self._lanes["agent"].heard(window.start, window.stop),
            user=self._lanes["user"].heard(window.start, window.stop),
            audio=self._lanes["agent"].own(begin, end),
            frames=end - begin,
            complete=complete,
        )
        for lane in self._lanes.values():
            lane.forget(begin + geometry.chunk_frames, self.model.audio.history + BEFORE + 1)
        self._in_flight.append(self.pipeline.run(lambda: self._transform(job), lambda z: self._decode(z, job)))

    def _transform(self, job: _Job) -> Tensor:
        return self._maker.transform(job.chunk, job.agent, job.user)

    def _decode(self, latents: Tensor, job: _Job) -> Output:
        frames = self._maker.decode(latents)
        self.telemetry.add("chunk", perf_counter() - job.complete)
        return Output(frames[: job.frames], job.audio, job.chunk)
