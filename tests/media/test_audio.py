"""Audio: every container, rate and damage that a user's file can have; resampling whole and streamed."""

from __future__ import annotations

import struct
import wave
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from streamavatar.errors import UserError
from streamavatar.media import Audio, StreamResampler, VideoWriter, read_audio, resample

Encode = Callable[..., Path]


def tone(rate: int, seconds: float = 1.0, hertz: float = 440.0) -> NDArray[np.float64]:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


def noise(rate: int, seconds: float) -> NDArray[np.float64]:
    return np.clip(0.2 * np.random.default_rng(0).standard_normal(round(rate * seconds)), -1, 1)


@pytest.mark.parametrize(
    ("name", "codec", "bound"),
    [
        ("u8.wav", "pcm_u8", 1e-2),
        ("s16.wav", "pcm_s16le", 1e-4),
        ("s24.wav", "pcm_s24le", 1e-6),
        ("s32.wav", "pcm_s32le", 1e-6),
        ("f32.wav", "pcm_f32le", 1e-7),
        ("f64.wav", "pcm_f64le", 1e-7),
        ("a.flac", "flac", 1e-4),
        ("a.mka", "pcm_s16le", 1e-4),
    ],
)
def test_lossless_formats(encode: Encode, name: str, codec: str, bound: float) -> None:
    signal = tone(16000)
    audio = read_audio(encode(name, codec, signal, 16000))
    assert (audio.rate, audio.warning, audio.samples.dtype) == (16000, "", np.float32)
    assert audio.samples.shape == signal.shape
    assert np.abs(audio.samples - signal).max() < bound


@pytest.mark.parametrize(("name", "codec"), [("a.mp3", "libmp3lame"), ("a.m4a", "aac"), ("a.opus", "libopus")])
def test_lossy_formats_keep_time(encode: Encode, name: str, codec: str) -> None:
    signal = tone(48000)
    audio = read_audio(encode(name, codec, signal, 48000))
    assert abs(len(audio.samples) - len(signal)) <= 1200  # a block of padding at most
    middle = slice(12000, 36000)
    assert np.corrcoef(audio.samples[middle], signal[middle])[0, 1] > 0.99


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 96000, 192000])
def test_rates(encode: Encode, rate: int) -> None:
    audio = read_audio(encode("a.wav", "pcm_s16le", tone(rate, 0.5), rate), rate=16000)
    assert audio.rate == 16000
    assert abs(audio.seconds - 0.5) < 1e-3
    assert np.corrcoef(audio.samples[800:7200], tone(16000, 0.5)[800:7200])[0, 1] > 0.999


@pytest.mark.parametrize("channels", [2, 6])
@pytest.mark.parametrize("codec", ["pcm_s16le", "flac"])
def test_channels_are_averaged(encode: Encode, channels: int, codec: str) -> None:
    signals = np.stack([tone(16000, 0.2, 200.0 * (c + 1)) for c in range(channels)])
    audio = read_audio(encode("a.flac" if codec == "flac" else "a.wav", codec, signals, 16000))
    assert np.abs(audio.samples - signals.mean(0)).max() < 1e-4


