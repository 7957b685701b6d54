"""What the agent says by request: uploaded recordings and text, put into its lane."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streamavatar.errors import UserError
from streamavatar.media import read_audio
from streamavatar.media.files import open_container
from streamavatar.serving.clock import AGENT_RATE
from streamavatar.serving.live_session import LaneFull
from streamavatar.serving.problems import ApiProblem
from streamavatar.serving.sessions import Entry, Registry
from streamavatar.serving.speech import MISSING, synthesize, synthesizers

_KEEP_QUEUED = 20.0
"""Seconds in the lane from which on a long speech waits outside."""


async def say(registry: Registry, entry: Entry, text: str, voice: str | None) -> tuple[int, float]:
    """Synthesise a text and queue it; the speech's number and seconds.

    Raises:
        ApiProblem: 501 without a synthesiser, 422 for a text that cannot be spoken, 429 when the lane is full.
    """
    settings = registry.settings
    check_free(entry)
    if len(text) > settings.text_characters:
        raise ApiProblem(422, "too_long", f"a text has at most {settings.text_characters} characters")
    if not synthesizers():
        raise ApiProblem(501, "no_synthesizer", MISSING)
    try:
        async with registry.slow_work:
            samples, rate = await asyncio.to_thread(synthesize, text, voice or settings.voice)
    except UserError as error:
        raise ApiProblem(422, "cannot_speak", str(error)) from error
    return queue(entry, samples, rate)


async def play(registry: Registry, entry: Entry, data: bytes) -> tuple[int, float]:
    """Queue an uploaded recording; the speech's number and seconds.

    Raises:
        ApiProblem: 422 for what is no audio or too long, 429 when the lane is full.
    """
    check_free(entry)
    async with registry.slow_work:
        samples = await asyncio.to_thread(decode_audio, data, registry.settings.audio_seconds)
    return queue(entry, samples, AGENT_RATE)


def check_free(entry: Entry) -> None:
    """Raise ApiProblem 409 while a long speech is being fed: another one would end up inside it."""
    if entry.feeding:
        raise ApiProblem(409, "busy", "a long speech is still being played: interrupt it, or send this one later")


def queue(entry: Entry, samples: NDArray[np.int16], rate: int) -> tuple[int, float]:
    """Put a whole speech into the agent's lane: at once where it fits, else piece by piece as room comes up.

    Raises:
        ApiProblem: 409 while another long speech is being fed, 422 for a rate that the lane does not take.
    """
    check_free(entry)
    pieces = [samples[i : i + rate] for i in range(0, len(samples), rate)]
    try:
        left = _fill(entry, pieces, rate)
    except LaneFull as error:
        raise ApiProblem(429, "lane_full", str(error), retry_after=error.retry_after) from error
    except UserError as error:
        raise ApiProblem(422, "bad_audio", str(error)) from error
    speech = entry.live.speech_id
    if left:
        entry.feeder = asyncio.create_task(_feed(entry, left, rate), name=f"feeder of {entry.id}")
    else:
        entry.live.end_agent()
    return speech, len(samples) / rate


def _fill(entry: Entry, pieces: list[NDArray[np.int16]], rate: int) -> list[NDArray[np.int16]]:
    """Push pieces of a second until the lane is nearly full; what is left. LaneFull where not even the first fits."""
    for index, piece in enumerate(pieces):
        if index and entry.live.queued_seconds > _KEEP_QUEUED:
            return pieces[index:]
        entry.live.push_agent(piece, rate=rate)
    return []


async def _feed(entry: Entry, pieces: list[NDArray[np.int16]], rate: int) -> None:
    """Cancelled by an interruption, see `Registry`."""
    while pieces:
        await asyncio.sleep(1.0)
        if entry.live.ended.done():
            return
        if entry.live.queued_seconds < _KEEP_QUEUED:
            pieces = _fill(entry, pieces, rate)
    entry.live.end_agent()


def decode_audio(data: bytes, most_seconds: float, rate: int = AGENT_RATE) -> NDArray[np.int16]:
    """Any audio file's bytes to int16 mono [S]. Slow: not for the event loop.

    Raises:
        ApiProblem: 422.
    """
    if not data:
        raise ApiProblem(422, "bad_audio", "the body is empty: send an audio file")
    with tempfile.TemporaryDirectory(prefix="streamavatar-") as folder:
        path = Path(folder) / "upload"
        path.write_bytes(data)
        try:
            if is_longer(path, most_seconds):
                raise ApiProblem(422, "too_long", f"the recording is longer than {most_seconds:g} s")
            audio = read_audio(path, rate)
        except UserError as error:
            raise ApiProblem(422, "bad_audio", str(error).replace(str(path), "the upload")) from error
    return np.asarray(np.clip(np.round(audio.samples * 32767), -32768, 32767), np.int16)


def is_longer(path: Path, seconds: float) -> bool:
    """Whether a recording lasts longer, without keeping it: a small file can hold days of silence, or claim gaps."""
    with open_container(path, "audio") as container:
        if not container.streams.audio:
            return False
        length, first = 0.0, None
        with suppress(OSError, ValueError):  # damaged: whoever reads it says so in words
            for frame in container.decode(audio=0):
                first = frame.time if first is None else first
                length += frame.samples / frame.sample_rate
                if max(length, (frame.time or 0.0) - (first or 0.0)) > seconds:
                    return True
    return False
