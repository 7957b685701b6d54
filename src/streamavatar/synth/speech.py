"""One spoken sentence with its phones: the only source of truth for lips.

Pitch is shifted by resampling (which moves the formants too and so gives a new speaker), and the length
is kept by asking the synthesiser for slower or faster speech first.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from streamavatar.synth.flite import VOICES, flite_program
from streamavatar.synth.phones import PAUSE, SAMPLE_RATE, Phone, Samples, resample
from streamavatar.synth.voices import speak, split

__all__ = ["PAUSE", "SAMPLE_RATE", "VOICES", "Phone", "Samples", "Utterance", "flite_program", "synthesize"]

_EDGE = 0.06  # seconds of silence kept at both ends: turn taking sets its own pauses


@dataclass(frozen=True)
class Utterance:
    """One spoken sentence: float32 mono 16 kHz samples in -1..1 and its phones, in seconds from sample 0."""

    text: str
    voice: str
    samples: Samples
    phones: tuple[Phone, ...]

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


def synthesize(
    text: str, voice: str, *, pitch: float = 1.0, rate: float = 1.0, cache_dir: Path | None = None
) -> Utterance:
    """Speak `text`: same arguments, same samples.

    Args:
        text: one sentence of plain English.
        voice: one of flite's `VOICES`, or `engine:name`, see `voices`.
        pitch: factor on pitch and formants, 0.7..1.4 sounds human.
        rate: factor on speed.
        cache_dir: where to keep finished sentences (NPZ); nothing is written without it.

    Raises:
        UserError: the synthesiser is missing or fails, or the voice is unknown.
    """
    split(voice)  # an unknown voice is an error even where the sentence is cached
    path = None
    if cache_dir is not None:
        key = hashlib.sha256(f"1|{text}|{voice}|{pitch:.4f}|{rate:.4f}".encode()).hexdigest()[:24]
        path = Path(cache_dir) / f"{key}.npz"
        if path.is_file():
            return _load(path, text, voice)
    samples, phones = speak(text, voice, stretch=pitch / rate)
    samples, phones = _shift_pitch(samples, phones, pitch)
    samples, phones = _trim(samples, phones)
    peak = float(np.abs(samples).max(initial=1e-6))
    utterance = Utterance(text, voice, (samples * (0.7 / peak)).astype(np.float32), phones)
    if path is not None:
        _store(path, utterance)
    return utterance


def _shift_pitch(samples: Samples, phones: tuple[Phone, ...], pitch: float) -> tuple[Samples, tuple[Phone, ...]]:
    """Play faster by `pitch`: times shrink by the same factor."""
    if pitch == 1.0:
        return samples, phones
    moved = tuple(Phone(p.name, p.start / pitch, p.end / pitch) for p in phones)
    return resample(samples, SAMPLE_RATE * pitch, SAMPLE_RATE), moved


def _trim(samples: Samples, phones: tuple[Phone, ...]) -> tuple[Samples, tuple[Phone, ...]]:
    """Shorten the pauses at both ends to `_EDGE` and let the phones tile the samples exactly."""
    spoken = [p for p in phones if p.name != PAUSE]
    if not spoken:
        return samples, phones
    first = max(0, round((spoken[0].start - _EDGE) * SAMPLE_RATE))
    last = min(len(samples), round((spoken[-1].end + _EDGE) * SAMPLE_RATE))
    length = (last - first) / SAMPLE_RATE
    shift = first / SAMPLE_RATE
    kept = []
    for phone in phones:
        start, end = max(0.0, phone.start - shift), min(length, phone.end - shift)
        if end > start:
            kept.append(Phone(phone.name, start, end))
    return samples[first:last], tuple(kept)


def _store(path: Path, utterance: Utterance) -> None:
    """Write beside, then rename: two workers may speak the same sentence at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        np.savez(
            file,
            samples=utterance.samples,
            names=np.array([p.name for p in utterance.phones]),
            times=np.array([(p.start, p.end) for p in utterance.phones]),
        )
    Path(file.name).replace(path)


def _load(path: Path, text: str, voice: str) -> Utterance:
    with np.load(path) as data:
        phones = tuple(
            Phone(str(n), float(a), float(b)) for n, (a, b) in zip(data["names"], data["times"], strict=True)
        )
        return Utterance(text, voice, data["samples"], phones)
