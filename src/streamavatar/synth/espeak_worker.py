"""One sentence by libespeak-ng in a process of its own: JSON phones on the first line, then 16-bit samples.

Why a process: the library keeps state between sentences, so that a sentence would depend on those before it.
Run as a file with the standard library alone, which starts in a few milliseconds:
`python -I -S espeak_worker.py LIBRARY VOICE WORDS_PER_MINUTE TEXT`.
"""

from __future__ import annotations

import ctypes
import json
import sys

SYNCHRONOUS, PHONEME_EVENTS, IPA = 2, 1, 2
DO_NOT_EXIT = 0x8000
RATE = 1
UTF8 = 1
LIST_END, PHONEME = 0, 7


class Identity(ctypes.Union):
    """What an event is about; phoneme events carry up to eight bytes of UTF-8."""

    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class Event(ctypes.Structure):
    """`espeak_EVENT` of speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int), ("unique_identifier", ctypes.c_uint), ("text_position", ctypes.c_int),
        ("length", ctypes.c_int), ("audio_position", ctypes.c_int), ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p), ("id", Identity),
    )  # fmt: skip


Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event))


def main(library: str, voice: str, words_per_minute: str, text: str) -> int:
    """Writes to standard output; returns 0, or 1 if the voice is not installed."""
    espeak = ctypes.CDLL(library)
    rate = espeak.espeak_Initialize(SYNCHRONOUS, 0, None, PHONEME_EVENTS | IPA | DO_NOT_EXIT)
    if rate <= 0 or espeak.espeak_SetVoiceByName(voice.encode()):
        return 1
    sound: list[bytes] = []
    starts: list[tuple[str, int]] = []

    def collect(samples: ctypes._Pointer[ctypes.c_short], count: int, events: ctypes._Pointer[Event]) -> int:
        if samples and count > 0:
            sound.append(ctypes.string_at(samples, 2 * count))
        index = 0
        while events[index].type != LIST_END:
            if events[index].type == PHONEME:
                name = events[index].id.string.decode("utf-8", "ignore")
                starts.append((name, events[index].sample))
            index += 1
        return 0

    keep = Callback(collect)
    espeak.espeak_SetSynthCallback(keep)
    espeak.espeak_SetParameter(RATE, int(words_per_minute), 0)
    data = text.encode()
    espeak.espeak_Synth.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint,
        ctypes.c_void_p, ctypes.c_void_p,
    )  # fmt: skip
    espeak.espeak_Synth(data, len(data) + 1, 0, 1, 0, UTF8, None, None)
    sys.stdout.buffer.write(json.dumps({"rate": rate, "starts": starts}).encode() + b"\n" + b"".join(sound))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
