"""Speech with phone times from the program `flite`.

Why a subprocess: flite is tiny, offline, deterministic and prints the end time of every phone it speaks.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import wave
from pathlib import Path

import numpy as np

from streamavatar.errors import UserError
from streamavatar.synth.phones import SAMPLE_RATE, Phone, Samples, resample, tile

VOICES = ("kal16", "awb", "rms", "slt")


def flite_program() -> str:
    """The path of flite, looked up at each call so that a fresh installation is seen.

    Raises:
        UserError: it is not installed.
    """
    found = shutil.which("flite")
    if found is None:
        raise UserError("the speech program flite is missing: install the package `flite` (apt-get install flite)")
    return found


def voices() -> tuple[str, ...]:
    """All four, or none where flite is missing."""
    return VOICES if shutil.which("flite") else ()


def speak(text: str, name: str, stretch: float) -> tuple[Samples, tuple[Phone, ...]]:
    """Run flite once; samples at 16 kHz and phones, `stretch` times as long as usual."""
    program = flite_program()
    with tempfile.TemporaryDirectory(prefix="streamavatar-flite-") as folder:
        out = Path(folder) / "speech.wav"
        command = [program, "-voice", name, "--setf", f"duration_stretch={stretch:.4f}", "-psdur"]
        done = subprocess.run([*command, "-t", text, "-o", str(out)], capture_output=True, text=True, check=False)
        if done.returncode or not out.is_file():
            raise UserError(f"flite failed on {text!r}: {done.stderr.strip() or 'no reason given'}")
        with wave.open(str(out)) as file:
            rate = file.getframerate()
            data = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    phones = tile(
        (name, float(end)) for name, colon, end in (item.rpartition(":") for item in done.stdout.split()) if colon
    )
    if not phones:
        raise UserError(f"flite printed no phones for {text!r}: install flite 2.1 or newer")
    return resample(data.astype(np.float32) / 32768.0, rate, SAMPLE_RATE), phones
