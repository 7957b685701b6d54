"""Text becomes speech; and recordings that would not fit are refused before they fill the memory."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra live")
pytest.importorskip("dlib", reason="needs the extra live")

from streamavatar.errors import UserError
from streamavatar.serving.problems import ApiProblem
from streamavatar.serving.speech import synthesize, synthesizers
from streamavatar.serving.voice import decode_audio

INSTALLED = synthesizers()


@pytest.mark.parametrize("voice", INSTALLED)
def test_words_take_their_time(voice: str) -> None:
    short, rate = synthesize("Good morning.", voice)
    long, same = synthesize("Good morning. It is a bright and pleasant day, and I am glad to see you here.", voice)
    assert rate == same
    assert rate % 25 == 0
    assert short.dtype == np.int16
    assert 0.5 < len(short) / rate < 2
    assert len(long) > 2.5 * len(short)
    blocks = np.abs(long[: len(long) // 400 * 400].astype(float)).reshape(-1, 400).mean(1)
    assert np.percentile(blocks, 90) > 1000
    assert blocks.min() < 200  # the pause between the sentences


@pytest.mark.parametrize("voice", INSTALLED)
def test_odd_texts(voice: str) -> None:
    for text in (
        "-o /etc/passwd",
        "<speak>one</speak>",
        "one\x00two\n\x1b[31m",
        "café \U0001f600 \ud800",
        "&amp; $(ls) `ls`",
    ):
        samples, rate = synthesize(text, voice)
        assert 0.2 < len(samples) / rate < 15, text
    for empty in ("", "   ", "\x00", "...", "<>"):
        with pytest.raises(UserError, match="nothing to say"):
            synthesize(empty, voice)


@pytest.mark.skipif(not INSTALLED, reason="no synthesiser is installed")
def test_a_voice_that_is_not_there() -> None:
    with pytest.raises(UserError, match=INSTALLED[0]):
        synthesize("Hello.", "nobody")


def silence(seconds: int) -> bytes:
    """A FLAC file that is small whatever its length."""
    out = io.BytesIO()
    with av.open(out, "w", format="flac") as container:
        stream = container.add_stream("flac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        for second in range(seconds):
            frame.pts = 8000 * second
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


def test_long_recordings_are_refused_whatever_they_weigh() -> None:
    data = silence(700)
    assert len(data) < 200_000
    with pytest.raises(ApiProblem) as refused:
        decode_audio(data, 600)
    assert (refused.value.status_code, refused.value.code) == (422, "too_long")
    assert len(decode_audio(silence(3), 600)) == pytest.approx(3 * 24000, abs=500)
    assert len(decode_audio(silence(3), 600, 16000)) == pytest.approx(3 * 16000, abs=500)


def test_loud_and_odd_samples() -> None:
    """Louder than full scale is clipped, not wrapped; NaN is refused."""

    def wav(samples: np.ndarray) -> bytes:
        out = io.BytesIO()
        with av.open(out, "w", format="wav") as container:
            stream = container.add_stream("pcm_f32le", rate=24000, layout="mono")
            frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="flt", layout="mono")
            frame.rate = 24000
            container.mux(stream.encode(frame))
        return out.getvalue()

    loud = 4 * np.sin(np.arange(24000) / 20)
    heard = decode_audio(wav(loud), 10)
    assert np.abs(heard).max() >= 32767
    assert (np.sign(heard[np.abs(loud) > 0.1]) == np.sign(loud[np.abs(loud) > 0.1])).all()
    with pytest.raises(ApiProblem) as refused:
        decode_audio(wav(np.full(24000, np.nan)), 10)
    assert refused.value.code == "bad_audio"
    assert "/" not in refused.value.detail
