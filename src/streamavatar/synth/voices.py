"""The voices that dialogues can be spoken with: flite's four, and more where other synthesisers are installed.

A voice is named `engine:name`, such as `espeak:en-gb+f3`; a plain name is one of flite's.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType

from streamavatar.errors import UserError
from streamavatar.synth import espeak, flite, pico
from streamavatar.synth.phones import Phone, Samples

ENGINES: dict[str, ModuleType] = {"flite": flite, "espeak": espeak, "pico": pico}


def split(voice: str) -> tuple[str, str]:
    """Engine and name.

    Raises:
        UserError: there is no such voice in any engine.
    """
    engine, colon, name = voice.rpartition(":")
    engine = engine if colon else "flite"
    if engine not in ENGINES:
        raise UserError(f"unknown voice {voice!r}: it begins with one of {', '.join(f'{e}:' for e in ENGINES)}")
    known = ENGINES[engine].VOICES
    if name not in known:
        raise UserError(f"unknown voice {voice!r}: use one of {', '.join(known)}")
    return engine, name


def available_voices(engines: Iterable[str] = ENGINES) -> tuple[str, ...]:
    """All voices of these engines that this machine can speak with, as full names."""
    return tuple(f"{engine}:{name}" for engine in engines for name in ENGINES[engine].voices())


def speak(text: str, voice: str, stretch: float) -> tuple[Samples, tuple[Phone, ...]]:
    """One sentence, `stretch` times as long as the voice's usual: samples at 16 kHz and phones that tile them."""
    engine, name = split(voice)
    samples, phones = ENGINES[engine].speak(text, name, stretch)
    return samples, phones
