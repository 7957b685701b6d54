"""Phone times of speech whose words are known, by pocketsphinx (extra `voices`); its wheel brings the model.

Used for synthesisers that do not tell their times, and for recordings that come with a transcript.
"""

from __future__ import annotations

import importlib.util
import re
from functools import lru_cache
from typing import Any

import numpy as np

from streamavatar.errors import UserError
from streamavatar.synth.phones import PAUSE, SAMPLE_RATE, Phone, Samples, tile

_FRAME = 0.01  # seconds per frame of the aligner
_LATE = 0.01  # seconds: a frame is named by its start, but hears 25 ms (measured on flite: 11 ms early)
_PHONES = (
    "AA", "AE", "AH", "AO", "AW", "AY", "B", "CH", "D", "DH", "EH", "ER", "EY", "F", "G", "HH", "IH", "IY", "JH", "K",
    "L", "M", "N", "NG", "OW", "OY", "P", "R", "S", "SH", "T", "TH", "UH", "UW", "V", "W", "Y", "Z", "ZH",
)  # fmt: skip


class AlignError(UserError):
    """This sentence cannot be aligned; another may."""


def can_align() -> bool:
    """Whether pocketsphinx is installed."""
    return importlib.util.find_spec("pocketsphinx") is not None


@lru_cache(maxsize=1)
def _decoder() -> Any:
    if not can_align():
        raise UserError("pocketsphinx is missing: install the extra `voices` (pip install streamavatar[voices])")
    import pocketsphinx

    # Beams far wider than for recognition: the words are given. Batch normalisation: no memory of the last sentence.
    wide = {"beam": 1e-80, "wbeam": 1e-60, "pbeam": 1e-80}
    decoder = pocketsphinx.Decoder(lm=None, samprate=SAMPLE_RATE, loglevel="FATAL", cmn="batch", **wide)
    for phone in _PHONES:
        decoder.add_word(f"@{phone}", phone, phone == _PHONES[-1])
    return decoder


def words(text: str) -> list[str]:
    """Lower-case words of plain English."""
    return re.findall(r"[a-z]+(?:'[a-z]+)*", text.lower())


def align(samples: Samples, text: str) -> tuple[Phone, ...]:
    """Phones that tile the samples (16 kHz, -1..1), in the order that the words of `text` demand.

    Raises:
        AlignError: a word is not in the dictionary, or the sound does not fit the text.
        UserError: pocketsphinx is missing.
    """
    decoder = _decoder()
    wanted = words(text)
    unknown = sorted({word for word in wanted if decoder.lookup_word(word) is None})
    if unknown or not wanted:
        raise AlignError(f"cannot align {text!r}: no known pronunciation of {', '.join(unknown) or 'an empty text'}")
    if not len(samples):
        raise AlignError(f"there is no sound for the text {text!r}")
    data = (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
    # First the words, which may be spoken in several ways and with pauses between; then the phones of what was chosen.
    # (The library's own second pass gives up on every fifth sentence.)
    spoken = [word for word, _ in _segments(decoder, wanted, data) if not word.startswith("<")]
    sequence = [f"@{phone}" for word in spoken for phone in decoder.lookup_word(word).split()]
    found = _segments(decoder, sequence, data) if sequence else []
    if not any(word.startswith("@") for word, _ in found):
        raise AlignError(f"the sound does not fit the text {text!r}")
    seconds = len(samples) / SAMPLE_RATE
    timed = [
        (word[1:].lower() if word.startswith("@") else PAUSE, min(seconds, end * _FRAME + _LATE)) for word, end in found
    ]
    return tile([*timed, (PAUSE, seconds)])


def _segments(decoder: Any, sequence: list[str], data: bytes) -> list[tuple[str, int]]:
    """Dictionary entries with the frame after their last; silences are named in angle brackets."""
    decoder.set_align_text(" ".join(sequence))
    decoder.start_utt()
    decoder.process_raw(data, full_utt=True)
    decoder.end_utt()
    return [(segment.word, segment.end_frame + 1) for segment in decoder.seg() or ()]
