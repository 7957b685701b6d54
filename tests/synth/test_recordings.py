"""Phones heard in recordings, and lanes made of them."""

from __future__ import annotations

import os
import wave
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from streamavatar import bundled
from streamavatar.errors import UserError
from streamavatar.synth import espeak, flite
from streamavatar.synth.acoustics import Acoustics
from streamavatar.synth.align import can_align
from streamavatar.synth.performance import FPS, perform
from streamavatar.synth.phone_model import CLASSES, best_path, load_phone_model, log_mel
from streamavatar.synth.phone_training import agreement, column_classes, measure, train_phone_model
from streamavatar.synth.phones import PAUSE, SAMPLE_RATE, Phone
from streamavatar.synth.recordings import lane_from_recording, recorded_dialogue
from streamavatar.synth.speech import Utterance, synthesize
from streamavatar.synth.visemes import SHAPES, mouth_tracks

ASSETS = Path(os.environ.get("STREAMAVATAR_ASSETS", Path(__file__).resolve().parents[2] / ".." / "shared" / "assets"))
needs_flite = pytest.mark.skipif(not flite.voices(), reason="the speech program flite is not installed")
needs_espeak = pytest.mark.skipif(not espeak.voices(), reason="the speech library espeak-ng is not installed")
needs_align = pytest.mark.skipif(not can_align(), reason="pocketsphinx (extra `voices`) is not installed")
needs_speech = pytest.mark.skipif(not (ASSETS / "speech").is_dir(), reason="no asset folder with recordings")

# Not from the grammar that the recogniser was trained on.
SENTENCES = ("The smoke from the chimney hung over our village.", "Please pass me both of the wide measuring spoons.")


def test_classes_are_phones_with_a_mouth_shape() -> None:
    assert set(CLASSES) <= {PAUSE, *SHAPES}
    assert set(SHAPES) - set(CLASSES) == {"dx", "axr"}


def test_level_and_colour_do_not_matter() -> None:
    sound = np.random.default_rng(0).standard_normal(16_000).astype(np.float32) * 0.1
    np.testing.assert_allclose(log_mel(sound), log_mel(sound * 0.05), atol=1e-3)
    assert log_mel(sound).shape == (100, 40)


def test_best_path_changes_only_when_it_pays() -> None:
    scores = np.log(np.array([[0.8, 0.2], [0.4, 0.6], [0.8, 0.2], [0.1, 0.9], [0.01, 0.99], [0.01, 0.99]], np.float32))
    assert best_path(scores, 0.0).tolist() == [0, 1, 0, 1, 1, 1]
    assert best_path(scores, 2.0).tolist() == [0, 0, 0, 1, 1, 1]


def test_no_sound_and_no_speech() -> None:
    model = load_phone_model()
    assert model.hear(np.zeros(0, np.float32)) == ()
    assert {p.name for p in model.hear(np.zeros(32_000, np.float32))} == {PAUSE}
    hiss = np.random.default_rng(0).standard_normal(64_000).astype(np.float32) * 0.003
    heard = sum(p.end - p.start for p in model.hear(hiss) if p.name != PAUSE)
    assert heard < 0.4


@needs_flite
def test_phones_heard_tile_the_samples() -> None:
    sound = synthesize(SENTENCES[0], "rms").samples
    phones = load_phone_model().hear(sound)
    assert phones[0].start == 0.0
    assert phones[-1].end == pytest.approx(len(sound) / SAMPLE_RATE)
    assert all(a.end == b.start for a, b in pairwise(phones))


@needs_flite
@needs_espeak
@pytest.mark.parametrize("voice", ["awb", "slt", "espeak:en-us+Michael", "espeak:en-gb+f4"])
def test_what_is_heard_moves_the_mouth_as_the_known_phones_do(voice: str) -> None:
    spoken = [synthesize(text, voice) for text in SENTENCES]
    room = Acoustics(echo_seconds=0.3, echo_db=-16, noise="pink", snr_db=25, seed=1)
    for acoustics, least in ((None, 0.82), (room, 0.75)):
        found = measure(load_phone_model(), spoken, acoustics)
        assert found.opening > least
        assert found.viseme > 0.6
        assert found.closed > 0.45
        assert found.false_closed < 0.15


def test_agreement_with_itself_is_perfect_and_with_silence_is_none() -> None:
    phones = tuple(Phone(n, 0.2 * i, 0.2 * i + 0.2) for i, n in enumerate(("aa", "m", "iy", "b", "ow", "s")))
    same = agreement([phones], [phones], [1.4])
    assert (same.opening, same.width, same.viseme, same.closed, same.false_closed) == pytest.approx((1, 1, 1, 1, 0))
    late = agreement([phones], [tuple(p.moved(0.12) for p in phones)], [1.4])
    assert late.opening < 0.6
    assert late.viseme < 0.7


