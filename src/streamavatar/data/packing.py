"""A clip as the files of a shard, and back: H.264 pictures, two Opus lanes, truth in NPZ.

Sizes decide the formats: an hour at 256x256 should stay below 80 MB. Lanes are two mono Opus files and not a stereo
one, whose joint coding would let each person hear a little of the other; FLAC would take more than the pictures do.
Encoders run on one thread: with more, x264's output depends on their number.
"""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any

import av
import numpy as np
import soxr
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from numpy.typing import NDArray

from streamavatar.synth.performance import FPS
from streamavatar.synth.source import LANDMARKS
from streamavatar.synth.speech import SAMPLE_RATE

CRF, PRESET, KEYFRAMES = 21, "medium", 125
LANE_BITS = 16_000
OPUS_RATE = 48_000
LANDMARK_STEP = 8
"""Landmarks are kept in sixteenths of a pixel, as differences from frame to frame."""

_BEFORE_SEEK = 0.12
"""Seconds decoded before the wanted ones: Opus settles within 80 ms, the resampler within 10."""

# Chroma is halved by averaging and doubled by bicubic interpolation at full precision: 4 dB better than the defaults.
_DOWN = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
_UP = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND

Frames = NDArray[np.uint8]
Samples = NDArray[np.float32]
Truth = dict[str, NDArray[Any]]


def encode_video(frames: Frames) -> bytes:
    """MP4 of uint8 RGB [F,H,W,3]; H and W must be even."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=FPS)
        context = stream.codec_context
        context.height, context.width, context.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        context.color_range, context.colorspace = ColorRange.MPEG, Colorspace.ITU709
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        context.thread_count, context.gop_size = 1, KEYFRAMES
        context.options = {"crf": str(CRF), "preset": PRESET}
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(
                format="yuv420p",
                src_color_range=ColorRange.JPEG,
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                interpolation=_DOWN,
                threads=1,
            )
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def decode_video(data: bytes, start: int, count: int) -> Frames:
    """Frames `start` .. `start + count`, decoded from the key frame before them.

    Raises:
        ValueError: the video ends before that.
        av.error.FFmpegError: the data is damaged.
    """
    pictures: list[Frames] = []
    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        assert stream.time_base is not None
        container.seek(int(Fraction(start, FPS) / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            assert frame.time is not None
            if round(frame.time * FPS) >= start:
                pictures.append(_rgb(frame))
            if len(pictures) == count:
                return np.stack(pictures)
    raise ValueError(f"video ends {count - len(pictures)} frames early")


def _rgb(frame: av.VideoFrame) -> Frames:
    picture = frame.reformat(
        format="rgb24",
        src_colorspace=Colorspace.ITU709,
        src_color_range=ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG,
        interpolation=_UP,
        threads=1,
    )
    return np.asarray(picture.to_ndarray(), np.uint8)


def encode_lane(samples: Samples) -> bytes:
    """Ogg Opus of mono float32 16 kHz; variable rate, so that silence takes little."""
    buffer = io.BytesIO()
    # Without the flag the stream's serial number is random.
    with av.open(buffer, "w", format="ogg", options={"fflags": "+bitexact"}) as container:
        stream: Any = container.add_stream("libopus", rate=SAMPLE_RATE, layout="mono")
        context = stream.codec_context
        context.bit_rate, context.options = LANE_BITS, {"application": "audio", "vbr": "on"}
        context.open()
        for first in range(0, len(samples), context.frame_size):
            block = np.ascontiguousarray(samples[None, first : first + context.frame_size])
            frame = av.AudioFrame.from_ndarray(block, format="flt", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, first, Fraction(1, SAMPLE_RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def decode_lane(data: bytes, start: int, count: int) -> Samples:
    """Samples `start` .. `start + count` at 16 kHz; silence before the lane's beginning.

    Raises:
        ValueError: the lane ends before that.
        av.error.FFmpegError: the data is damaged.
    """
    ratio = OPUS_RATE // SAMPLE_RATE
    margin = round(_BEFORE_SEEK * SAMPLE_RATE)
    begin, end = max(0, start - margin), start + count
    parts: list[Samples] = []
    first = have = 0
    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.audio[0]
        assert stream.time_base is not None
        container.seek(int(Fraction(begin, SAMPLE_RATE) / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            if not parts:
                assert frame.time is not None
                first = round(frame.time * OPUS_RATE)
            parts.append(frame.to_ndarray().reshape(-1).astype(np.float32, copy=False))
            have += parts[-1].size
            if first + have >= (end + margin) * ratio:
                break
    if first > begin * ratio or first + have < end * ratio:
        raise ValueError("a lane ends early")
    sound = np.concatenate(parts)[begin * ratio - first : (end + margin) * ratio - first]
    lane = np.asarray(soxr.resample(sound, OPUS_RATE, SAMPLE_RATE), np.float32)[max(0, start) - begin : end - begin]
    return np.concatenate((np.zeros(count - len(lane), np.float32), lane))


def encode_truth(truth: Truth) -> bytes:
    """NPZ: integers as they are, tracks as float16, landmarks as 16-bit steps."""
    buffer = io.BytesIO()
    packed: dict[str, Any] = {name: _packed(name, values) for name, values in truth.items()}
    np.savez_compressed(buffer, **packed)
    return buffer.getvalue()


def _packed(name: str, values: NDArray[Any]) -> NDArray[Any]:
    if name.startswith(LANDMARKS):
        steps = np.clip(np.round(values * float(LANDMARK_STEP)), -(2**15), 2**15 - 1).astype(np.int16)
        return np.diff(steps, axis=0, prepend=np.zeros_like(steps[:1]))
    return values.astype(np.float16) if values.dtype.kind == "f" else values


def decode_truth(data: bytes) -> Truth:
    """What `encode_truth` was given, tracks and landmarks as float32."""
    with np.load(io.BytesIO(data)) as stored:
        return {name: _unpacked(name, stored[name]) for name in stored.files}


def _unpacked(name: str, values: NDArray[Any]) -> NDArray[Any]:
    if name.startswith(LANDMARKS):
        return np.cumsum(values, axis=0, dtype=np.int16).astype(np.float32) / LANDMARK_STEP
    return values.astype(np.float32) if values.dtype.kind == "f" else values
