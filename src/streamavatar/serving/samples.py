"""The lines of the bundled conversation, each by itself and without the silence around it, to try the avatar with."""

from __future__ import annotations

import io
import json
import wave
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from streamavatar import bundled
from streamavatar.media import read_audio

MARGIN_SECONDS = 0.1
"""Kept before and after a line, so that nothing is clipped."""


@dataclass(frozen=True)
class Sample:
    """One line; `lane` is whose it is, `wav` the recording."""

    id: str
    title: str
    lane: str
    seconds: float
    wav: bytes


@lru_cache(maxsize=1)
def samples() -> dict[str, Sample]:
    """By id, in the order of the conversation. Decodes both recordings the first time: not for the event loop."""
    found: list[tuple[float, Sample]] = []
    for lane, file in zip(("agent", "user"), bundled.conversation(), strict=True):
        audio = read_audio(file)
        lines = json.loads((file.parent / "dialogue.json").read_text(encoding="utf-8"))[lane]["lines"]
        for number, line in enumerate(lines, 1):
            begin, end = (
                round(audio.rate * at) for at in (max(0, line["start"] - MARGIN_SECONDS), line["end"] + MARGIN_SECONDS)
            )
            piece = audio.samples[begin:end]
            sample = Sample(f"{lane}-{number}", line["text"], lane, len(piece) / audio.rate, _wav(piece, audio.rate))
            found.append((line["start"], sample))
    return {sample.id: sample for _, sample in sorted(found, key=lambda entry: entry[0])}


def _wav(signal: np.ndarray, rate: int) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(np.clip(np.rint(signal * 32768), -32768, 32767).astype("<i2").tobytes())
    return out.getvalue()
