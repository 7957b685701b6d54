# ruff: noqa: RUF001 - IPA letters that look like Latin ones
"""Voices of several synthesisers, one set of phones."""

from __future__ import annotations

import numpy as np
import pytest

from streamavatar.errors import UserError
from streamavatar.synth import espeak, flite, pico
from streamavatar.synth.align import AlignError, align, can_align
from streamavatar.synth.phones import PAUSE, SAMPLE_RATE, Phone, tile
from streamavatar.synth.speech import synthesize
from streamavatar.synth.visemes import SHAPES
from streamavatar.synth.voices import available_voices, split

needs_flite = pytest.mark.skipif(not flite.voices(), reason="the speech program flite is not installed")
needs_espeak = pytest.mark.skipif(not espeak.voices(), reason="the speech library espeak-ng is not installed")
needs_pico = pytest.mark.skipif(not pico.voices(), reason="SVOX Pico (extra `voices`) is not installed")
needs_align = pytest.mark.skipif(not can_align(), reason="pocketsphinx (extra `voices`) is not installed")

TEXT = "Maybe bring three boys, the judge said."


def named(phones: tuple[Phone, ...]) -> list[str]:
    return [p.name for p in phones if p.name != PAUSE]


def test_names_of_voices() -> None:
    assert split("slt") == split("flite:slt") == ("flite", "slt")
    assert split("espeak:en-gb+f3") == ("espeak", "en-gb+f3")
    for wrong in ("nobody", "espeak:klingon", "tape:slt"):
        with pytest.raises(UserError, match="unknown voice"):
            split(wrong)


def test_a_voice_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(espeak, "library", lambda: None)
    monkeypatch.setattr(pico, "can_align", lambda: False)
    for voice, wanted in (("espeak:en-us+m1", "apt-get install espeak-ng"), ("pico:en-US", r"extra `voices`")):
        with pytest.raises(UserError, match=wanted):
            synthesize("hello there", voice)
    assert not available_voices(["espeak", "pico"])


def test_every_phone_of_espeak_has_a_mouth_shape() -> None:
    spoken = {phone for phones in espeak.IPA.values() for phone in phones}
    assert spoken <= set(SHAPES)


def test_ipa_with_marks_unknown_letters_and_pauses() -> None:
    assert espeak.flite_phones("ˈɑː") == ("aa",)
    assert espeak.flite_phones("aɪə") == ("ay", "ax")
    assert espeak.flite_phones("ɹ̩") == ("r",)
    assert espeak.flite_phones("ʘ") == ("ax",)
    assert espeak.flite_phones("") == (PAUSE,)


def test_tile_drops_phones_of_no_length() -> None:
    assert tile([("m", 0.1), ("b", 0.1), ("aa", 0.2)]) == (Phone("m", 0.0, 0.1), Phone("aa", 0.1, 0.2))


@needs_espeak
@pytest.mark.parametrize("voice", ["espeak:en-us+m1", "espeak:en-gb+f3", "espeak:en-gb-scotland+Annie"])
def test_espeak_tells_phones_that_tile_the_samples(voice: str) -> None:
    spoken = synthesize(TEXT, voice, pitch=1.1, rate=0.9)
    assert named(spoken.phones)[:6] == ["m", "ey", "b", "iy", "b", "r"]
    assert spoken.phones[0].start == 0.0
    assert spoken.phones[-1].end == pytest.approx(spoken.seconds, abs=0.02)
    for before, after in zip(spoken.phones, spoken.phones[1:], strict=False):
        assert after.start == before.end
    sounding = np.concatenate([
        spoken.samples[round(p.start * SAMPLE_RATE) : round(p.end * SAMPLE_RATE)]
        for p in spoken.phones if p.name in ("ey", "iy", "oy")
    ])  # fmt: skip
    assert sounding.std() > 1.05 * spoken.samples.std()


@needs_espeak
def test_espeak_forgets_what_it_said_before() -> None:
    first = espeak.speak("Good morning to you.", "en-us+f2", 1.0)
    espeak.speak("Something else entirely.", "en-gb+m3", 1.3)
    again = espeak.speak("Good morning to you.", "en-us+f2", 1.0)
    np.testing.assert_array_equal(first[0], again[0])
    assert first[1] == again[1]


@needs_espeak
def test_a_stretched_sentence_is_longer() -> None:
    assert len(espeak.speak(TEXT, "en-us+m1", 1.3)[0]) > 1.15 * len(espeak.speak(TEXT, "en-us+m1", 1.0)[0])


@needs_pico
def test_pico_is_aligned_and_repeats_itself() -> None:
    first = synthesize(TEXT, "pico:en-GB")
    synthesize("The harbor was quiet.", "pico:en-US")
    again = synthesize(TEXT, "pico:en-GB")
    np.testing.assert_array_equal(first.samples, again.samples)
    assert first.phones == again.phones
    assert named(first.phones)[:6] == ["m", "ey", "b", "iy", "b", "r"]


@needs_align
@needs_flite
def test_alignment_agrees_with_flites_own_times() -> None:
    text = "We walked to the harbor, because the weather was bright and calm."
    spoken = synthesize(text, "slt")
    found = align(spoken.samples, text)
    stops = [[p.start for p in phones if p.name in ("b", "k")] for phones in (spoken.phones, found)]
    assert len(stops[0]) == len(stops[1]) >= 4
    assert np.abs(np.subtract(*stops)).max() < 0.06
    assert np.abs(np.subtract(*stops)).mean() < 0.025


@needs_align
def test_what_cannot_be_aligned_is_a_user_error() -> None:
    quiet = np.zeros(8000, np.float32)
    for text, sound in (("hello zzyzxqq", quiet), ("", quiet), ("hello", quiet[:0]), ("hello there my friend", quiet)):
        with pytest.raises(AlignError):
            align(sound, text)
