"""Motion truth follows the two lanes."""

from __future__ import annotations

import numpy as np
import pytest

from streamavatar.synth.dialogue import Dialogue, Lane, tone_dialogue
from streamavatar.synth.performance import FPS, NOD_DELAY, TALKING, nod_times, perform, phrase_ends
from streamavatar.synth.speech import Phone
from streamavatar.synth.visemes import mouth_tracks

FRAMES = 40 * FPS


@pytest.fixture(scope="module")
def talk() -> Dialogue:
    return tone_dialogue(5, 40.0)


def test_shapes_ranges_and_determinism(talk: Dialogue) -> None:
    one, two = perform(talk, 7, FRAMES), perform(talk, 7, FRAMES)
    for name, width in (("visemes", 15), ("gaze", 2), ("head", 3), ("hand", 3)):
        assert getattr(one, name).shape == (FRAMES, width)
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    np.testing.assert_allclose(one.visemes.sum(axis=1), 1, atol=1e-5)
    for name, low in (("mouth_open", 0), ("blink", 0), ("smile", 0), ("mouth_wide", -1), ("brow", -1), ("gaze", -1)):
        assert getattr(one, name).min() >= low
        assert getattr(one, name).max() <= 1
    assert one.state.dtype == np.int8
    assert set(np.unique(one.state)) <= {0, 1, 2, 3}
    assert not np.array_equal(one.blink, perform(talk, 8, FRAMES).blink)


def test_a_cut_is_a_part_of_the_whole(talk: Dialogue) -> None:
    whole, part = perform(talk, 7, FRAMES), perform(talk, 7, 60, start=200)
    np.testing.assert_array_equal(whole.cut(200, 60).head, part.head)
    np.testing.assert_array_equal(whole.cut(200, 60).visemes, part.visemes)


def test_mouth_is_exactly_closed_while_the_agent_is_silent(talk: Dialogue) -> None:
    mouth = perform(talk, 7, FRAMES).mouth_open
    quiet = np.ones(FRAMES, bool)
    for phone in talk.agent.phones:
        quiet[max(0, int((phone.start - 0.15) * FPS)) : int((phone.end + 0.15) * FPS) + 1] = False
    assert quiet.sum() > 100
    assert mouth[quiet].max() == 0.0
    assert mouth.max() > 0.8


def test_mouth_ignores_the_user(talk: Dialogue) -> None:
    other = Dialogue(talk.agent, tone_dialogue(6, 40.0).user)
    np.testing.assert_array_equal(perform(talk, 7, FRAMES).mouth_open, perform(other, 7, FRAMES).mouth_open)


def test_bilabials_close_between_open_vowels() -> None:
    for offset in np.linspace(0, 0.04, 9):
        phones = (
            Phone("aa", 0.4 + offset, 0.6 + offset),
            Phone("m", 0.6 + offset, 0.66 + offset),
            Phone("aa", 0.66 + offset, 0.9 + offset),
        )
        visemes, mouth, _ = mouth_tracks(phones, 40, FPS)
        middle = slice(13, 18)
        assert mouth[middle].min() < 0.02
        assert visemes[middle, 1].max() > 0.9
        assert mouth.max() > 0.9


def test_nods_follow_the_ends_of_user_phrases(talk: Dialogue) -> None:
    performance = perform(talk, 7, FRAMES)
    pitch = performance.head[:, 1]
    ends = [t for t in phrase_ends(talk.user) if t < 38]
    assert len(ends) >= 4
    last = [max(p.end for p in talk.user.phones if p.start < t) for t in ends]
    np.testing.assert_allclose(ends, last, atol=0.12)
    nods = nod_times(talk)
    checked = 0
    for end in ends:
        assert any(-0.8 <= n - (end + NOD_DELAY) < 1e-6 for n in nods)
        start = round((end + NOD_DELAY) * FPS)
        window = slice(start, start + 16)
        if end + NOD_DELAY in nods and (performance.state[window] < TALKING).all():
            assert 3.5 < pitch[window].max() - pitch[start] < 7.5
            checked += 1
    assert checked >= 2


def test_nods_are_causal(talk: Dialogue) -> None:
    """What the user says later changes no earlier nod."""
    cut = 20 * 16_000
    samples = talk.user.samples.copy()
    samples[cut:] = 0
    early = Lane(samples, tuple(p for p in talk.user.phones if p.end < 20.0))
    full = [n for n in nod_times(talk) if n < 20.0]
    assert full == [n for n in nod_times(Dialogue(talk.agent, early)) if n < 20.0]


def test_head_moves_little_between_nods(talk: Dialogue) -> None:
    performance = perform(talk, 7, FRAMES)
    assert np.abs(performance.head[:, [0, 2]]).max() < 4.0
    assert np.abs(np.diff(performance.head, axis=0)).max() < 2.0
