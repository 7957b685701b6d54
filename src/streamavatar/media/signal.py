"""Sound in memory: checked, and its rate changed whole or while it streams. No files, so no FFmpeg.

The streaming resampler exists so that a live session and an offline render hear the same samples: whatever
pieces the network delivers, soxr is fed one video tick at a time, so the output does not depend on them.
"""

from __future__ import annotations

import numpy as np
import soxr
from numpy.typing import ArrayLike, NDArray

from streamavatar.errors import UserError

MIN_RATE = 8_000
MAX_RATE = 192_000


def check_rate(rate: int, what: str) -> None:
    """Refuse a rate outside of 8 to 192 kHz; `what` begins the message."""
    if not MIN_RATE <= rate <= MAX_RATE:
        raise UserError(f"{what} is {rate} Hz: audio must be at {MIN_RATE} to {MAX_RATE} Hz, resample it first")


def as_signal(samples: ArrayLike) -> NDArray[np.float32]:
    """Check that samples are one finite mono signal in floating point, and return them as float32."""
    signal = np.asarray(samples)
    if signal.ndim != 1:
        raise UserError(f"audio must be mono samples [S], got shape {list(signal.shape)}: average its channels")
    if signal.size and not np.issubdtype(signal.dtype, np.floating):
        raise UserError(f"audio must be float with full scale 1.0, got {signal.dtype}: divide by its full scale")
    if not np.isfinite(signal).all():
        raise UserError("audio has NaN or infinite samples: clean it first")
    return signal.astype(np.float32, copy=False)


def resample(samples: ArrayLike, src: int, dst: int) -> NDArray[np.float32]:
    """Change the rate of a whole signal (soxr, HQ).

    Args:
        samples: floating point `[S]`, mono.
        src, dst: rates in Hz, 8 to 192 kHz.

    Returns:
        float32 `[~ S * dst / src]`; the input itself where the rates are equal and it is float32.

    Raises:
        UserError: for a rate out of range, or samples that are not one finite mono float signal.
    """
    check_rate(src, "the source audio rate")
    check_rate(dst, "the wanted audio rate")
    signal = as_signal(samples)
    if src == dst or signal.size == 0:
        return signal
    return np.asarray(soxr.resample(signal, src, dst), dtype=np.float32)


class StreamResampler:
    """Change the rate of a live signal, one video tick at a time.

    soxr is fed exactly `src / fps` samples at a time whatever the caller pushes, so the output is bitwise
    the same for every way of cutting the input. The output is aligned with the input in time but comes
    later, by the rest of a tick and soxr's own look-ahead; :meth:`flush` brings what is owed.

    Args:
        src, dst: rates in Hz, 8 to 192 kHz; `src` a multiple of `fps`.
        fps: ticks per second.

    Raises:
        UserError: if a rate is out of range or `src` is not a whole number of samples per tick.
    """

    def __init__(self, src: int, dst: int, fps: int = 25) -> None:
        check_rate(src, "the source audio rate")
        check_rate(dst, "the wanted audio rate")
        if fps < 1 or src % fps:
            raise UserError(
                f"audio at {src} Hz has no whole number of samples per tick at {fps} fps: resample it first"
            )
        self.src = src
        self.dst = dst
        self.tick = src // fps
        self._stream = None if src == dst else soxr.ResampleStream(src, dst, 1, dtype="float32", quality="HQ")
        self._rest = np.empty(0, np.float32)

    def push(self, samples: ArrayLike) -> NDArray[np.float32]:
        """Take any number of samples, float `[S]`, and return those that are ready, float32 `[T]`.

        Raises:
            UserError: if the samples are not one finite mono float signal; the stream is then as before.
        """
        signal = as_signal(samples)
        if self._stream is None:
            return signal.copy()
        pending = np.concatenate((self._rest, signal))
        whole = len(pending) - len(pending) % self.tick
        self._rest = pending[whole:].copy()
        if not whole:
            return np.empty(0, np.float32)
        ticks = pending[:whole].reshape(-1, self.tick)
        return np.concatenate([self._stream.resample_chunk(tick) for tick in ticks])

    def flush(self) -> NDArray[np.float32]:
        """End the signal: return what is owed, float32 `[T]`, and be ready for a new signal."""
        if self._stream is None:
            return np.empty(0, np.float32)
        tail = self._stream.resample_chunk(self._rest, last=True)
        self._rest = np.empty(0, np.float32)
        self._stream.clear()
        return np.asarray(tail, dtype=np.float32)
