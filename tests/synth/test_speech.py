"""Speech, scripts and dialogues."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from streamavatar.errors import UserError
from streamavatar.synth.dialogue import make_dialogue, tone_dialogue
from streamavatar.synth.scripts import Scripts
from streamavatar.synth.speech import SAMPLE_RATE, synthesize

needs_flite = pytest.mark.skipif(shutil.which("flite") is None, reason="the speech program flite is not installed")


def test_missing_flite_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="install the package `flite`"):
        synthesize("hello there", "slt", pitch=1.01)


def test_unknown_voice_is_a_user_error() -> None:
    with pytest.raises(UserError, match="slt"):
        synthesize("hello", "nobody")


@needs_flite
@pytest.mark.parametrize("voice", ["kal16", "awb", "rms", "slt"])
def test_phones_tile_the_samples(voice: str) -> None:
    spoken = synthesize("Maybe bring bread.", voice, pitch=1.1, rate=0.95)
    assert spoken.samples.dtype == np.float32
    assert np.abs(spoken.samples).max() <= 0.71
    assert spoken.phones[0].start == 0.0
    assert spoken.phones[-1].end == pytest.approx(spoken.seconds, abs=0.02)
    for before, after in zip(spoken.phones, spoken.phones[1:], strict=False):
        assert after.start == pytest.approx(before.end)
    assert {"m", "b"} <= {p.name for p in spoken.phones}


@needs_flite
def test_same_arguments_same_samples_and_cache(tmp_path: Path) -> None:
    first = synthesize("Good morning.", "rms", pitch=0.9, cache_dir=tmp_path)
    again = synthesize("Good morning.", "rms", pitch=0.9)
    cached = synthesize("Good morning.", "rms", pitch=0.9, cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    for other in (again, cached):
        np.testing.assert_array_equal(first.samples, other.samples)
        assert first.phones == other.phones


@needs_flite
def test_spoken_dialogue_has_two_lanes_that_take_turns() -> None:
    talk = make_dialogue(3, 20.0)
    assert len(talk.agent.samples) == len(talk.user.samples) == 20 * SAMPLE_RATE
    assert talk.agent.lines
    assert talk.user.lines
    np.testing.assert_array_equal(talk.agent.samples, make_dialogue(3, 20.0).agent.samples)


def test_tone_dialogue_is_deterministic_and_varied() -> None:
    one, two, other = tone_dialogue(1, 30.0), tone_dialogue(1, 30.0), tone_dialogue(2, 30.0)
    np.testing.assert_array_equal(one.user.samples, two.user.samples)
    assert one.agent.phones == two.agent.phones
    assert not np.array_equal(one.agent.samples, other.agent.samples)
    for lane in (one.agent, one.user):
        spoken = sum(p.end - p.start for p in lane.phones) / 30.0
        assert 0.1 < spoken < 0.8
        assert all(0 <= p.start < p.end <= 30.0 for p in lane.phones)


def test_sentences_hardly_repeat() -> None:
    scripts = Scripts(np.random.default_rng(0))
    said = [scripts.answer() for _ in range(500)]
    assert len(set(said)) > 485
    assert not any("{" in text for text in said)
