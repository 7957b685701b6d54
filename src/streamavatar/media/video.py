"""Video out: frames and their audio, as they are made, into one file; and frames back in.

The file grows under a hidden name beside its target and takes the target's name only when it is complete, so a
half-written video is never mistaken for a finished one. Memory does not grow with the length, but for the index
of an MP4 (about 15 MB an hour).

Every video says in its metadata that it is AI-generated, in words and by the IPTC digital source type; article 50 of
the EU AI Act asks for such a mark.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import av
import av.error
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from av.video.stream import VideoStream
from numpy.typing import ArrayLike, NDArray

from streamavatar.errors import UserError
from streamavatar.media.files import StrPath, describe, open_container

FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
AAC_RATES = (7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
ENCODERS = ("libx264", "libopenh264", "h264_videotoolbox", "h264_mf", "h264_nvenc", "h264_qsv", "mpeg4")
"""Video encoders in order of preference; the first that opens is used."""

AI_MARK = (
    "AI-generated video: the person's speech and movement are synthetic (made with streamavatar). "
    "DigitalSourceType: http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
)
"""Goes into `comment` and `description`: of the two, MOV keeps only the first."""


class VideoWriter:
    """Write H.264 and AAC into an `.mp4`, `.mov` or `.mkv` file, piece by piece.

    As a context manager it finalises the file at the end of the block, and on Ctrl-C as well (what was written
    so far is kept and playable); on any other exception it removes what it wrote. An older file of the same name
    is replaced only by a complete one.

    Args:
        path: the target; its folder must exist.
        height, width: of the frames, in pixels, both even (yuv420p).
        fps: frames per second, exact.
        audio_rate: Hz, one that AAC knows, or None for a video without sound.
        metadata: tags such as `title`; a `comment` or `description` is kept behind the AI mark.
        ai_generated: mark the file as AI-generated.

    Raises:
        UserError: before any work, if the target is a folder, has another suffix or cannot be written, or if
            size, fps or audio rate are not possible.
    """

    def __init__(
        self,
        path: StrPath,
        height: int,
        width: int,
        fps: int | Fraction = 25,
        audio_rate: int | None = 16_000,
        metadata: Mapping[str, str] | None = None,
        ai_generated: bool = True,
    ) -> None:
        self.path = _check_path(path)
        _check_format(height, width, fps, audio_rate)
        self.height, self.width, self.fps, self.audio_rate = height, width, Fraction(fps), audio_rate
        self.frames_written = 0
        self.samples_written = 0
        self._rest = np.empty(0, np.float32)
        self._temporary = _reserve(self.path)
        self._container: OutputContainer | None = None
        try:
            self._container = av.open(f"file:{self._temporary}", "w", format=FORMATS[self.path.suffix.lower()])
            self._container.metadata.update(_tags(metadata or {}, ai_generated))
            self._video = _add_video(self._container, height, width, self.fps)
            self._audio = _add_audio(self._container, audio_rate) if audio_rate else None
        except BaseException as error:
            self.abort()
            if isinstance(error, (av.error.FFmpegError, OSError)):
                raise self._failure(error) from error
            raise

    def write(self, frames: ArrayLike | None = None, audio: ArrayLike | None = None) -> None:
        """Append frames and audio, in pieces of any size; the two need not be equally long in one call.

        Args:
            frames: uint8 RGB `[N, height, width, 3]`, or None.
            audio: float mono `[M]`, full scale 1.0 (louder is clipped), or None.

        Raises:
            UserError: for another shape or type (nothing is written then), NaN or infinite audio, a writer that
                is closed, or a disk that is full or fails (the temporary file is removed then).
        """
        pictures, sound = self._check_frames(frames), self._check_audio(audio)
        if self._container is None:
            raise UserError(f"video {str(self.path)!r} is already closed: open a new writer")
        try:
            self._rest = np.concatenate((self._rest, sound))
            for picture in pictures:
                self._encode_frame(self._container, picture)
                self._encode_audio(self._container, until=self.frames_written / self.fps)
            self._encode_audio(self._container)
            self._rest = self._rest.copy()  # a view would keep the whole piece alive
        except (av.error.FFmpegError, OSError) as error:
            self.abort()
            raise self._failure(error) from error

    def close(self) -> None:
        """Finish the file and give it its name; nothing happens when it is closed already.

        Raises:
            UserError: if no frame was written, or the disk is full or fails; the temporary file is removed then.
        """
        if self._container is None:
            return
        try:
            if not self.frames_written:
                raise UserError(f"video {str(self.path)!r} has no frames: write some before closing it")
            self._encode_audio(self._container, last=True)
            for stream in (self._video, self._audio):
                if stream is not None:
                    self._container.mux(stream.encode(None))
            self._container.close()
            self._container = None
            os.replace(self._temporary, self.path)
        except BaseException as error:
            self.abort()
            if isinstance(error, (av.error.FFmpegError, OSError)):
                raise self._failure(error) from error
            raise

    def abort(self) -> None:
        """Give up: remove the temporary file and leave the target as it was."""
        container, self._container = self._container, None
        if container is not None:
            with suppress(av.error.FFmpegError, OSError):
                container.close()
        with suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        if interrupted and self.audio_rate:  # mid-write the audio is ahead: end it with the last frame
            owed = int(self.frames_written / self.fps * self.audio_rate) - self.samples_written
            self._rest = self._rest[: max(owed, 0)]
        if kind is None or (interrupted and self.frames_written):
            self.close()
        else:
            self.abort()

    def _check_frames(self, frames: ArrayLike | None) -> NDArray[np.uint8]:
        wanted = (self.height, self.width, 3)
        if frames is None:
            return np.empty((0, *wanted), np.uint8)
        pictures = np.asarray(frames)
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[1:] != wanted:
            raise UserError(
                f"frames must be uint8 [N, {self.height}, {self.width}, 3], got {pictures.dtype} "
                f"{list(pictures.shape)}: convert them or open the writer with their size"
            )
        return pictures

    def _check_audio(self, audio: ArrayLike | None) -> NDArray[np.float32]:
        sound = np.asarray([] if audio is None else audio)
        if sound.ndim != 1 or (sound.size and not np.issubdtype(sound.dtype, np.floating)):
            raise UserError(f"audio must be mono float [M], got {sound.dtype} {list(sound.shape)}: convert it first")
        if sound.size and self._audio is None:
            raise UserError(f"video {str(self.path)!r} was opened without audio: open it with an audio_rate")
        if not np.isfinite(sound).all():
            raise UserError("audio has NaN or infinite samples: clean it first")
        return np.clip(sound, -1.0, 1.0).astype(np.float32)

    def _encode_frame(self, container: OutputContainer, picture: NDArray[np.uint8]) -> None:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(
            format="yuv420p",
            src_color_range=ColorRange.JPEG,
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
        )
        frame.pts, frame.time_base = self.frames_written, 1 / self.fps
        self.frames_written += 1
        container.mux(self._video.encode(frame))

    def _encode_audio(self, container: OutputContainer, until: Fraction | None = None, last: bool = False) -> None:
        """Encode the whole AAC blocks that wait and begin before `until` seconds; with `last`, the part block too."""
        if self._audio is None or self.audio_rate is None:
            return
        block = self._audio.codec_context.frame_size or 1024
        while len(self._rest) >= block or (last and len(self._rest)):
            if until is not None and self.samples_written > until * self.audio_rate:
                return
            frame = av.AudioFrame.from_ndarray(self._rest[None, :block], format="fltp", layout="mono")
            frame.sample_rate = self.audio_rate
            frame.pts, frame.time_base = self.samples_written, Fraction(1, self.audio_rate)
            self.samples_written += frame.samples
            self._rest = self._rest[block:]
            container.mux(self._audio.encode(frame))

    def _failure(self, error: Exception) -> UserError:
        return UserError(
            f"video {str(self.path)!r} cannot be written ({describe(error)}): free space or choose another place"
        )


def _check_path(path: StrPath) -> Path:
    """The target with links resolved; UserError if nothing can be written there under that name."""
    target = Path(path).expanduser()
    try:
        target = target.resolve()
        if target.is_dir():
            raise UserError(
                f"video {str(path)!r} is a folder: name a file in it, such as {str(target / 'video.mp4')!r}"
            )
        if target.suffix.lower() not in FORMATS:
            raise UserError(f"video {str(path)!r} must end in {', '.join(FORMATS)}: change its name")
        if not target.parent.is_dir():
            raise UserError(f"video {str(path)!r}: the folder {str(target.parent)!r} does not exist: make it first")
        if target.exists() and not target.is_file():
            raise UserError(f"video {str(path)!r} is not a regular file: choose another name")
    except (OSError, ValueError, RuntimeError) as error:  # no permission; a null byte; a loop of links
        raise UserError(f"video {str(path)!r} cannot be written ({describe(error)}): choose another place") from error
    return target


def _check_format(height: int, width: int, fps: int | Fraction, audio_rate: int | None) -> None:
    if height < 2 or width < 2 or height % 2 or width % 2:
        raise UserError(f"a video cannot be {height}x{width} pixels: height and width must be even and positive")
    if not isinstance(fps, (int, Fraction)) or fps <= 0:
        raise UserError(f"a video cannot run at {fps} fps: give a positive integer or Fraction")
    if audio_rate is not None and audio_rate not in AAC_RATES:
        raise UserError(f"AAC has no rate of {audio_rate} Hz: resample to one of {', '.join(map(str, AAC_RATES))}")


def _reserve(target: Path) -> Path:
    """Make the empty temporary file beside the target, with the permissions that a new file gets."""
    temporary = target.parent / f".streamavatar-{uuid.uuid4().hex}{target.suffix}"
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        raise UserError(
            f"video {str(target)!r} cannot be written ({describe(error)}): check its folder's permissions"
        ) from error
    return temporary


def _tags(metadata: Mapping[str, str], ai_generated: bool) -> dict[str, str]:
    tags = dict(metadata)
    if ai_generated:
        for key in ("comment", "description"):
            tags[key] = f"{AI_MARK}; {tags[key]}" if tags.get(key) else AI_MARK
    return tags


def _configure(context: VideoCodecContext, name: str, height: int, width: int, fps: Fraction) -> None:
    """Size, time base, BT.709 limited range, and quality: constant for x264, by bit rate for the others."""
    context.height, context.width, context.pix_fmt = height, width, "yuv420p"
    context.framerate, context.time_base = fps, 1 / fps
    context.color_range, context.colorspace = ColorRange.MPEG, Colorspace.ITU709
    context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    if name == "libx264":
        context.options = {"crf": "18", "preset": "veryfast"}
    else:
        context.bit_rate = max(500_000, int(height * width * fps / 4))


def _add_video(container: OutputContainer, height: int, width: int, fps: Fraction) -> VideoStream:
    """Add the stream of the first encoder that really opens here (hardware ones are listed without hardware)."""
    for name in ENCODERS:
        with suppress(av.error.FFmpegError, ValueError):
            trial = cast(VideoCodecContext, av.CodecContext.create(name, "w"))
            _configure(trial, name, height, width, fps)
            trial.open()
            stream = cast(VideoStream, container.add_stream(name, rate=fps))
            _configure(stream.codec_context, name, height, width, fps)
            return stream
    raise UserError("this PyAV has no video encoder that works: install the av package again")


def _add_audio(container: OutputContainer, rate: int) -> AudioStream:
    stream: Any = container.add_stream("aac", rate=rate, layout="mono")
    stream.codec_context.bit_rate = min(128_000, 4 * rate)
    stream.codec_context.open()
    return cast(AudioStream, stream)


def read_video(path: StrPath) -> NDArray[np.uint8]:
    """Decode all frames of a video's first video track; the whole clip is held in memory.

    Returns:
        uint8 RGB `[F, H, W, 3]`, as stored (rotation tags are not applied).

    Raises:
        UserError: if the file is missing, has no video, or cannot be decoded.
    """
    frames = []
    with open_container(path, "video") as container:
        if not container.streams.video:
            raise UserError(f"video {str(path)!r} has no video track: give a file with pictures")
        try:
            for frame in container.decode(video=0):
                frames.append(frame.to_ndarray(format="rgb24"))
        except (av.error.FFmpegError, ValueError) as error:
            raise UserError(
                f"video {str(path)!r} is damaged after {len(frames)} frames ({describe(error)}): download it again"
            ) from error
    if not frames:
        raise UserError(f"video {str(path)!r} has no frames: make or download it again")
    return np.stack(frames)
