"""Real recordings as lanes: their phones are heard or aligned, so that lips, stresses and nods follow them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from streamavatar.errors import UserError
from streamavatar.media.audio import read_audio
from streamavatar.synth.align import align
from streamavatar.synth.dialogue import Dialogue, Lane, Line
from streamavatar.synth.phone_model import PhoneModel, load_phone_model
from streamavatar.synth.phones import PAUSE, SAMPLE_RATE, Samples, resample


def lane_from_recording(
    recording: Path | str | Samples, rate: int | None = None, *, transcript: str | None = None,
    model: PhoneModel | None = None,
) -> Lane:  # fmt: skip
    """One speaker's recording as a lane, in any language.

    Args:
        recording: an audio file, or mono samples in -1..1.
        rate: samples per second of samples; a file knows its own.
        transcript: the English words, where known: aligned (extra `voices`) rather than heard.
        model: a phone recogniser; the one that ships if None.

    Raises:
        UserError: the file cannot be read, or the transcript does not fit.
    """
    if isinstance(recording, (str, Path)):
        samples = read_audio(Path(recording), SAMPLE_RATE).samples
    else:
        if rate is None:
            raise UserError("samples of a recording need their rate: give rate=, for example 16000")
        if recording.ndim != 1:
            raise UserError(f"a recording is one channel of samples, not an array of shape {recording.shape}")
        samples = resample(recording.astype(np.float32), rate, SAMPLE_RATE)
    samples = np.clip(np.nan_to_num(samples), -1, 1).astype(np.float32)
    phones = align(samples, transcript) if transcript else (model or load_phone_model()).hear(samples)
    spoken = tuple(phone for phone in phones if phone.name != PAUSE)
    lines = (Line(transcript, spoken[0].start, spoken[-1].end),) if transcript and spoken else ()
    return Lane(samples, spoken, lines)


def recorded_dialogue(agent: Lane, user: Lane | None = None) -> Dialogue:
    """Two recorded lanes on one clock; the shorter one ends in silence, and no user is a silent one."""
    other = user if user is not None else Lane(np.zeros(0, np.float32), ())
    count = max(len(agent.samples), len(other.samples))
    return Dialogue(*(replace(lane, samples=lane.cut(0, count)) for lane in (agent, other)))
