"""Text to speech for the agent's lane: espeak-ng (extra `tts`, with its data) or flite where that is installed.

Both are small, offline and plain; a voice agent brings its own synthesiser and sends audio instead. Each sentence runs
in a process of its own, so that a stuck or crashing synthesiser harms nobody.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import wave
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from streamavatar.errors import UserError

SECONDS = 30.0
MISSING = "text to speech needs a synthesiser: pip install 'streamavatar[tts]', or install the program flite"

# One sentence from standard input to 16-bit samples, after a line with their rate; needs the standard library and the
# wheel that carries libespeak-ng and its data.
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


def synthesizers() -> tuple[str, ...]:
    """Those that are installed, the better one first."""
    found = {"flite": shutil.which("flite") is not None, "espeak": find_spec("espeakng_loader") is not None}
    return tuple(name for name, there in found.items() if there)


def synthesize(text: str, voice: str = "auto") -> tuple[NDArray[np.int16], int]:
    """Speak; int16 mono samples [S] and their rate. Takes a while: not for the event loop.

    Args:
        voice: "espeak", "flite", or "auto".

    Raises:
        UserError: no synthesiser (or not that one) is installed, or it says nothing.
    """
    there = synthesizers()
    name = next(iter(there), "") if voice == "auto" else voice
    if name not in there:
        raise UserError(MISSING)
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    try:
        samples, rate = (_flite if name == "flite" else _espeak)(plain)
    except subprocess.TimeoutExpired as error:
        raise UserError("the synthesiser takes too long: send a shorter text") from error
    if not len(samples):
        raise UserError("there is nothing to say in this text")
    return samples, rate


def _espeak(text: str) -> tuple[NDArray[np.int16], int]:
    done = subprocess.run(
        [sys.executable, "-c", _ESPEAK], input=text.encode(), capture_output=True, timeout=SECONDS, check=False
    )
    rate, _, sound = done.stdout.partition(b"\n")
    if done.returncode:
        raise UserError(f"espeak-ng failed: {done.stderr.decode(errors='replace').strip()[-200:] or 'no reason given'}")
    return np.frombuffer(sound, "<i2"), int(rate)


def _flite(text: str) -> tuple[NDArray[np.int16], int]:
    command = ["flite", "-voice", "slt", "-t", text, "-o", "/dev/stdout"]
    done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)
    if done.returncode or not done.stdout:
        return np.zeros(0, np.int16), 16000
    with wave.open(io.BytesIO(done.stdout)) as file:
        # Written to a pipe, the header's length is not to be trusted.
        return np.frombuffer(done.stdout[44 : 44 + 2 * ((len(done.stdout) - 44) // 2)], "<i2"), file.getframerate()
