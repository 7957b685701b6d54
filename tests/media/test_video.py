"""Video: what is written can be read back exactly in time, and nothing half-written is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamavatar.errors import UserError
from streamavatar.media import VideoWriter, read_audio, read_video, video

RATE = 16000
COLOURS = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 90, 60)], np.uint8)


def clip(frames: int, height: int = 64, width: int = 96) -> NDArray[np.uint8]:
    """Frame k is one colour, another every five frames."""
    picture = COLOURS[np.arange(frames) // 5 % len(COLOURS)]
    return np.broadcast_to(picture[:, None, None], (frames, height, width, 3))


def tone(samples: int) -> NDArray[np.float32]:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(samples) / RATE)).astype(np.float32)


def write(path: Path, frames: int = 50, **options: object) -> Path:
    with VideoWriter(path, 64, 96, audio_rate=RATE, **options) as writer:
        writer.write(clip(frames), tone(frames * 640))
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".MP4"])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a:b{suffix}")
    assert os.listdir(tmp_path) == [path.name]
    assert np.abs(read_video(path).astype(int) - clip(50)).max() <= 3
    audio = read_audio(path)
    assert audio.rate == RATE
    assert 0 <= len(audio.samples) - 32000 <= 1024
    assert np.corrcoef(audio.samples[3000:30000], tone(32000)[3000:30000])[0, 1] > 0.99


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_streams_and_time_stamps(tmp_path: Path, suffix: str) -> None:
    with av.open(str(write(tmp_path / f"a{suffix}"))) as container:
        picture, sound = container.streams.video[0], container.streams.audio[0]
        assert (picture.codec_context.name, picture.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert picture.average_rate == 25
        assert (sound.codec_context.name, sound.rate, sound.codec_context.layout.name) == ("aac", RATE, "mono")
        times = [frame.pts * frame.time_base for frame in container.decode(video=0)]
        assert times == [Fraction(k, 25) for k in range(50)]
    with av.open(str(tmp_path / f"a{suffix}")) as container:
        first = next(container.decode(audio=0))
        assert abs(first.pts * first.time_base) <= Fraction(1, 1000)


def test_streams_are_interleaved(tmp_path: Path) -> None:
    """A player never has to read far ahead, even when twelve seconds were written at once."""
    path = write(tmp_path / "a.mp4", frames=300)
    times = {"video": 0.0, "audio": 0.0}
    with av.open(str(path)) as container:
        for packet in container.demux():
            if packet.pts is not None:
                times[packet.stream.type] = float(packet.pts * packet.time_base)
                assert abs(times["video"] - times["audio"]) < 1.5


@pytest.mark.parametrize("fps", [24, 30, Fraction(30000, 1001)])
def test_other_rates(tmp_path: Path, fps: int | Fraction) -> None:
    path = tmp_path / "a.mp4"
    with VideoWriter(path, 64, 96, fps=fps, audio_rate=None) as writer:
        writer.write(clip(10))
    with av.open(str(path)) as container:
        assert not container.streams.audio
        assert [f.pts * f.time_base for f in container.decode(video=0)] == [k / Fraction(fps) for k in range(10)]


@pytest.mark.parametrize("rate", [8000, 24000, 44100, 48000])
def test_audio_rates(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "a.mp4"
    with VideoWriter(path, 64, 96, audio_rate=rate) as writer:
        writer.write(clip(25), np.zeros(rate))
    assert len(read_audio(path).samples) == rate


@settings(max_examples=12, deadline=None)
@given(
    st.integers(1, 30),
    st.integers(0, 25000),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 9000)), max_size=6),
)
def test_pieces_do_not_matter(frames: int, samples: int, cuts: list[tuple[int, int]]) -> None:
    pictures, sound = clip(frames), tone(samples)
    with tempfile.TemporaryDirectory() as folder:
        whole, parts = Path(folder, "whole.mp4"), Path(folder, "parts.mp4")
        with VideoWriter(whole, 64, 96, audio_rate=RATE) as writer:
            writer.write(pictures, sound)
        with VideoWriter(parts, 64, 96, audio_rate=RATE) as writer:
            frame = sample = 0
            for more_frames, more_samples in [*cuts, (frames, samples)]:
                end_frame, end_sample = frame + more_frames, sample + more_samples
                writer.write(pictures[frame:end_frame], sound[sample:end_sample])
                frame, sample = end_frame, end_sample
        assert np.array_equal(read_video(whole), read_video(parts))
        assert len(read_video(whole)) == frames
        if samples:
            assert np.array_equal(read_audio(whole).samples, read_audio(parts).samples)
            assert abs(len(read_audio(whole).samples) - samples) <= RATE // 1000  # MP4 counts in milliseconds


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_marked_as_generated(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", frames=5, metadata={"title": "Ada", "comment": "take 2"})
    with av.open(str(path)) as container:
        tags = {key.lower(): value for key, value in container.metadata.items()}
    assert tags["title"] == "Ada"
    assert tags["comment"].startswith("AI-generated")
    assert "trainedAlgorithmicMedia" in tags["comment"]
    assert tags["comment"].endswith("take 2")


def test_mark_can_be_left_out(tmp_path: Path) -> None:
    with av.open(str(write(tmp_path / "a.mp4", frames=5, ai_generated=False))) as container:
        assert "comment" not in container.metadata


def test_audio_alone_is_no_video(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "a.mp4", 64, 96, audio_rate=RATE)
    writer.write(audio=tone(5000))
    with pytest.raises(UserError, match="no frames"):
        writer.close()
    assert os.listdir(tmp_path) == []


def test_loud_audio_is_clipped(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", 64, 96, audio_rate=RATE) as writer:
        writer.write(clip(25), 100 * tone(16000))
    assert np.abs(read_audio(tmp_path / "a.mp4").samples).max() < 2


# what goes wrong -----------------------------------------------------------------------------------------


def test_bad_targets(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    before = sorted(os.listdir(tmp_path))
    for target, message in [
        (tmp_path, "folder"),
        (tmp_path / "a.avi", r"must end in \.mp4, \.mov, \.mkv"),
        (tmp_path / "a", "must end in"),
        (tmp_path / "no" / "a.mp4", "does not exist"),
        (tmp_path / "file" / "a.mp4", "does not exist"),
        (tmp_path / "loop.mp4", "video"),
        ("a\0b.mp4", "cannot be written"),
        ("/proc/a.mp4", "cannot be written"),
    ]:
        with pytest.raises(UserError, match=message):
            VideoWriter(target, 64, 96)
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="permissions"):
        VideoWriter(tmp_path / "a.mp4", 64, 96)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 63}, "even"),
        ({"width": 0}, "even"),
        ({"fps": 0}, "0 fps"),
        ({"fps": 29.97}, "29.97 fps"),
        ({"audio_rate": 15999}, "AAC"),
    ],
)
def test_bad_formats(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        VideoWriter(tmp_path / "a.mp4", **{"height": 64, "width": 96, **options})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("frames", "audio", "message"),
    [
        (np.zeros((1, 64, 95, 3), np.uint8), None, "frames must be uint8"),
        (np.zeros((64, 96, 3), np.uint8), None, "frames must be uint8"),
        (np.zeros((1, 64, 96, 3), np.float32), None, "frames must be uint8"),
        (None, np.zeros((2, 100), np.float32), "mono"),
        (None, np.zeros(100, np.int16), "int16"),
        (None, np.array([np.nan]), "NaN"),
    ],
)
def test_bad_pieces_change_nothing(
    tmp_path: Path, frames: np.ndarray | None, audio: np.ndarray | None, message: str
) -> None:
    with VideoWriter(tmp_path / "a.mp4", 64, 96) as writer:
        with pytest.raises(UserError, match=message):
            writer.write(frames, audio)
        writer.write(clip(5))
    assert len(read_video(tmp_path / "a.mp4")) == 5


def test_audio_needs_a_track(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", 64, 96, audio_rate=None) as writer:
        writer.write(clip(1), np.empty(0, np.float32))
        with pytest.raises(UserError, match="without audio"):
            writer.write(clip(1), tone(640))


def test_closed_writer(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "a.mp4", 64, 96)
    writer.write(clip(5))
    writer.close()
    writer.close()
    with pytest.raises(UserError, match="already closed"):
        writer.write(clip(5))
    assert len(read_video(tmp_path / "a.mp4")) == 5


def test_error_in_the_block_removes_everything_new(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_text("older")
    with pytest.raises(ZeroDivisionError), VideoWriter(path, 64, 96) as writer:  # noqa: PT012
        writer.write(clip(30))
        assert len(os.listdir(tmp_path)) == 2
        assert all(name.startswith(".") for name in os.listdir(tmp_path) if name != "a.mp4")
        _ = 1 / 0
    assert os.listdir(tmp_path) == ["a.mp4"]
    assert path.read_text() == "older"


def interrupted(path: Path, frames: int) -> None:
    with VideoWriter(path, 64, 96, audio_rate=RATE) as writer:
        writer.write(clip(frames), tone(frames * 640))
        raise KeyboardInterrupt


def test_ctrl_c_keeps_a_playable_file(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "a.mp4", 30)
    assert os.listdir(tmp_path) == ["a.mp4"]
    assert len(read_video(tmp_path / "a.mp4")) == 30
    assert len(read_audio(tmp_path / "a.mp4").samples) == 30 * 640


def test_ctrl_c_in_the_middle_of_a_piece_ends_sound_and_picture_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = VideoWriter._encode_frame

    def interrupt(writer: VideoWriter, *arguments: object) -> None:
        if writer.frames_written == 20:
            raise KeyboardInterrupt
        encode(writer, *arguments)

    monkeypatch.setattr(VideoWriter, "_encode_frame", interrupt)
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "a.mp4", 30)
    assert len(read_video(tmp_path / "a.mp4")) == 20
    assert abs(len(read_audio(tmp_path / "a.mp4").samples) - 20 * 640) <= 1024


def test_ctrl_c_before_the_first_frame_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "a.mp4", 0)
    assert os.listdir(tmp_path) == []


FULL_DISK = """
import os, resource, sys
import numpy as np
from streamavatar.errors import UserError
from streamavatar.media import VideoWriter
path = sys.argv[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    with VideoWriter(path, 64, 96) as writer:
        for seed in range(30):
            frames = np.random.default_rng(seed).integers(0, 255, (5, 64, 96, 3), dtype=np.uint8)
            writer.write(frames, np.zeros(3200))
except UserError as error:
    assert "cannot be written" in str(error), error
    assert os.listdir(os.path.dirname(path)) == [], os.listdir(os.path.dirname(path))
    print("refused")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("limit", [1000, 300_000])
def test_full_disk(tmp_path: Path, suffix: str, limit: int) -> None:
    """The limit on file sizes stands in for a disk that fills up at that point."""
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / f"a{suffix}"), str(limit)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (result.stdout, result.stderr) == ("refused\n", "")


