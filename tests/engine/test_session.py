"""What a session promises: causality, independence of how audio is cut, isolation, clean ends, constant memory."""

from __future__ import annotations

from collections.abc import Iterable
from time import perf_counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamavatar.avatar import Avatar
from streamavatar.engine import Output, run_lanes
from streamavatar.errors import UserError

CHUNK = 12 * 640


def frames_of(outputs: Iterable[Output]) -> np.ndarray:
    return np.concatenate([output.frames for output in outputs])


def whole(avatar: Avatar, face: np.ndarray, agent: np.ndarray, user: np.ndarray, seed: int = 0) -> list[Output]:
    session = avatar.session(face, seed=seed)
    return [*session.push(agent=agent, user=user), *session.finish()]


def test_length_and_audio(tiny: Avatar, face: np.ndarray, voice: np.ndarray) -> None:
    outputs = whole(tiny, face, voice, voice[: len(voice) // 2])
    frames = frames_of(outputs)
    assert frames.shape == (51, 64, 64, 3)  # 2 s and a bit: the last frame is begun by its audio
    assert frames.dtype == np.uint8
    audio = np.concatenate([output.audio for output in outputs])
    assert len(audio) == 51 * 640
    np.testing.assert_array_equal(audio[: len(voice)], voice)
    assert not audio[len(voice) :].any()
    assert [output.chunk for output in outputs] == [1, 2, 3, 4, 5]


def test_first_chunk_waits_for_its_audio_and_two_frames_more(tiny: Avatar, face: np.ndarray) -> None:
    session = tiny.session(face, lanes=["agent"])
    silence = np.zeros(CHUNK + 2 * 640 - 1, np.float32)
    assert not list(session.push(agent=silence))
    assert len(list(session.push(agent=silence[:1]))) == 1


def test_open_lanes_are_waited_for(tiny: Avatar, face: np.ndarray, voice: np.ndarray) -> None:
    session = tiny.session(face)
    assert not list(session.push(agent=voice))
    session.close_lane("user")
    assert len(list(session.push())) == 4  # 50 of 51 ticks are whole; the fifth chunk waits for more


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 32123), max_size=12), cuts_user=st.lists(st.integers(0, 32123), max_size=12))
def test_cutting_the_audio_changes_nothing(
    tiny: Avatar, face: np.ndarray, voice: np.ndarray, cuts: list[int], cuts_user: list[int]
) -> None:
    user = voice[::-1].copy()
    session = tiny.session(face)
    outputs = []
    for cut in sorted({*cuts, *cuts_user, len(voice)}):
        begin = getattr(session, "pushed", 0)
        outputs += session.push(agent=voice[begin:cut], user=user[begin:cut])
        session.pushed = cut  # type: ignore[attr-defined]
    outputs += session.finish()
    np.testing.assert_array_equal(frames_of(outputs), frames_of(whole(tiny, face, voice, user)))


def test_unread_outputs_come_later(tiny: Avatar, face: np.ndarray, voice: np.ndarray) -> None:
    session = tiny.session(face)
    session.push(agent=voice, user=voice)
    first = next(session.push())
    assert first.chunk == 1
    rest = list(session.finish())
    assert [output.chunk for output in rest] == [2, 3, 4, 5]


@pytest.mark.parametrize("lane", ["agent", "user"])
def test_later_audio_never_changes_earlier_frames(tiny: Avatar, face: np.ndarray, voice: np.ndarray, lane: str) -> None:
    lanes = {"agent": voice, "user": voice[::-1].copy()}
    before = whole(tiny, face, **lanes)
    for chunk in (1, 2, 3):
        changed = {name: samples.copy() for name, samples in lanes.items()}
        changed[lane][chunk * CHUNK + 2 * 640 :] *= -0.3
        after = whole(tiny, face, **changed)
        np.testing.assert_array_equal(frames_of(before[:chunk]), frames_of(after[:chunk]))
        assert (frames_of(before[chunk:]) != frames_of(after[chunk:])).any()


def test_two_sessions_do_not_touch_each_other(tiny: Avatar, face: np.ndarray, voice: np.ndarray) -> None:
    alone = [whole(tiny, face, voice, voice, seed) for seed in (1, 2)]
    sessions = [tiny.session(face, seed=seed) for seed in (1, 2)]
    together: list[list[Output]] = [[], []]
    for begin in range(0, len(voice), 3000):
        for session, outputs in zip(sessions, together, strict=True):
            part = voice[begin : begin + 3000]
            outputs += session.push(agent=part, user=part)
    for session, outputs, expected in zip(sessions, together, alone, strict=True):
        outputs += session.finish()
        np.testing.assert_array_equal(frames_of(outputs), frames_of(expected))
    assert (frames_of(alone[0]) != frames_of(alone[1])).any()


