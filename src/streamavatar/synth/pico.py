"""Speech from SVOX Pico (PyPI `py-nanotts`, extra `voices`): one American and one British speaker.

Pico does not tell when its phones sound, so they are aligned; a word that the aligner does not know is an error.
Its German, French, Italian and Spanish speakers read English as if it were their own language, which no English
aligner follows, so they are not offered.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from streamavatar.errors import UserError
from streamavatar.synth.align import align, can_align
from streamavatar.synth.phones import SAMPLE_RATE, Phone, Samples

VOICES = ("en-US", "en-GB")
_TIMEOUT = 60.0  # seconds


def voices() -> tuple[str, ...]:
    """Both, or none without the extra."""
    return VOICES if importlib.util.find_spec("py_nanotts") is not None and can_align() else ()


def speak(text: str, name: str, stretch: float) -> tuple[Samples, tuple[Phone, ...]]:
    """Samples at 16 kHz and phones, `stretch` times as long as usual.

    Raises:
        UserError: the extra is missing or the words cannot be aligned.
    """
    if not voices():
        raise UserError("SVOX Pico is missing: install the extra `voices` (pip install streamavatar[voices])")
    # A process for each sentence: the library's voice depends on what it said before.
    with tempfile.TemporaryDirectory(prefix="streamavatar-pico-") as folder:
        out = Path(folder) / "speech.wav"
        speed = f"{np.clip(1.0 / stretch, 0.2, 5.0):.4f}"
        command = [sys.executable, "-m", "py_nanotts", "-o", str(out), "-v", name, "--speed", speed, "--", text]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise UserError(f"SVOX Pico took over {_TIMEOUT:.0f} s on {text!r}") from None
        if done.returncode or not out.is_file():
            raise UserError(f"SVOX Pico failed on {text!r}: {done.stderr.strip() or 'no reason given'}")
        from streamavatar.media.audio import read_audio  # here, since other voices need no FFmpeg

        samples = read_audio(out, SAMPLE_RATE).samples
    return samples, align(samples, text)
