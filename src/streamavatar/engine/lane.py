"""One audio lane of a session: its own samples for the output, a 16 kHz copy for the features, one clock for both.

Time is counted in ticks, one per video frame. Tick t is heard while frame t + 1 is shown: frame 0 is the reference,
which is never output, and has silence.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamavatar.errors import UserError
from streamavatar.media import StreamResampler, as_signal

Samples = NDArray[np.float32]


class _Track:
    """Samples with an absolute index, of which the oldest can be forgotten."""

    def __init__(self) -> None:
        self.start = 0
        self.samples: Samples = np.empty(0, np.float32)

    @property
    def end(self) -> int:
        return self.start + len(self.samples)

    def append(self, more: Samples) -> None:
        self.samples = np.concatenate((self.samples, more))

    def read(self, start: int, stop: int) -> Samples:
        """Samples start .. stop, silence where there are none."""
        out = np.zeros(stop - start, np.float32)
        low, high = max(start, self.start), min(stop, self.end)
        if low < high:
            out[low - start : high - start] = self.samples[low - self.start : high - self.start]
        return out

    def forget(self, before: int) -> None:
        drop = min(max(0, before - self.start), len(self.samples))
        if 2 * drop >= len(self.samples):  # copying less often than every time keeps long backlogs cheap
            self.samples = self.samples[drop:].copy()
            self.start += drop


class Lane:
    """See the module's docstring.

    Args:
        rate: of the samples that are pushed, in Hz; a multiple of `fps`.
        feature_rate: of the copy that the audio encoder hears.
        fps: ticks per second.
        backlog: most seconds that may wait to be used.

    Raises:
        UserError: if `rate` is not a whole number of samples per tick.
    """

    def __init__(self, rate: int, feature_rate: int, fps: int, backlog: float = 3600.0) -> None:
        self._resampler = StreamResampler(rate, feature_rate, fps)
        self.tick_samples, self._feature_tick = rate // fps, feature_rate // fps
        self._own, self._heard = _Track(), _Track()
        self._most = int(backlog * rate)
        self.closed = False

    def check(self, samples: ArrayLike) -> Samples:
        """The samples, if they can be pushed.

        Raises:
            UserError: if the lane is closed or too far ahead, or the samples are not finite mono floats.
        """
        if self.closed:
            raise UserError("this lane is closed; open a new session to go on")
        signal = as_signal(samples)
        if len(self._own.samples) + signal.size > self._most:
            raise UserError(
                "this lane is too far ahead of the video; read the frames that are ready before pushing more"
            )
        return signal

    def push(self, signal: Samples) -> None:
        """Append samples that :meth:`check` has returned, float32 [S]."""
        self._own.append(signal)
        self._heard.append(self._resampler.push(signal))

    def close(self) -> None:
        """No more audio will come; silence follows."""
        if not self.closed:
            self._heard.append(self._resampler.flush())
            self.closed = True

    @property
    def ticks(self) -> int:
        """Ticks that the lane's audio lasts, the last one possibly in part."""
        return -(-self._own.end // self.tick_samples)

    def ready(self, ticks: int) -> bool:
        """Whether the first `ticks` ticks are known."""
        return self.closed or self._heard.end >= ticks * self._feature_tick

    def heard(self, start: int, stop: int) -> Samples:
        """Feature-rate samples of ticks start .. stop (may be negative: silence)."""
        return self._heard.read(start * self._feature_tick, stop * self._feature_tick)

    def own(self, start: int, stop: int) -> Samples:
        """The lane's own samples of ticks start .. stop."""
        return self._own.read(start * self.tick_samples, stop * self.tick_samples)

    def forget(self, ticks: int, history: int) -> None:
        """Drop own samples before tick `ticks`, and the heard copy `history` ticks before that."""
        self._own.forget(ticks * self.tick_samples)
        self._heard.forget((ticks - history) * self._feature_tick)
