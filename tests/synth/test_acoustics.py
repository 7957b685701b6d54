"""Rooms and microphones change the sound and leave it in time."""

from __future__ import annotations

import numpy as np
import pytest

from streamavatar.synth.acoustics import NOISES, Acoustics, speech_level
from streamavatar.synth.phones import SAMPLE_RATE


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """Two seconds of noise bursts, like syllables, then one of silence."""
    rng = np.random.default_rng(0)
    swell = np.clip(np.sin(2 * np.pi * 4 * np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE), 0, 1)
    burst = 0.2 * swell * rng.standard_normal(len(swell))
    return np.concatenate([burst, np.zeros(SAMPLE_RATE)]).astype(np.float32)


def lag(before: np.ndarray, after: np.ndarray, reach: int = 800) -> int:
    """Samples by which `after` is late."""
    size = 2 * len(before)
    fits = np.fft.irfft(np.fft.rfft(after, size) * np.fft.rfft(before, size).conj(), size)
    return int(np.argmax(np.roll(fits, reach)[: 2 * reach + 1])) - reach


def test_speech_stays_in_time_in_any_room(speech: np.ndarray) -> None:
    for seed in range(8):
        acoustics = Acoustics.random(np.random.default_rng(seed))
        heard = acoustics.apply(speech)
        assert heard.shape == speech.shape
        assert heard.dtype == np.float32
        assert np.abs(heard).max() <= 1
        assert lag(speech, heard) == 0
        np.testing.assert_array_equal(heard, acoustics.apply(speech))


def test_rooms_differ() -> None:
    rng = np.random.default_rng(1)
    rooms = [Acoustics.random(rng) for _ in range(300)]
    assert {room.noise for room in rooms} == set(NOISES)
    assert 0.1 < np.mean([room == Acoustics(gain_db=room.gain_db, seed=room.seed) for room in rooms]) < 0.3
    assert 0.08 < np.mean([room.high_hz < 4000 for room in rooms]) < 0.25


@pytest.mark.parametrize("noise", NOISES[1:])
def test_noise_has_the_level_that_was_asked(speech: np.ndarray, noise: str) -> None:
    added = Acoustics(noise=noise, snr_db=20, seed=2).apply(speech).astype(np.float64) - speech
    ratio = 20 * np.log10(speech_level(speech.astype(np.float64)) / np.sqrt(np.mean(added**2)))
    assert ratio == pytest.approx(20, abs=0.1)


def test_an_echo_fades(speech: np.ndarray) -> None:
    heard = Acoustics(echo_seconds=0.5, echo_db=-6, seed=3).apply(speech)
    tail = heard[2 * SAMPLE_RATE :].reshape(10, -1).std(axis=1)
    assert tail[0] > 100 * tail[6]
    assert (np.diff(tail[:5]) < 0).all()


def test_a_telephone_takes_away_highs_and_lows(speech: np.ndarray) -> None:
    heard = np.abs(np.fft.rfft(Acoustics(low_hz=300, high_hz=3400).apply(speech)))
    before = np.abs(np.fft.rfft(speech))
    hertz = np.fft.rfftfreq(len(speech), 1 / SAMPLE_RATE)
    kept = [
        heard[band].mean() / before[band].mean() for band in (hertz < 150, (hertz > 600) & (hertz < 2500), hertz > 5500)
    ]
    assert kept[0] < 0.15
    assert kept[1] == pytest.approx(1, abs=0.02)
    assert kept[2] < 0.15


def test_drive_flattens_peaks(speech: np.ndarray) -> None:
    def crest(x: np.ndarray) -> float:
        return float(np.abs(x).max() / x.std())

    assert crest(Acoustics(drive=3.0).apply(speech)) < 0.8 * crest(speech)


def test_nothing_stays_nothing() -> None:
    room = Acoustics(echo_seconds=0.3, noise="murmur", seed=1)
    assert len(room.apply(np.zeros(0, np.float32))) == 0
    assert np.abs(room.apply(np.zeros(4000, np.float32))).max() < 1e-3
    np.testing.assert_array_equal(Acoustics().apply(np.full(10, 0.5, np.float32)), np.full(10, 0.5, np.float32))