def test_video_with_sound(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with VideoWriter(path, 64, 64, audio_rate=16000) as writer:
        writer.write(np.zeros((25, 64, 64, 3), np.uint8), tone(16000))
    audio = read_audio(path)
    assert audio.samples.shape == (16000,)
    assert np.corrcoef(audio.samples[4000:12000], tone(16000)[4000:12000])[0, 1] > 0.99


def test_missing_folder_and_not_audio(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_audio(tmp_path / "no.wav")
    with pytest.raises(UserError, match="folder"):
        read_audio(tmp_path)
    with pytest.raises(UserError, match="URL"):
        read_audio("http://example.org/a.wav")
    path = tmp_path / "a.wav"
    path.write_bytes(b"")
    with pytest.raises(UserError, match="empty"):
        read_audio(path)
    path.write_bytes(bytes(range(256)) * 8)
    with pytest.raises(UserError, match="not a media file"):
        read_audio(path)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="no audio track"):
        read_audio(tmp_path / "a.png")


def test_no_samples(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
    with pytest.raises(UserError, match="no sound"):
        read_audio(tmp_path / "a.wav")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(encode: Encode, bad: float) -> None:
    signal = tone(16000)
    signal[500] = bad
    with pytest.raises(UserError, match="NaN or infinite"):
        read_audio(encode("a.wav", "pcm_f32le", signal, 16000))


@pytest.mark.parametrize("rate", [4000, 384000])
def test_rate_out_of_range(encode: Encode, rate: int) -> None:
    with pytest.raises(UserError, match=f"is {rate} Hz"):
        read_audio(encode("a.wav", "pcm_s16le", tone(rate), rate))
    with pytest.raises(UserError, match="the wanted audio rate"):
        read_audio(encode("b.wav", "pcm_s16le", tone(16000), 16000), rate=rate)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.wav", "pcm_s16le", {}),
        ("a.mp3", "libmp3lame", {}),
        ("a.flac", "flac", {}),
        ("a.mp4", "aac", {"movflags": "faststart"}),
        ("a.mka", "aac", {}),
    ],
)
def test_cut_short_at_the_end(encode: Encode, name: str, codec: str, options: dict[str, str]) -> None:
    """What is there is used, and the loss is said."""
    path = encode(name, codec, noise(16000, 4.0), 16000, **options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 3])
    audio = read_audio(path)
    assert 1.5 < audio.seconds < 2.2
    assert "ended early" in audio.warning
    assert "of 4.0" in audio.warning


@pytest.mark.parametrize(
    ("name", "codec"), [("a.wav", "pcm_s16le"), ("a.mp3", "libmp3lame"), ("a.flac", "flac"), ("a.mp4", "aac")]
)
def test_cut_short_at_the_start_of_its_data(encode: Encode, name: str, codec: str) -> None:
    path = encode(name, codec, noise(16000, 4.0), 16000)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError):
        read_audio(path)


def test_mp4_without_its_index(encode: Encode) -> None:
    path = encode("a.mp4", "aac", noise(16000, 4.0), 16000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="cut short"):
        read_audio(path)


@pytest.mark.parametrize(("name", "codec"), [("a.mp3", "libmp3lame"), ("a.mp4", "aac")])
def test_damaged_in_the_middle(encode: Encode, name: str, codec: str) -> None:
    path = encode(name, codec, noise(16000, 4.0), 16000)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4000] = np.random.default_rng(1).bytes(4000)
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"damaged after [12]\.\d\d s"):
        read_audio(path)


def test_lost_blocks_become_silence(encode: Encode) -> None:
    signal = noise(16000, 4.0)
    path = encode("a.flac", "flac", signal, 16000)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4000] = np.random.default_rng(1).bytes(4000)
    path.write_bytes(bytes(data))
    audio = read_audio(path)
    assert "filled with silence" in audio.warning
    assert audio.samples.shape == signal.shape
    assert np.abs(audio.samples[-16000:] - signal[-16000:]).max() < 1e-4


