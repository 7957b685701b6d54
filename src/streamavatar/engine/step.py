"""Chunk by chunk on demand, as a live server needs it: whoever keeps the clock passes the sound of one chunk, gets its
frames, and can take the last chunk back (barge-in).

Nothing is kept of the lanes but their past as it was passed, at their own rates, and resampling starts anew from it for
every chunk. So taking a chunk back is forgetting its part of the past.
"""

from __future__ import annotations

from concurrent.futures import Future

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamavatar.engine.lane import Samples
from streamavatar.engine.maker import Reference, open_maker
from streamavatar.engine.pipeline import Pipeline
from streamavatar.engine.telemetry import Telemetry
from streamavatar.errors import UserError
from streamavatar.media import as_signal, resample
from streamavatar.models.audio import AFTER
from streamavatar.models.avatar import AvatarModel

_RUN_UP = 2
"""Ticks more than are heard, so that the resampler's start-up does not reach them."""


class StepSession:
    """See the module's docstring.

    Args:
        model: shared weights, in evaluation mode.
        pipeline: shared workers.
        reference: uint8 RGB [H, W, 3] of the model's size, or already encoded.
        agent_rate, user_rate: of the sound that will be passed, in Hz; multiples of the frame rate.
        seed: of the noise.
    """

    def __init__(
        self,
        model: AvatarModel,
        pipeline: Pipeline,
        reference: NDArray[np.uint8] | Reference,
        *,
        agent_rate: int = 16000,
        user_rate: int = 16000,
        seed: int = 0,
    ) -> None:
        geometry = model.config.geometry
        for rate in (agent_rate, user_rate):
            if rate % geometry.fps:
                raise UserError(f"audio at {rate} Hz has no whole number of samples per frame; resample it first")
        self.telemetry = Telemetry()
        self._pipeline, self._frames = pipeline, geometry.chunk_frames
        self._ticks = (agent_rate // geometry.fps, user_rate // geometry.fps)
        self._rates, self._feature_rate = (agent_rate, user_rate), model.config.audio.sample_rate
        self._fps = geometry.fps
        self._maker = open_maker(pipeline, model, reference, seed, self.telemetry)
        own = self._maker.heard_ticks(1)
        self._past = -own.start + _RUN_UP
        self._lanes = [np.zeros((self._past + self._frames) * tick, np.float32) for tick in self._ticks]
        """Sound of the ticks before the next chunk, with one chunk to spare for taking one back."""
        self._before = self._maker.decoder_state
        self._can_take_back = False
        self.chunks = 0
        """Chunks made so far, those taken back not counted."""

    def begin(self, agent: ArrayLike, user: ArrayLike) -> Future[NDArray[np.uint8]]:
        """Start the next chunk; its frames are uint8 RGB [F, H, W, 3]. One chunk at a time.

        Args:
            agent: float [(F + 2) * rate / fps]: the chunk's ticks, and two more that are likely to come. Only the
                former become the past; what follows may turn out otherwise.
            user: float [F * rate / fps].

        Raises:
            UserError: a lane has another length or is not finite; nothing has changed then.
        """
        given = [as_signal(samples) for samples in (agent, user)]
        for name, samples, ticks, tick in zip(
            ("agent", "user"), given, (self._frames + AFTER, self._frames), self._ticks, strict=True
        ):
            if len(samples) != ticks * tick:
                raise UserError(f"the {name} lane of a chunk has {ticks * tick} samples, not {len(samples)}")
        given[1] = np.concatenate((given[1], np.zeros(AFTER * self._ticks[1], np.float32)))
        heard = [self._heard(lane, samples) for lane, samples in enumerate(given)]
        for lane, samples in enumerate(given):
            new = samples[: self._frames * self._ticks[lane]]
            self._lanes[lane] = np.concatenate((self._lanes[lane][len(new) :], new))
        self.chunks += 1
        self._before, self._can_take_back = self._maker.decoder_state, True
        chunk, maker = self.chunks, self._maker
        return self._pipeline.run(
            lambda: maker.transform(chunk, heard[0], heard[1], user_ahead=False), lambda latents: maker.decode(latents)
        )

    def step(self, agent: ArrayLike, user: ArrayLike) -> NDArray[np.uint8]:
        """`begin`, and wait for the frames."""
        return self.begin(agent, user).result()

    def rollback(self) -> None:
        """Take the last chunk back: the session goes on as if it had never been made. Not while it is being made.

        Raises:
            ValueError: no chunk was made since the start or the last rollback.
        """
        if not self._can_take_back:
            raise ValueError("there is no chunk to take back")
        for lane, tick in enumerate(self._ticks):
            size = self._frames * tick
            self._lanes[lane] = np.concatenate((np.zeros(size, np.float32), self._lanes[lane][:-size]))
        self._maker.decoder_state, self._can_take_back = self._before, False
        self.chunks -= 1

    def _heard(self, lane: int, new: Samples) -> Samples:
        """The sound of `heard_ticks` at the feature rate: the past and the new samples, resampled together."""
        tick = self._ticks[lane]
        whole = np.concatenate((self._lanes[lane][-self._past * tick :], new))
        return resample(whole, self._rates[lane], self._feature_rate)[_RUN_UP * self._feature_rate // self._fps :]