def test_agent_audio_comes_back_at_its_own_rate(tiny: Avatar, face: np.ndarray) -> None:
    tone = np.sin(np.arange(44100) / 20).astype(np.float32)
    session = tiny.session(face, agent_rate=44100, lanes=["agent"])
    audio = np.concatenate([output.audio for output in [*session.push(agent=tone), *session.finish()]])
    np.testing.assert_array_equal(audio, tone)


def test_memory_of_a_session_is_constant(tiny: Avatar, face: np.ndarray) -> None:
    session = tiny.session(face)
    second = np.zeros(16000, np.float32)
    sizes = []
    for _ in range(30):
        for _ in session.push(agent=second, user=second):
            pass
        lanes = session._lanes.values()
        sizes.append(sum(len(track.samples) for lane in lanes for track in (lane._own, lane._heard)))
    assert max(sizes[15:]) <= max(sizes[:15])
    assert session._maker._cache.keys.shape[3] == (1 + 3 + 6) * 4


def test_run_lanes_cuts_and_fills(tiny: Avatar, face: np.ndarray, voice: np.ndarray) -> None:
    for seconds, frames in ((0.04, 1), (1.0, 25), (3.0, 75)):
        shown = frames_of(run_lanes(tiny.session(face), {"agent": voice}, seconds))
        assert len(shown) == frames


@pytest.mark.parametrize(
    ("samples", "message"),
    [(np.full(10, np.nan), "NaN"), (np.zeros((10, 2)), "mono"), (np.zeros(10, np.int16), "float")],
)
def test_bad_samples_are_refused_and_nothing_is_lost(
    tiny: Avatar, face: np.ndarray, voice: np.ndarray, samples: np.ndarray, message: str
) -> None:
    session = tiny.session(face, lanes=["agent"])
    outputs = list(session.push(agent=voice))
    with pytest.raises(UserError, match=message):
        session.push(agent=samples)
    outputs += session.finish()
    reference = tiny.session(face, lanes=["agent"])
    expected = [*reference.push(agent=voice), *reference.finish()]
    np.testing.assert_array_equal(frames_of(outputs), frames_of(expected))


def test_a_bad_lane_leaves_the_other_untouched(tiny: Avatar, face: np.ndarray, voice: np.ndarray) -> None:
    session = tiny.session(face)
    with pytest.raises(UserError):
        session.push(agent=voice, user=np.full(10, np.nan))
    outputs = [*session.push(agent=voice, user=voice), *session.finish()]
    np.testing.assert_array_equal(frames_of(outputs), frames_of(whole(tiny, face, voice, voice)))


def test_work_begins_at_push_and_poll_does_not_wait(tiny: Avatar, face: np.ndarray, voice: np.ndarray) -> None:
    session = tiny.session(face)
    session.push(agent=voice, user=voice)
    outputs: list[Output] = []
    deadline = perf_counter() + 30
    while len(outputs) < 4 and perf_counter() < deadline:
        outputs += session.poll()
    assert not session.poll()
    outputs += session.finish()
    np.testing.assert_array_equal(frames_of(outputs), frames_of(whole(tiny, face, voice, voice)))


def test_bad_calls(tiny: Avatar, face: np.ndarray) -> None:
    with pytest.raises(UserError, match="lane"):
        tiny.session(face, lanes=["listener"])
    with pytest.raises(UserError, match="lane"):
        tiny.session(face, lanes=[])
    with pytest.raises(UserError, match="ada"):
        tiny.session("nobody")
    with pytest.raises(UserError, match="does not exist"):
        tiny.session("nobody.png")
    with pytest.raises(UserError, match="samples per"):
        tiny.session(face, agent_rate=16001)
    session = tiny.session(face, lanes=["agent"])
    with pytest.raises(UserError, match="closed"):
        session.push(user=np.zeros(10, np.float32))
    assert list(tiny.session(face).finish()) == []


def test_telemetry(tiny: Avatar, face: np.ndarray, voice: np.ndarray) -> None:
    session = tiny.session(face, lanes=["agent"])
    list(session.push(agent=voice))
    summary = session.telemetry.summary()
    assert set(summary) == {"audio", "transformer", "decode", "chunk"}
    assert session.telemetry.first_frame is not None
    for figures in summary.values():
        assert 0 < figures["p50"] <= figures["p99"] <= figures["total"]
