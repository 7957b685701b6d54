# ruff: noqa: RUF001 - IPA letters that look like Latin ones
"""Speech with phone times from espeak-ng: many accents and speakers, each a formant synthesiser.

The library reports every phone in IPA with the sample at which it begins. They are mapped to flite's US
English set, since mouth shapes and stresses are defined on that.
"""

from __future__ import annotations

import ctypes.util
import json
import subprocess
import sys
import unicodedata
from functools import lru_cache
from pathlib import Path

import numpy as np

from streamavatar.errors import UserError
from streamavatar.synth.phones import PAUSE, SAMPLE_RATE, Phone, Samples, resample, tile

# Accent -> the library's own name for it.
ACCENTS = {
    "en-us": "en-us",
    "en-gb": "gmw/en",
    "en-029": "en-029",
    "en-gb-scotland": "en-gb-scotland",
    "en-gb-x-rp": "en-gb-x-rp",
    "en-gb-x-gbclan": "en-gb-x-gbclan",
    "en-gb-x-gbcwmd": "en-gb-x-gbcwmd",
}
# Those of the library's variants that sound like people rather than robots or whispers.
SPEAKERS = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5",
            "Annie", "Andrea", "linda", "steph", "Denis", "Michael", "Hugo")  # fmt: skip
VOICES = tuple(f"{accent}+{speaker}" for accent in ACCENTS for speaker in SPEAKERS)
_WORDS_PER_MINUTE = 165.0
_TIMEOUT = 60.0  # seconds

# IPA to flite's phones; longer keys win. Several phones share the time of one.
IPA: dict[str, tuple[str, ...]] = {
    "tʃ": ("ch",), "dʒ": ("jh",), "aɪə": ("ay", "ax"), "aʊə": ("aw", "ax"), "aɪ": ("ay",), "aʊ": ("aw",),
    "eɪ": ("ey",), "ɔɪ": ("oy",), "oʊ": ("ow",), "əʊ": ("ow",), "əl": ("ax", "l"), "iə": ("iy", "ax"),
    "ɪə": ("ih", "ax"), "eə": ("eh", "ax"), "ʊə": ("uh", "ax"), "ɑː": ("aa",), "ɔː": ("ao",), "iː": ("iy",),
    "uː": ("uw",), "ɜː": ("er",), "eː": ("ey",), "oː": ("ow",), "ɛː": ("eh",), "aː": ("aa",), "əː": ("er",),
    "p": ("p",), "b": ("b",), "m": ("m",), "f": ("f",), "v": ("v",), "θ": ("th",), "ð": ("dh",), "t": ("t",),
    "d": ("d",), "ɾ": ("dx",), "ʔ": ("t",), "k": ("k",), "g": ("g",), "ɡ": ("g",), "ŋ": ("ng",), "h": ("hh",),
    "x": ("hh",), "ʃ": ("sh",), "ʒ": ("zh",), "s": ("s",), "z": ("z",), "n": ("n",), "l": ("l",), "ɫ": ("l",),
    "ɬ": ("l",), "r": ("r",), "ɹ": ("r",), "ɻ": ("r",), "w": ("w",), "ʍ": ("w",), "j": ("y",), "ɚ": ("axr",),
    "ɝ": ("er",), "ɜ": ("er",), "ə": ("ax",), "ɐ": ("ax",), "ᵻ": ("ih",), "ɨ": ("ih",), "ʌ": ("ah",), "æ": ("ae",),
    "a": ("aa",), "ɑ": ("aa",), "ɒ": ("aa",), "ɔ": ("ao",), "o": ("ow",), "ɛ": ("eh",), "e": ("eh",), "ɪ": ("ih",),
    "i": ("iy",), "ʊ": ("uh",), "u": ("uw",), "ʉ": ("uw",), "ɵ": ("uh",), "ø": ("er",), "y": ("iy",),
}  # fmt: skip
_LONGEST = max(len(key) for key in IPA)


@lru_cache(maxsize=1)
def library() -> str | None:
    """The file name of libespeak-ng, or None where it is not installed."""
    return ctypes.util.find_library("espeak-ng")


def voices() -> tuple[str, ...]:
    """Accent and speaker, such as `en-gb+f3`; none where the library is missing."""
    return VOICES if library() else ()


def flite_phones(ipa: str) -> tuple[str, ...]:
    """What espeak calls one phone in flite's phones; marks of length and stress are skipped, an empty name is a pause.

    A letter that no entry knows counts as the neutral vowel, which opens the mouth a little.
    """
    if not ipa.strip("ˈˌ ː"):
        return (PAUSE,)
    found: list[str] = []
    at = 0
    while at < len(ipa):
        for size in range(_LONGEST, 0, -1):
            if ipa[at : at + size] in IPA:
                found.extend(IPA[ipa[at : at + size]])
                at += size
                break
        else:
            if unicodedata.category(ipa[at]) == "Ll":  # a letter, not a mark on one
                found.append("ax")
            at += 1
    return tuple(found) or (PAUSE,)


def speak(text: str, name: str, stretch: float) -> tuple[Samples, tuple[Phone, ...]]:
    """Samples at 16 kHz and phones, `stretch` times as long as usual.

    Raises:
        UserError: the library is missing or fails.
    """
    found = library()
    if found is None:
        raise UserError(
            "the speech library espeak-ng is missing: install the package `espeak-ng` (apt-get install espeak-ng)"
        )
    accent, plus, speaker = name.partition("+")
    worker = Path(__file__).with_name("espeak_worker.py")
    speed = str(round(np.clip(_WORDS_PER_MINUTE / stretch, 80, 450)))
    command = [sys.executable, "-I", "-S", str(worker), found, ACCENTS[accent] + plus + speaker, speed, text]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=_TIMEOUT)
    except subprocess.TimeoutExpired:
        raise UserError(f"espeak-ng took over {_TIMEOUT:.0f} s on {text!r}") from None
    if done.returncode:
        raise UserError(f"espeak-ng failed on {text!r} with voice {name}: is the package espeak-ng-data complete?")
    head, _, sound = done.stdout.partition(b"\n")
    told = json.loads(head)
    samples = np.frombuffer(sound, dtype="<i2").astype(np.float32) / 32768.0
    seconds = len(samples) / told["rate"]
    phones = _timed(told["starts"], told["rate"], seconds)
    if not phones:
        raise UserError(f"espeak-ng spoke no phones for {text!r}")
    return resample(samples, told["rate"], SAMPLE_RATE), phones


def _timed(starts: list[tuple[str, int]], rate: int, seconds: float) -> tuple[Phone, ...]:
    """Starts in samples to phones that tile the sound."""
    timed: list[tuple[str, float]] = []
    for index, (ipa, start) in enumerate(starts):
        end = starts[index + 1][1] if index + 1 < len(starts) else round(seconds * rate)
        names = flite_phones(ipa)
        timed.extend((name, (start + (end - start) * (k + 1) / len(names)) / rate) for k, name in enumerate(names))
    return tile(timed)