def test_columns_know_their_phone() -> None:
    classes = column_classes([Phone("pau", 0.0, 0.05), Phone("dx", 0.05, 0.08), Phone("aa", 0.08, 0.2)], 30)
    names = [CLASSES[i] for i in classes.tolist()]
    assert names == [PAUSE] * 5 + ["d"] * 3 + ["aa"] * 12 + [PAUSE] * 10


def test_training_learns_and_repeats_itself() -> None:
    rng = np.random.default_rng(0)
    time = np.arange(3 * SAMPLE_RATE) / SAMPLE_RATE
    hiss = (0.2 * rng.standard_normal(len(time))).astype(np.float32)
    hum = (0.3 * np.sin(2 * np.pi * 220 * time) * (1 + np.sin(2 * np.pi * 660 * time))).astype(np.float32)
    spoken = [
        Utterance("", "", np.concatenate([one, other]), (Phone(a, 0, 3.0), Phone(b, 3.0, 6.0)))
        for one, other, a, b in ((hiss, hum, "s", "aa"), (hum, hiss, "aa", "s"))
    ]
    model = train_phone_model(spoken, steps=40, batch=2)
    assert [p.name for p in model.hear(spoken[0].samples) if p.end - p.start > 0.5] == ["s", "aa"]
    one, two = (train_phone_model(spoken, steps=2, batch=2).state_dict() for _ in range(2))
    assert all((one[name] == two[name]).all() for name in one)


def test_a_file_that_is_no_recogniser_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing"):
        load_phone_model(tmp_path / "none.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not weights")
    with pytest.raises(UserError, match="not a phone recogniser"):
        load_phone_model(broken)


def test_the_bundled_conversation_as_a_recording_drives_the_lips() -> None:
    agent, user = (lane_from_recording(path) for path in bundled.conversation())
    talk = recorded_dialogue(agent, user)
    assert len(talk.agent.samples) == len(talk.user.samples)
    frames = int(talk.seconds * FPS)
    done = perform(talk, 1, frames)
    level = np.sqrt((talk.agent.samples[: frames * 640].reshape(frames, 640) ** 2).mean(axis=1))
    quiet = np.convolve(level > 1e-3, np.ones(9), "same") == 0
    assert quiet.sum() > 50
    assert (done.mouth_open[quiet] < 0.02).mean() > 0.97
    assert done.mouth_open.max() > 0.8
    assert (done.head[:, 1].max() - done.head[:, 1].min()) > 2.0


def test_samples_need_their_rate_and_one_channel(tmp_path: Path) -> None:
    sound = np.zeros(4800, np.float32)
    with pytest.raises(UserError, match="rate"):
        lane_from_recording(sound)
    with pytest.raises(UserError, match="one channel"):
        lane_from_recording(np.zeros((2, 4800), np.float32), 16_000)
    assert lane_from_recording(sound, 48_000).seconds == pytest.approx(0.1)
    path = tmp_path / "short.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(16_000))
    lane = lane_from_recording(path)
    assert (lane.phones, lane.seconds) == ((), 0.5)
    assert recorded_dialogue(lane).user.seconds == 0.5
    with pytest.raises(UserError):
        lane_from_recording(tmp_path / "none.wav")


@needs_align
@needs_flite
def test_a_transcript_gives_lines_and_aligned_phones() -> None:
    spoken = synthesize(SENTENCES[0], "slt")
    lane = lane_from_recording(spoken.samples, SAMPLE_RATE, transcript=SENTENCES[0])
    assert lane.lines[0].text == SENTENCES[0]
    assert agreement([spoken.phones], [lane.phones], [spoken.seconds]).opening > 0.85


@needs_speech
@pytest.mark.parametrize("name", ["Wan2.2__talk.wav", "echomimic_v2__news.wav"])
def test_real_speech_opens_the_mouth_where_it_sounds(name: str) -> None:
    lane = lane_from_recording(ASSETS / "speech" / name)
    frames = int(lane.seconds * FPS)
    opening = mouth_tracks(lane.phones, frames, FPS)[1]
    level = (lane.samples[: frames * 640].reshape(frames, 640) ** 2).mean(axis=1)
    loud = level > 0.05 * np.percentile(level, 95)
    assert opening[loud].mean() > 2 * opening[level < 1e-4 * np.percentile(level, 95)].mean() + 0.1
    assert opening[loud].mean() > 0.25
