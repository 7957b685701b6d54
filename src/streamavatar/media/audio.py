"""Audio in: any file that FFmpeg decodes becomes mono float32."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av.error
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from numpy.typing import NDArray

from streamavatar.errors import UserError
from streamavatar.media.files import StrPath, describe, open_container
from streamavatar.media.signal import check_rate, resample

SHORTFALL_SECONDS = 0.25
"""How much less than the header promises may be decoded before :attr:`Audio.warning` says so."""
MIN_GAP_SECONDS = 0.05
MAX_GAP_SECONDS = 60.0
"""Gaps between time stamps: below the first they are rounding, above the second the file is damaged."""
MAX_PADDING = 2048
"""Samples by which AAC in an MP4 may run past the length in the header: the end of its last block."""


@dataclass(frozen=True)
class Audio:
    """Mono audio.

    Attributes:
        samples: float32 `[S]`, full scale 1.0; louder float files are kept as they are, not clipped.
        rate: samples per second.
        warning: one line when the file ended earlier than its header promises or had gaps, else empty.
    """

    samples: NDArray[np.float32]
    rate: int
    warning: str = ""

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate


def read_audio(path: StrPath, rate: int | None = None) -> Audio:
    """Read a whole audio file, or the first audio track of a video file, as mono.

    Channels are averaged. Gaps in time (a recorder that paused, lost blocks) become silence, so that what
    follows stays in time. A file cut short at its end is usable: what was decoded is returned. Both are
    said in `warning`. A file with data in its middle that does not decode is refused.

    Args:
        path: a file in any format that FFmpeg decodes, at 8 to 192 kHz.
        rate: the wanted rate; by default the file's own.

    Raises:
        UserError: if the file is missing, has no audio, cannot be decoded at all or breaks in the middle, holds
            no samples, NaN or infinity, or a rate is outside 8 to 192 kHz.
    """
    if rate is not None:
        check_rate(rate, "the wanted audio rate")
    with open_container(path, "audio") as container:
        what = f"audio {str(path)!r}"
        if not container.streams.audio:
            raise UserError(f"{what} has no audio track: give a file with sound")
        stream = container.streams.audio[0]
        if not stream.rate:
            raise UserError(f"{what} has an audio track that FFmpeg cannot decode: convert it to WAV")
        check_rate(stream.rate, what)
        promised = _promised_seconds(Path(path).expanduser(), container, stream)
        samples, file_rate, silence = _decode(container, stream, what)
        padding = len(samples) - round(promised * file_rate)
        if "mp4" in container.format.name and promised and 0 < padding <= MAX_PADDING:
            samples = samples[:-padding]
    if not np.isfinite(samples).all():
        raise UserError(f"{what} has NaN or infinite samples: export it again")
    warnings = []
    if silence:
        warnings.append(f"has gaps: {silence:.2f} s were filled with silence")
    if promised - len(samples) / file_rate > SHORTFALL_SECONDS:
        warnings.append(f"ended early: {len(samples) / file_rate:.2f} s of {promised:.2f} s could be decoded")
    if rate is not None:
        samples = resample(samples, file_rate, rate)
    return Audio(samples, rate or file_rate, f"{what} {' and '.join(warnings)}" if warnings else "")


def _promised_seconds(file: Path, container: InputContainer, stream: AudioStream) -> float:
    """The length that the header names; 0 where it names none or FFmpeg only guesses it from the bit rate."""
    if container.format.name == "wav":
        return _wav_seconds(file)  # FFmpeg trims the length of a WAV to the size of the file
    if container.format.name == "aac":
        return 0.0
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None and not container.streams.video:
        return container.duration / 1_000_000
    return 0.0


def _wav_seconds(file: Path) -> float:
    """The length that a RIFF header names; 0 for none (written to a pipe) or an odd header."""
    bytes_per_second = 0
    with file.open("rb") as data:
        if data.read(4) != b"RIFF":
            return 0.0
        data.seek(12)
        while len(head := data.read(8)) == 8:
            name, size = struct.unpack("<4sI", head)
            if name == b"data":
                return 0.0 if size == 0xFFFFFFFF or not bytes_per_second else size / bytes_per_second
            body = data.read(min(size, 16))
            if name == b"fmt " and len(body) == 16:
                bytes_per_second = struct.unpack("<HHIIHH", body)[3]
            data.seek(size - len(body) + size % 2, os.SEEK_CUR)
    return 0.0


def _decode(container: InputContainer, stream: AudioStream, what: str) -> tuple[NDArray[np.float32], int, float]:
    """A track as mono samples, its rate, and the seconds of silence put in; errors as in :func:`read_audio`."""
    pieces: list[NDArray[np.float32]] = []
    rate = decoded = silence = 0
    start = 0.0
    failure: Exception | None = None
    for item in _frames(container, stream):
        if isinstance(item, Exception):
            failure = failure or item
            continue
        time = None if item.pts is None or item.time_base is None else float(item.pts * item.time_base)
        gap = 0.0
        if not pieces:
            rate, start = item.sample_rate, time or 0.0
        elif time is not None:
            gap = time - start - decoded / rate
        if failure is not None or gap > MAX_GAP_SECONDS:
            reason = describe(failure) if failure else f"a gap of {gap:.0f} s"
            raise UserError(
                f"{what} is damaged after {decoded / rate:.2f} s ({reason}): convert or download it again"
            ) from failure
        if rate != item.sample_rate:
            raise UserError(f"{what} changes its rate from {rate} to {item.sample_rate} Hz: convert it to WAV")
        if gap > MIN_GAP_SECONDS:
            pieces.append(np.zeros(round(gap * rate), np.float32))
            silence += len(pieces[-1])
            decoded += len(pieces[-1])
        pieces.append(_mono(item))
        decoded += len(pieces[-1])
    if decoded == 0:
        reason = f"nothing could be decoded ({describe(failure)})" if failure else "it holds no samples"
        raise UserError(f"{what} has no sound: {reason}; make or download it again") from failure
    check_rate(rate, what)
    return np.concatenate(pieces), rate, silence / rate


def _frames(container: InputContainer, stream: AudioStream) -> Iterator[AudioFrame | Exception]:
    """Decoded frames in order; where a packet fails, its error takes its place and decoding goes on."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError as error:  # the container breaks off: nothing more can be read
            yield error
            return
        if packet is None:
            return
        try:
            yield from packet.decode()
        except av.error.EOFError:
            return
        except av.error.FFmpegError as error:
            yield error


def _mono(frame: AudioFrame) -> NDArray[np.float32]:
    """One decoded frame of any sample format as mono float32 `[S]`, full scale 1.0."""
    raw: NDArray[Any] = frame.to_ndarray()
    channels = raw if frame.format.is_planar else raw.reshape(-1, frame.layout.nb_channels).T
    if np.issubdtype(raw.dtype, np.floating):
        with np.errstate(over="ignore", invalid="ignore"):  # NaN and infinity are refused later, in words
            return channels.mean(axis=0, dtype=np.float64).astype(np.float32)
    middle = 128.0 if raw.dtype == np.uint8 else 0.0
    scale = 2.0 ** (8 * raw.dtype.itemsize - 1)
    return ((channels.mean(axis=0, dtype=np.float64) - middle) / scale).astype(np.float32)