def test_gap_between_time_stamps(tmp_path: Path) -> None:
    """A recorder that paused: half a second is missing from the data, not from the clock. A long gap is damage."""

    def record(name: str, second: int) -> Path:
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream("pcm_s16le", rate=16000, layout="mono")
            for start in (0, second):
                frame = av.AudioFrame.from_ndarray(np.full((1, 8000), 8192, np.int16), format="s16", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return tmp_path / name

    audio = read_audio(record("a.mkv", 16000))
    assert "0.50 s were filled" in audio.warning
    assert (np.flatnonzero(audio.samples == 0) == np.arange(8000, 16000)).all()
    with pytest.raises(UserError, match="a gap of"):
        read_audio(record("b.mkv", 16000 * 100))


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_wav_written_to_a_pipe_has_no_length(encode: Encode, size: int) -> None:
    path = encode("a.wav", "pcm_s16le", tone(16000), 16000)
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[4:8], data[at : at + 4] = struct.pack("<I", size), struct.pack("<I", size)
    path.write_bytes(bytes(data))
    audio = read_audio(path)
    assert audio.samples.shape == (16000,)
    assert audio.warning == ""


def test_real_recording(assets: Path) -> None:
    paths = sorted((assets / "speech").glob("*.wav"))[:3]
    assert paths
    for path in paths:
        audio = read_audio(path, rate=16000)
        assert audio.rate == 16000
        assert audio.seconds > 1
        assert audio.warning == ""
        assert 0.005 < audio.samples.std() < 0.5


def test_audio_is_a_value() -> None:
    audio = Audio(np.zeros(8000, np.float32), 16000)
    assert audio.seconds == 0.5


# resampling ----------------------------------------------------------------------------------------------


def test_resample_whole() -> None:
    signal = tone(48000).astype(np.float32)
    assert resample(signal, 48000, 48000) is signal
    assert np.abs(resample(signal, 48000, 16000)[800:-800] - tone(16000)[800:-800]).max() < 1e-3
    assert resample(np.empty(0, np.float32), 48000, 16000).shape == (0,)
    assert resample(np.ones(1), 48000, 16000).dtype == np.float32


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros((2, 100), np.float32), "mono"),
        (np.zeros(100, np.int16), "int16"),
        (np.full(100, np.nan, np.float32), "NaN"),
    ],
)
def test_bad_signals(samples: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resample(samples, 48000, 16000)
    for dst in (16000, 48000):
        with pytest.raises(UserError, match=message):
            StreamResampler(48000, dst).push(samples)


def test_bad_rates() -> None:
    with pytest.raises(UserError, match="7999 Hz"):
        resample(np.zeros(10), 7999, 16000)
    with pytest.raises(UserError, match="whole number of samples"):
        StreamResampler(16010, 16000)
    with pytest.raises(UserError, match="whole number of samples"):
        StreamResampler(16010, 16010)
    with pytest.raises(UserError, match="200000 Hz"):
        StreamResampler(200000, 16000)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([(48000, 16000), (44100, 16000), (8000, 16000), (16000, 24000), (16000, 16000)]),
    st.integers(0, 9000),
    st.lists(st.integers(0, 3000), max_size=12),
)
def test_stream_does_not_depend_on_the_cut(rates: tuple[int, int], length: int, cuts: list[int]) -> None:
    src, dst = rates
    signal = np.random.default_rng(length).standard_normal(length).astype(np.float32)
    whole = StreamResampler(src, dst)
    expected = np.concatenate([whole.push(signal), whole.flush()])
    stream = StreamResampler(src, dst)
    pieces = [stream.push(piece) for piece in np.split(signal, np.minimum(np.cumsum(cuts, dtype=int), length))]
    result = np.concatenate([*pieces, stream.flush()])
    assert result.dtype == np.float32
    assert np.array_equal(result, expected)
    assert abs(len(result) - length * dst / src) <= 1


def test_stream_equals_the_whole_signal() -> None:
    signal = noise(48000, 2.0).astype(np.float32)
    stream = StreamResampler(48000, 16000)
    streamed = np.concatenate([stream.push(signal), stream.flush()])
    assert np.allclose(streamed, soxr.resample(signal, 48000, 16000), atol=1e-6)


def test_flush_starts_anew() -> None:
    signal = noise(48000, 0.5).astype(np.float32)
    stream = StreamResampler(48000, 16000)
    first = np.concatenate([stream.push(signal), stream.flush()])
    second = np.concatenate([stream.push(signal), stream.flush()])
    assert np.array_equal(first, second)


def test_a_refused_piece_leaves_the_stream_as_it_was() -> None:
    signal = noise(48000, 0.5).astype(np.float32)
    expected = StreamResampler(48000, 16000)
    stream = StreamResampler(48000, 16000)
    with pytest.raises(UserError):
        stream.push([float("nan")])
    assert np.array_equal(stream.push(signal), expected.push(signal))
