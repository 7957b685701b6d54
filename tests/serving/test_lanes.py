"""The agent's queue of speeches and the user's jitter buffer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from streamavatar.errors import UserError
from streamavatar.serving.lanes import AgentLane, AgentTick, LaneFull, UserLane

Int16 = NDArray[np.int16]
Make = Callable[..., Int16]
TICK, USER_TICK = 960, 640


def agent_lane(gaps: list[int] | None = None, **changes: Any) -> AgentLane:
    settings: dict[str, Any] = {"capacity": 30.0, "prebuffer": 0.12, "timeout": 2.0}
    return AgentLane(25, **(settings | changes), gap=(gaps if gaps is not None else []).append)


def user_lane(gaps: list[int] | None = None) -> UserLane:
    return UserLane(25, gap=(gaps if gaps is not None else []).append)


def said(ticks: list[AgentTick]) -> Int16:
    """Speech in ticks, without the silence around it."""
    return np.concatenate([tick.samples[: tick.count] for tick in ticks])


# the agent's lane ------------------------------------------------------------------------------------


def test_finished_speech_begins_at_once_and_keeps_every_sample(speech: Make) -> None:
    lane = agent_lane()
    samples = speech(0.1)
    lane.push(samples, 24_000, None, 0.0)
    lane.end()
    ticks = lane.take(12)
    assert [tick.count for tick in ticks] == [960, 960, 480, *[0] * 9]
    assert not ticks[2].samples[480:].any()
    np.testing.assert_array_equal(said(ticks), samples)
    assert lane.queued_seconds == 0


def test_fast_speech_begins_at_once(speech: Make) -> None:
    lane = agent_lane()
    lane.push(speech(2.0), 24_000, None, 0.0)
    assert [tick.count for tick in lane.take(12)] == [960] * 12


def test_unfinished_speech_waits_for_the_prebuffer(speech: Make) -> None:
    lane = agent_lane()
    lane.push(speech(0.15), 24_000, None, 0.0)
    assert not any(tick.speech for tick in lane.take(12))
    lane.push(speech(0.15), 24_000, None, 0.1)
    ticks = lane.take(12)
    assert [bool(tick.speech) for tick in ticks] == [False] * 8 + [True] * 4  # 180 ms are there beyond the 120
    assert lane.queued_seconds == pytest.approx(0.14)


@pytest.mark.parametrize("phase", [0, 3, 8, 11])
def test_real_time_source_is_never_starved(speech: Make, phase: int) -> None:
    """A speech that arrives exactly as fast as it is spoken, and 80 ms late now and then, has no pause."""
    lane, samples, ticks = agent_lane(), speech(6.0), []
    late = 0
    for n in range(6 * 25):
        if n % 20 == 5:
            late = 2 * TICK
        elif n % 20 == 7:
            late = 0
        begin = sum(s.received for s in lane._speeches) if lane.speech_id else 0
        lane.push(samples[begin : (n + 1) * TICK - late], 24_000, None, n * 0.04)
        if n % 12 == phase:
            ticks += lane.take(12)
    lane.end()
    ticks += lane.take(24)
    spoken = [i for i, tick in enumerate(ticks) if tick.speech]
    assert spoken == list(range(spoken[0], spoken[-1] + 1))
    np.testing.assert_array_equal(said(ticks), samples)


def test_slow_source_pauses_between_words(speech: Make) -> None:
    lane = agent_lane()
    word = speech(0.2)
    pause = np.zeros(1200, np.int16)
    first = np.concatenate((speech(0.48 + 0.12), word, pause, word[:2400]))  # 0.95 s
    lane.push(first, 24_000, None, 0.0)
    ticks = lane.take(12) + lane.take(12)
    cut = len(first) - 2400  # the word that has only begun waits with the rest of it
    assert cut - 1200 <= len(said(ticks)) <= cut
    starved = [i for i, tick in enumerate(ticks) if tick.starved]
    assert starved == list(range(24 - len(starved), 24))
    assert starved
    lane.push(np.concatenate((word[2400:], speech(1.0))), 24_000, None, 0.0)
    lane.end()
    ticks += lane.take(48)
    everything = np.concatenate((first, word[2400:], speech(1.0)))
    np.testing.assert_array_equal(said(ticks), everything)


def test_without_a_gap_between_words_it_fades(speech: Make) -> None:
    lane = agent_lane()
    lane.push(speech(0.65), 24_000, None, 0.0)
    lane.take(12)
    ticks = lane.take(12)
    spoken = said(ticks)
    assert len(spoken) == round(0.17 * 24_000)
    assert abs(int(spoken[-1])) < 100 < 2000 <= abs(int(spoken[-200]))


def test_speeches_in_order_each_from_a_tick_of_its_own(speech: Make) -> None:
    lane = agent_lane()
    ids = []
    for seconds in (0.1, 0.2, 0.06):
        lane.push(speech(seconds), 24_000, None, 0.0)
        ids.append(lane.speech_id)
        lane.end()
    assert ids == [1, 2, 3]
    ticks = lane.take(12)
    assert [tick.speech.id if tick.speech else 0 for tick in ticks] == [1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 0, 0]


def test_full_lane_pushes_back_and_takes_nothing(speech: Make) -> None:
    lane = agent_lane(capacity=1.0)
    lane.push(speech(0.9), 24_000, 0, 0.0)
    with pytest.raises(LaneFull) as full:
        lane.push(speech(0.2), 24_000, 21_600, 0.0)
    assert full.value.retry_after == pytest.approx(0.1)
    assert lane.queued_seconds == pytest.approx(0.9)
    lane.take(12)
    lane.push(speech(0.2), 24_000, 21_600, 0.5)  # the same index again: it was not taken before
    assert lane.queued_seconds == pytest.approx(0.62)
    with pytest.raises(UserError, match="at most 1 s"):
        lane.push(speech(1.1), 24_000, None, 0.5)


def test_gap_becomes_silence_and_repeat_is_dropped(speech: Make) -> None:
    gaps: list[int] = []
    lane = agent_lane(gaps)
    samples = speech(0.4)
    lane.push(samples[:2400], 24_000, 0, 0.0)
    lane.push(samples[1200:3600], 24_000, 1200, 0.0)  # half of it again
    lane.push(samples[:600], 24_000, 0, 0.0)  # all of it again
    lane.push(samples[4800:9600], 24_000, 4800, 0.0)  # 1200 are lost
    lane.end()
    heard = said(lane.take(12))
    expected = samples.copy()
    expected[3600:4800] = 0
    np.testing.assert_array_equal(heard, expected)
    assert gaps == [1200]


def test_index_goes_on_after_a_reconnect_and_may_begin_anew(speech: Make) -> None:
    gaps: list[int] = []
    lane = agent_lane(gaps)
    lane.push(speech(0.2), 24_000, 0, 0.0)
    lane.push(speech(0.2), 24_000, 4800, 5.0)
    lane.push(speech(0.2), 24_000, 10**15, 5.0)  # far away: counted anew, nothing is put in
    lane.push(speech(0.2), 24_000, 0, 5.0)
    assert gaps == []
    assert lane.queued_seconds == pytest.approx(0.8)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
def test_other_rates(rate: int) -> None:
    lane = agent_lane()
    tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)).astype(np.int16)
    for piece in np.array_split(tone, 37):
        lane.push(piece, rate, None, 0.0)
    lane.end()
    heard = said(lane.take(36)).astype(float)
    assert abs(len(heard) - 24_000) <= 2
    expected = 8000 * np.sin(2 * np.pi * 440 * np.arange(len(heard)) / 24_000)
    assert np.abs(heard - expected)[500:-500].max() < 120


@pytest.mark.parametrize("samples", [np.zeros(4, np.float32), np.zeros((2, 2), np.int16)], ids=["float", "stereo"])
def test_refuses_what_is_not_mono_int16(samples: Int16) -> None:
    with pytest.raises(UserError, match="mono int16"):
        agent_lane().push(samples, 24_000, None, 0.0)


@pytest.mark.parametrize("rate", [0, -5, 7_999, 11_111, 10**9])
def test_refuses_odd_rates(rate: int) -> None:
    with pytest.raises(UserError, match="Hz"):
        agent_lane().push(np.zeros(4, np.int16), rate, None, 0.0)
    with pytest.raises(UserError, match="Hz"):
        user_lane().push(np.zeros(4, np.int16), rate, None)


def test_peek_is_what_comes_next(speech: Make) -> None:
    lane = agent_lane()
    rng = np.random.default_rng(1)
    for _ in range(6):
        lane.push(speech(rng.uniform(0.05, 0.8), seed=int(rng.integers(99))), 24_000, None, 0.0)
        lane.end()
    heard = []
    while lane.queued_seconds:
        lane.take(int(rng.integers(1, 13)))
        ahead = lane.peek(2)
        heard.append(bool(ahead.any()))
        ticks = lane.take(2)
        np.testing.assert_array_equal(ahead, np.concatenate([tick.samples for tick in ticks]))
    assert any(heard)


def test_peek_of_a_speech_that_still_waits_is_silent(speech: Make) -> None:
    lane = agent_lane()
    lane.push(speech(0.1), 24_000, None, 0.0)
    assert not lane.peek(2).any()


def test_clear_returns_what_waited(speech: Make) -> None:
    lane = agent_lane()
    for _ in range(3):
        lane.push(speech(0.6), 24_000, None, 0.0)
        lane.end()
    lane.take(12)
    assert [speech.id for speech in lane.clear(0.0, discard=False)] == [1, 2, 3]
    assert lane.queued_seconds == 0
    assert not any(tick.speech for tick in lane.take(12))


def test_rest_of_a_discarded_speech_is_dropped_until_it_ends(speech: Make) -> None:
    lane = agent_lane()
    lane.push(speech(0.5), 24_000, None, 0.0)
    lane.clear(0.0, discard=True)
    lane.push(speech(0.5), 24_000, None, 0.5)
    assert lane.queued_seconds == 0
    lane.end()
    lane.push(speech(0.5), 24_000, None, 0.6)
    assert (lane.queued_seconds, lane.speech_id) == (pytest.approx(0.5), 2)
    lane.clear(0.6, discard=True)
    lane.push(speech(0.5), 24_000, None, 2.0)  # it never said that it ended, but was quiet for a second
    assert lane.speech_id == 3


def test_speech_that_is_never_ended_ends_by_itself(speech: Make) -> None:
    lane = agent_lane()
    lane.push(speech(0.1), 24_000, None, 0.0)
    lane.expire(1.9)
    assert lane.open
    lane.expire(2.1)
    assert not lane.open
    assert len(said(lane.take(12))) == 2400


def test_long_speech_that_was_pushed_at_once_stays_open_until_it_runs_dry(speech: Make) -> None:
    lane = agent_lane()
    lane.push(speech(5.0), 24_000, None, 0.0)
    for n in range(16):
        lane.take(12)
        lane.expire(n * 0.48)
        assert bool(lane.open) == (n * 0.48 <= 10 * 0.48 + 2.0 - 0.48)


# the user's lane -------------------------------------------------------------------------------------


def test_user_lane_buffers_before_it_plays(speech: Make) -> None:
    lane = user_lane()
    voice = speech(0.2, 16_000)
    heard = []
    for n in range(10):
        lane.push(voice[n * 320 : (n + 1) * 320], 16_000, None)
        if n % 2:
            heard.append(lane.tick())
    np.testing.assert_array_equal(np.concatenate(heard), voice)


def test_user_lane_never_waits() -> None:
    lane = user_lane()
    assert not lane.tick().any()
    assert lane.take(12).shape == (12 * USER_TICK,)


def test_each_tick_is_heard_once_newest_last(speech: Make) -> None:
    lane = user_lane()
    voice = speech(2.0, 16_000)
    windows = []
    for n in range(50):
        lane.push(voice[n * 640 : (n + 1) * 640], 16_000, None)
        lane.tick()
        if n in (4, 16):
            windows.append(lane.take(12))
    assert not windows[0][: 7 * 640].any()
    np.testing.assert_array_equal(np.concatenate((windows[0][7 * 640 :], windows[1])), voice[: 17 * 640])
    np.testing.assert_array_equal(lane.take(12), voice[38 * 640 :])  # 33 came meanwhile: the newest 12


def lag(lane: UserLane) -> float:
    return len(lane._samples) / 2 / 16_000


def test_late_user_audio_is_dropped(speech: Make) -> None:
    """The network stalls for half a second and then delivers all of it: the lane is live again soon."""
    lane = user_lane()
    for n in range(100):
        if not 20 <= n < 32:
            size = 13 * 640 if n == 32 else 640
            lane.push(speech(size / 16_000, 16_000), 16_000, None)
        lane.tick()
    assert lag(lane) <= 0.08
    assert lane.late > 0.3 * 16_000


@pytest.mark.parametrize("speed", [0.1, 0.99, 1.01, 10])
def test_clock_of_the_client_is_wrong(speech: Make, speed: float) -> None:
    lane = user_lane()
    lags = []
    owed = 0.0
    for _ in range(1000):
        owed += 640 * speed
        lane.push(speech(int(owed) / 16_000, 16_000), 16_000, None)
        owed -= int(owed)
        lane.tick()
        lags.append(lag(lane))
    assert max(lags) <= 1.0
    if speed < 2:
        assert max(lags) <= 0.13


def test_user_packets_of_100_ms_lose_nothing(speech: Make) -> None:
    lane = user_lane()
    for n in range(100):
        if n % 5 in (0, 2):
            lane.push(speech(0.1, 16_000), 16_000, None)
        lane.tick()
    assert lane.late == 0


def test_user_gaps_are_counted(speech: Make) -> None:
    gaps: list[int] = []
    lane = user_lane(gaps)
    lane.push(speech(0.1, 48_000), 48_000, 0)
    lane.push(speech(0.1, 48_000), 48_000, 9600)
    assert gaps == [1600]
