"""What a room and a microphone do to a lane: echo, noise, colour, distortion, level.

Synthesised speech is cleaner than any call. The truth stays as it is: nothing here moves speech in time, since the
direct sound stays at lag 0 and the filters are symmetric in time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamavatar.synth.phones import SAMPLE_RATE, Samples

NOISES = ("none", "pink", "hum", "murmur")
_TALKERS = 6  # of a murmur

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Acoustics:
    """One microphone in one room.

    Attributes:
        echo_seconds: until the echo has fallen by 60 dB; 0 is no room.
        echo_db: energy of the echo against the direct sound.
        noise: one of `NOISES`; a murmur is like many people far away.
        snr_db: speech against noise.
        low_hz, high_hz: band of the microphone; 300 to 3400 is a telephone.
        drive: soft clipping, 0 is none, 3 is strong.
        gain_db: level of what comes out.
        seed: of echo and noise.
    """

    echo_seconds: float = 0.0
    echo_db: float = -12.0
    noise: str = "none"
    snr_db: float = 30.0
    low_hz: float = 0.0
    high_hz: float = SAMPLE_RATE / 2
    drive: float = 0.0
    gain_db: float = 0.0
    seed: int = 0

    @staticmethod
    def random(rng: np.random.Generator) -> Acoustics:
        """A fifth are clean, most are an ordinary room, one in six is a telephone."""
        seed = int(rng.integers(2**31))
        gain = float(rng.uniform(-9, 3))
        if rng.random() < 0.2:
            return Acoustics(gain_db=gain, seed=seed)
        telephone = rng.random() < 0.2
        return Acoustics(
            echo_seconds=float(rng.uniform(0.1, 0.7)) if rng.random() < 0.7 else 0.0,
            echo_db=float(rng.uniform(-24, -6)),
            noise=NOISES[int(rng.integers(len(NOISES)))],
            snr_db=float(rng.uniform(12, 40)),
            low_hz=float(rng.uniform(200, 300)) if telephone else float(rng.uniform(20, 120)),
            high_hz=float(rng.uniform(3200, 3800)) if telephone else float(rng.uniform(5000, 8000)),
            drive=float(rng.uniform(0.3, 2.0)) if rng.random() < 0.3 else 0.0,
            gain_db=gain,
            seed=seed,
        )

    def apply(self, samples: Samples) -> Samples:
        """Float32 16 kHz [S] as this microphone hears it, [S] in -1..1; the same samples give the same result."""
        if not len(samples):
            return samples
        rng = np.random.default_rng((self.seed, 0xACC))
        sound = samples.astype(np.float64)
        level = speech_level(sound)
        if self.echo_seconds > 0:
            sound = sound + _echo(sound, self.echo_seconds, self.echo_db, rng)
        if self.noise != "none":
            noise = _noise(self.noise, len(sound), rng)
            sound = sound + noise * (level * 10 ** (-self.snr_db / 20) / np.sqrt(np.mean(noise**2)))
        if self.low_hz > 0 or self.high_hz < SAMPLE_RATE / 2:
            sound = _band(sound, self.low_hz, self.high_hz)
        if self.drive > 0:
            sound = np.tanh(self.drive * sound) / np.tanh(self.drive)
        return np.clip(sound * 10 ** (self.gain_db / 20), -1, 1).astype(np.float32)


def speech_level(samples: Array) -> float:
    """RMS of the louder part: frames of 20 ms within 30 dB of the loudest; never zero."""
    size = SAMPLE_RATE // 50
    frames = samples[: len(samples) // size * size].reshape(-1, size)
    power = (frames**2).mean(axis=1) if len(frames) else np.array([np.mean(samples**2)])
    return float(np.sqrt(power[power >= power.max() * 1e-3].mean())) + 1e-4


def _echo(sound: Array, seconds: float, level_db: float, rng: np.random.Generator) -> Array:
    """Sound that comes back: decaying noise that begins a few milliseconds after the direct sound."""
    from scipy.signal import fftconvolve

    count = round(seconds * SAMPLE_RATE)
    response = rng.standard_normal(count) * 10 ** (-3 * np.arange(count) / count)
    response[: round(rng.uniform(0.002, 0.008) * SAMPLE_RATE)] = 0.0
    response *= 10 ** (level_db / 20) / np.sqrt(np.sum(response**2))
    return np.asarray(fftconvolve(sound, response)[: len(sound)])


def _noise(kind: str, count: int, rng: np.random.Generator) -> Array:
    """Noise of any level."""
    white = rng.standard_normal(count)
    if kind == "hum":
        mains = 50.0 if rng.random() < 0.5 else 60.0
        time = np.arange(count) / SAMPLE_RATE
        tones = [np.sin(2 * np.pi * (mains * k * time + rng.random())) / k for k in (1, 2, 3, 5, 7)]
        return np.sum(tones, axis=0) + 2.0 * _pink(white)
    if kind == "pink":
        return _pink(white)
    talkers = np.zeros(count)
    for _ in range(_TALKERS):
        # Each swells a few times per second, as syllables do.
        points = 2 + round(count / SAMPLE_RATE * rng.uniform(3, 6))
        swell = np.interp(np.linspace(0, points - 1, count), np.arange(points), rng.exponential(1.0, points))
        talkers += rng.standard_normal(count) * swell
    return _band(_pink(talkers), 200, 3000)


def _pink(white: Array) -> Array:
    """Power falls as 1 / f above 30 Hz."""
    return _filtered(white, lambda f: 1 / np.sqrt(np.maximum(f, 30)))


def _band(sound: Array, low: float, high: float) -> Array:
    """Butterworth's fourth-order slopes without their delay."""
    return _filtered(sound, lambda f: 1 / np.sqrt((1 + (low / np.maximum(f, 1e-3)) ** 8) * (1 + (f / high) ** 8)))


def _filtered(sound: Array, gain: Callable[[Array], Array]) -> Array:
    """Multiply every frequency (Hz) by its gain; a quarter of a second of silence keeps the ends apart."""
    from scipy import fft

    size = fft.next_fast_len(len(sound) + SAMPLE_RATE // 4, real=True)
    spectrum = fft.rfft(sound, size) * gain(fft.rfftfreq(size, 1 / SAMPLE_RATE))
    return np.asarray(fft.irfft(spectrum, size)[: len(sound)])
