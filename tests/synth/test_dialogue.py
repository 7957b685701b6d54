"""Conversations with other voices, grammars and rooms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from streamavatar.errors import UserError
from streamavatar.synth import espeak, flite
from streamavatar.synth.acoustics import Acoustics
from streamavatar.synth.align import AlignError
from streamavatar.synth.dialogue import Dialogue, Lane, Speaker, _converse, _two_speakers, make_dialogue, tone_utterance
from streamavatar.synth.performance import FPS, nod_times, perform, phrase_ends
from streamavatar.synth.phones import SAMPLE_RATE
from streamavatar.synth.scripts import BACKCHANNELS
from streamavatar.synth.speech import Utterance
from streamavatar.synth.topics import WIDE
from streamavatar.synth.voices import split

TONES = (Speaker("tone-a", 1.0, 1.0), Speaker("tone-b", 1.6, 1.1))


def toned(seed: int, seconds: float = 40.0, acoustics: bool = False) -> Dialogue:
    return _converse(np.random.default_rng(seed), seconds, TONES, tone_utterance, acoustics=acoustics)


def test_backchannels_and_overlaps_happen() -> None:
    backchannels, overlap = 0, 0.0
    for seed in range(12):
        talk = toned(seed)
        active = np.zeros((2, 4000), bool)
        for row, lane in zip(active, (talk.agent, talk.user), strict=True):
            backchannels += len(lane.backchannels)
            spoken_at = {line.start: line.text for line in lane.lines}
            assert all(spoken_at[time] in BACKCHANNELS for time in lane.backchannels)
            for phone in lane.phones:
                row[int(phone.start * 100) : int(phone.end * 100)] = True
        overlap += active.all(axis=0).mean() / 12
    assert backchannels > 12
    assert 0.002 < overlap < 0.2


def test_a_backchannel_is_said_with_a_nod() -> None:
    talk = next(t for t in map(toned, range(20)) if any(2 < b < 36 for b in t.agent.backchannels))
    at = next(b for b in talk.agent.backchannels if 2 < b < 36)
    without = replace(talk, agent=replace(talk.agent, backchannels=()))
    frames = 40 * FPS
    extra = perform(talk, 1, frames).head[:, 1] - perform(without, 1, frames).head[:, 1]
    start = round(at * FPS)
    assert extra[start : start + 12].max() > 2.0
    assert np.abs(extra[: round(min(talk.agent.backchannels) * FPS) - 1]).max() == 0.0


def test_rooms_change_the_sound_and_not_the_behaviour() -> None:
    clear, roomy = toned(3), toned(3, acoustics=True)
    assert roomy.agent.phones == clear.agent.phones
    for lane in (roomy.agent, roomy.user):
        assert lane.clean is not None
        assert not np.array_equal(lane.samples, lane.clean)
        noisy = Acoustics(noise="pink", snr_db=6, seed=1).apply(lane.clean)
        assert phrase_ends(replace(lane, samples=noisy)) == phrase_ends(replace(lane, samples=lane.clean))
    assert nod_times(roomy) == nod_times(Dialogue(*(Lane(x.voice, x.phones) for x in (roomy.agent, roomy.user))))


def test_a_sentence_that_cannot_be_spoken_is_left_out() -> None:
    def speak(text: str, speaker: Speaker) -> Utterance | None:
        return None if "a" in text else tone_utterance(text, speaker)

    talk = _converse(np.random.default_rng(0), 60.0, TONES, speak)
    said = [line.text for lane in (talk.agent, talk.user) for line in lane.lines]
    assert said
    assert not any("a" in text for text in said)


def test_synthesisers_speak_equally_often() -> None:
    voices = ("slt", "espeak:en-us+m1", "espeak:en-us+f1", "espeak:en-gb+m3", "espeak:en-gb+f3")
    rng = np.random.default_rng(0)
    pairs = [_two_speakers(rng, voices) for _ in range(400)]
    assert all(one.voice != other.voice for one, other in pairs)
    share = np.mean([split(one.voice)[0] == "flite" for one, _ in pairs])
    assert 0.4 < share < 0.6


def test_one_voice_is_not_a_dialogue() -> None:
    with pytest.raises(UserError, match="two different voices"):
        _two_speakers(np.random.default_rng(0), ("slt", "slt"))


@pytest.mark.skipif(not (flite.voices() and espeak.voices()), reason="flite or espeak-ng is not installed")
def test_mixed_voices_speak_a_wide_dialogue_twice_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    voices = ("rms", "espeak:en-gb+f3")
    one = make_dialogue(2, 15.0, voices=voices, grammar=WIDE, acoustics=True)
    other = make_dialogue(2, 15.0, voices=voices, grammar=WIDE, acoustics=True)
    for name in ("agent", "user"):
        np.testing.assert_array_equal(getattr(one, name).samples, getattr(other, name).samples)
        assert getattr(one, name).phones == getattr(other, name).phones
    assert len(one.agent.samples) == 15 * SAMPLE_RATE

    def refuse(*_: object, **__: object) -> None:
        raise AlignError("the sound does not fit the text")

    monkeypatch.setattr("streamavatar.synth.dialogue._spoken", refuse)
    assert not make_dialogue(2, 15.0, voices=voices).agent.lines
