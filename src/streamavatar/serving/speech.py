"""Text to speech: SVOX Pico or espeak-ng (extra `tts`, wheels with their data), or the program flite.

All are small, offline and plain; a voice agent brings its own synthesiser and sends audio instead. Each text runs in a
process of its own, so that a stuck or crashing synthesiser harms nobody.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from streamavatar.errors import UserError

VoiceName = Literal["auto", "pico", "flite", "espeak"]
SECONDS = 30.0
MISSING = "text to speech needs a synthesiser: pip install 'streamavatar[tts]', or install the program flite"

# Both read a text from standard input and write a line with the rate, then 16-bit samples.
_PICO = """
import sys
from py_nanotts import NanoTTS
sys.stdout.buffer.write(b"16000\\n" + NanoTTS().speak(sys.stdin.buffer.read().decode(), voice="en-US"))
"""
_ESPEAK = """
import ctypes, sys
import espeakng_loader
library = ctypes.CDLL(espeakng_loader.get_library_path())
rate = library.espeak_Initialize(2, 0, espeakng_loader.get_data_path().encode(), 0x8000)
if rate <= 0 or library.espeak_SetVoiceByName(b"en-us"):
    sys.exit("libespeak-ng cannot be started")
sound = []
kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
def collect(samples, count, events):
    if samples and count > 0:
        sound.append(ctypes.string_at(samples, 2 * count))
    return 0
keep = kind(collect)
library.espeak_SetSynthCallback(keep)
text = sys.stdin.buffer.read() + bytes(1)
library.espeak_Synth.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint,
                                 ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p]
library.espeak_Synth(text, len(text), 0, 1, 0, 1, None, None)
sys.stdout.buffer.write(b"%d\\n" % rate + b"".join(sound))
"""
_WAV_HEADER = 44  # bytes; flite writes the plain one


def synthesizers() -> tuple[str, ...]:
    """Those that are installed, the better one first."""
    found = {
        "pico": find_spec("py_nanotts") is not None,
        "flite": shutil.which("flite") is not None,
        "espeak": find_spec("espeakng_loader") is not None,
    }
    return tuple(name for name, there in found.items() if there)


def synthesize(text: str, voice: str = "auto") -> tuple[NDArray[np.int16], int]:
    """Speak English; int16 mono samples [S] and their rate. Takes a while: not for the event loop.

    Args:
        voice: a `VoiceName`.

    Raises:
        UserError: no synthesiser (or not that one) is installed, it fails, or there is nothing to say.
    """
    there = synthesizers()
    name = next(iter(there), "") if voice == "auto" else voice
    if name not in there:
        raise UserError(MISSING if not there else f"the voice {name!r} is not installed: there are {', '.join(there)}")
    # Pico reads angle brackets as markup.
    plain = " ".join("".join(c if c.isprintable() and c not in "<>" else " " for c in text).split())
    if not any(c.isalnum() for c in plain):
        raise UserError("there is nothing to say in this text")
    samples, rate = _run_flite(plain) if name == "flite" else _run(_PICO if name == "pico" else _ESPEAK, plain)
    if not len(samples):
        raise UserError(f"{name} finds nothing to say in this text")
    return samples, rate


def _run(program: str, text: str) -> tuple[NDArray[np.int16], int]:
    rate, _, sound = _output([sys.executable, "-c", program], text).partition(b"\n")
    return np.frombuffer(sound, "<i2"), int(rate)


def _run_flite(text: str) -> tuple[NDArray[np.int16], int]:
    # The header's length is not to be trusted on a pipe; its rate is.
    wav = _output(["flite", "-voice", "slt", "-o", "/dev/stdout", "-t", text], "")
    size = (len(wav) - _WAV_HEADER) // 2
    return np.frombuffer(wav, "<i2", max(size, 0), _WAV_HEADER), int.from_bytes(wav[24:28], "little")


def _output(command: list[str], text: str) -> bytes:
    """What a program writes."""
    try:
        done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise UserError("the synthesiser takes too long: send a shorter text") from error
    if done.returncode or not done.stdout:
        reason = done.stderr.decode(errors="replace").strip().splitlines()
        raise UserError(f"the synthesiser failed: {reason[-1][-200:] if reason else 'no reason given'}")
    return done.stdout