def test_failing_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    writer = VideoWriter(tmp_path / "a.mp4", 64, 96)
    writer.write(clip(5))
    monkeypatch.setattr(video.os, "replace", fail)
    with pytest.raises(UserError, match="No space left"):
        writer.close()
    assert os.listdir(tmp_path) == []


def test_fallback_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "ENCODERS", ("no_such_encoder", "mpeg4"))
    path = write(tmp_path / "a.mp4")
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
    assert np.abs(read_video(path).astype(int) - clip(50)).mean() < 8


def test_no_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "ENCODERS", ())
    with pytest.raises(UserError, match="no video encoder"):
        VideoWriter(tmp_path / "a.mp4", 64, 96)
    assert os.listdir(tmp_path) == []


def test_link_to_a_target_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "a.mp4").symlink_to(tmp_path / "real" / "b.mp4")
    write(tmp_path / "a.mp4", frames=5)
    assert (tmp_path / "a.mp4").is_symlink()
    assert len(read_video(tmp_path / "real" / "b.mp4")) == 5


def test_permissions_are_those_of_a_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    path = write(tmp_path / "a.mp4", frames=5)
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_read_video_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_video(tmp_path / "no.mp4")
    path = write(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match="cut short"):
        read_video(path)
    path.write_text("no video" * 100)
    with pytest.raises(UserError):
        read_video(path)


@pytest.mark.slow
def test_memory_is_constant(tmp_path: Path) -> None:
    """Ten minutes take hardly more memory than one (the index of an MP4 grows by 4 kB a second)."""
    resource = pytest.importorskip("resource")
    peaks = []
    with VideoWriter(tmp_path / "a.mp4", 64, 96, audio_rate=RATE) as writer:
        for _ in range(10):
            for _ in range(60):
                writer.write(clip(25), tone(16000))
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert peaks[-1] - peaks[0] < 20_000
