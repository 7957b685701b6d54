"""What is shown and heard, slot by slot, and what the engine is asked for; no time passes here."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from streamavatar.models.audio import AFTER
from streamavatar.serving.lanes import AgentLane, Speech, UserLane
from streamavatar.serving.playout import FADE_SECONDS, LOOK_AHEAD_TICKS, Ask, Playout, Tick

Int16 = NDArray[np.int16]
Make = Callable[..., Int16]
TICK, CHUNK = 960, 12
FADE = round(FADE_SECONDS * 24_000)


class Stage:
    """A playout with its lanes and an engine that answers when told to. Frames carry (chunk, frame)."""

    def __init__(self, lead: int = CHUNK) -> None:
        self.agent = AgentLane(25, capacity=30, prebuffer=0.12, timeout=2, gap=lambda _: None)
        self.user = UserLane(25, gap=lambda _: None)
        self.playout = Playout(self.agent, self.user, np.zeros((3, 2), np.uint8), CHUNK, lead)
        self.asks: list[Ask] = []
        self.rng = np.random.default_rng(5)

    def say(self, samples: Int16, end: bool = True) -> None:
        self.agent.push(samples, 24_000, None, 0.0)
        if end:
            self.agent.end()

    def make(self) -> None:
        """The engine makes all that was asked."""
        if ask := self.playout.ask():
            self.asks.append(ask)
        assert self.playout.made(self.asks[-1], frames(self.asks[-1].index))

    def slot(self, in_time: bool = True) -> Tick:
        self.user.push(self.rng.integers(-99, 99, 640).astype(np.int16), 16_000, None)
        self.user.tick()
        tick = self.playout.tick()
        if ask := self.playout.ask():
            self.asks.append(ask)
            if in_time:
                self.make()
        return tick

    def interrupt(self) -> list[Speech]:
        return self.playout.interrupt(self.agent.clear(0.0, discard=False))


def frames(index: int) -> NDArray[np.uint8]:
    return np.array([[[index, i]] * 3 for i in range(CHUNK)], np.uint8)


def number(tick: Tick) -> tuple[int, int]:
    return int(tick.frame[0, 0]), int(tick.frame[0, 1])


def heard(ticks: list[Tick]) -> Int16:
    return np.concatenate([tick.samples for tick in ticks])


def test_frames_come_in_order_with_their_sound(speech: Make) -> None:
    stage = Stage()
    samples = speech(3.0)
    stage.say(samples)
    stage.make()
    ticks = [stage.slot() for _ in range(80)]
    assert [number(tick) for tick in ticks] == [(1 + n // 12, n % 12) for n in range(80)]
    np.testing.assert_array_equal(heard(ticks)[: len(samples)], samples)
    assert not heard(ticks)[len(samples) :].any()
    assert {tick.kind for tick in ticks} == {"play"}
    assert [tick.begun for tick in ticks[:13]] == [1, *[0] * 11, 2]


def test_look_ahead_is_the_models() -> None:
    assert LOOK_AHEAD_TICKS == AFTER


def test_engine_gets_the_look_ahead(speech: Make) -> None:
    stage = Stage()
    samples = speech(3.0)
    stage.say(samples)
    stage.make()
    for _ in range(40):
        stage.slot()
    for ask in stage.asks[:4]:
        begin = (ask.index - 1) * CHUNK * TICK
        np.testing.assert_array_equal(ask.agent, samples[begin : begin + (CHUNK + 2) * TICK])


@pytest.mark.parametrize("lead", [1, 5, 12])
def test_lead_is_at_most_one_chunk(lead: int) -> None:
    stage = Stage(lead)
    stage.make()
    asked_with = {}
    for _ in range(60):
        before = len(stage.asks)
        stage.slot()
        if len(stage.asks) > before:
            asked_with[stage.asks[-1].index] = stage.playout.lead_ticks - CHUNK
        assert stage.playout.lead_ticks <= CHUNK + 11
    assert set(asked_with.values()) == {min(lead, 11)}


def test_late_in_silence_repeats_the_last_frame() -> None:
    stage = Stage()
    stage.make()
    ticks = [stage.slot(in_time=False) for _ in range(17)]
    assert [number(tick) for tick in ticks[11:]] == [(1, 11)] * 6
    assert [tick.kind for tick in ticks[12:]] == ["repeat"] * 5
    assert [tick.late for tick in ticks[12:]] == [True, *[False] * 4]
    stage.make()
    assert number(stage.slot()) == (2, 0)  # nothing was skipped
    assert stage.playout.counts.late == {"repeat": 1, "freeze": 0}
    assert stage.playout.counts.repeated_ticks == 5


def test_late_in_speech_freezes_both_and_goes_on(speech: Make) -> None:
    stage = Stage()
    samples = speech(1.0)
    stage.say(samples)
    stage.make()
    ticks = [stage.slot(in_time=False) for _ in range(15)]
    assert [tick.kind for tick in ticks[12:]] == ["freeze"] * 3
    assert not heard(ticks[12:]).any()
    stage.make()
    after = [stage.slot() for _ in range(15)]
    played = np.concatenate((heard(ticks[:12]), heard(after)))
    np.testing.assert_array_equal(played[: len(samples)], samples)  # every sample, in order
    assert stage.playout.counts.late == {"repeat": 0, "freeze": 1}


def test_speech_events_are_at_the_ticks_that_are_heard(speech: Make) -> None:
    stage = Stage()
    stage.make()
    stage.slot()
    stage.say(speech(0.1))
    stage.say(speech(0.2))
    ticks = [stage.slot() for _ in range(60)]
    events = {}
    for n, tick in enumerate(ticks):
        if tick.started:
            events[f"start {tick.started.id}"] = n
        for speech_ in tick.ended:
            events[f"end {speech_.id}"] = n
    begin = next(n for n, tick in enumerate(ticks) if tick.samples.any())
    assert events == {"start 1": begin, "end 1": begin + 2, "start 2": begin + 3, "end 2": begin + 7}


def test_end_that_comes_after_the_last_sample_ends_the_speech(speech: Make) -> None:
    stage = Stage()
    stage.say(speech(0.48 + 0.12), end=False)
    stage.make()
    ended = [tick.ended for tick in [stage.slot() for _ in range(40)]]
    assert not any(ended)
    stage.agent.end()
    assert [speech_.id for tick in [stage.slot() for _ in range(40)] for speech_ in tick.ended] == [1]


# barge-in --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 5, 11, 12, 13, 20])
def test_interrupt_fades_and_is_exact(speech: Make, slots: int) -> None:
    stage = Stage()
    samples = speech(3.0)
    stage.say(samples)
    stage.make()
    before = [stage.slot() for _ in range(slots)]
    (ended,) = stage.interrupt()
    assert ended.position == (slots * TICK + FADE) / 24_000
    after = [stage.slot() for _ in range(40)]
    played = heard(before + after)
    end = int(np.flatnonzero(played)[-1]) + 1
    assert end - ended.played in (0, -1)  # the very last sample of the fade is zero
    np.testing.assert_array_equal(played[: slots * TICK], samples[: slots * TICK])
    fade = np.abs(played[slots * TICK :][:FADE].astype(int))
    assert (fade <= np.abs(samples[slots * TICK :][:FADE].astype(int))).all()
    assert not any(tick.ended for tick in after)  # it was reported when it was interrupted


def test_chunk_on_screen_is_finished_and_the_next_is_made_again(speech: Make) -> None:
    stage = Stage()
    stage.say(speech(3.0))
    stage.make()
    for _ in range(17):
        stage.slot()
    first = stage.asks[-1]
    assert (first.index, first.spoken) == (3, True)
    stage.interrupt()
    ask = stage.playout.ask()
    assert ask is not None
    assert (ask.index, ask.again, ask.spoken) == (3, True, False)
    np.testing.assert_array_equal(ask.user, first.user)
    assert not stage.playout.made(first, frames(3))  # what was on its way is useless
    stage.asks.append(ask)
    stage.make()
    ticks = [stage.slot() for _ in range(10)]
    assert [number(tick) for tick in ticks] == [*[(2, n) for n in range(5, 12)], (3, 0), (3, 1), (3, 2)]
    assert [n for n, tick in enumerate(ticks) if tick.rested] == [7]


@pytest.mark.parametrize("slots", [1, 4, 11, 12, 13, 30])
def test_engine_is_asked_as_if_the_lane_had_ended_there(speech: Make, slots: int) -> None:
    """The asks that still count equal those of a session whose lane was truncated and that nobody interrupted.

    The chunk on screen was made before: its window agrees up to the last sample that was played. A fade that falls
    behind its end is heard, but is too short to be shown: the engine does not get it.
    """
    samples = speech(4.0)
    one, two = Stage(), Stage()
    one.say(samples)
    one.make()
    for _ in range(slots):
        one.slot()
    (ended,) = one.interrupt()
    one.make()
    for _ in range(50):
        one.slot()
    on_screen = -(-slots // CHUNK)
    two.say(samples[: min(ended.played, on_screen * CHUNK * TICK)])
    two.make()
    for _ in range(slots + 50):
        two.slot()
    kept = {ask.index: ask for ask in one.asks}
    assert sum(ask.again for ask in one.asks) == 1
    assert list(kept) == [ask.index for ask in two.asks]
    for ask in two.asks:
        np.testing.assert_array_equal(kept[ask.index].user, ask.user)
        played = ended.played - (ask.index - 1) * CHUNK * TICK
        size = None if ask.index > on_screen else max(0, played - FADE)
        np.testing.assert_array_equal(kept[ask.index].agent[:size], ask.agent[:size])


def test_interrupt_during_a_freeze(speech: Make) -> None:
    stage = Stage()
    stage.say(speech(3.0))
    stage.make()
    for _ in range(15):
        stage.slot(in_time=False)
    (ended,) = stage.interrupt()
    assert ended.played == CHUNK * TICK
    ask = stage.playout.ask()
    assert ask is not None
    assert (ask.index, ask.again, ask.spoken) == (2, True, False)
    stage.asks.append(ask)
    stage.make()
    assert not heard([stage.slot() for _ in range(30)]).any()


def test_interrupt_before_the_first_chunk(speech: Make) -> None:
    stage = Stage()
    stage.say(speech(1.0))
    first = stage.playout.ask()
    assert first is not None
    (ended,) = stage.interrupt()
    assert (ended.id, ended.played) == (1, 0)
    assert stage.playout.tick().kind == "wait"
    again = stage.playout.ask()
    assert again is not None
    assert (again.index, again.again) == (1, True)


def test_interrupt_of_what_only_the_look_ahead_holds(speech: Make) -> None:
    stage = Stage()
    stage.say(np.concatenate((np.zeros(CHUNK * TICK, np.int16), speech(1.0))))
    stage.make()
    stage.interrupt()
    assert not heard([stage.slot() for _ in range(30)]).any()
    assert not any(ask.spoken for ask in stage.asks[1:])
    assert stage.asks[1].again


def test_interrupt_in_the_silence_of_a_recording(speech: Make) -> None:
    """What was made ahead is silent and stays, but it is no longer part of the speech, whose position is final."""
    stage = Stage()
    stage.say(np.concatenate((np.zeros(5 * CHUNK * TICK, np.int16), speech(1.0))))
    stage.make()
    for _ in range(5):
        stage.slot()
    (ended,) = stage.interrupt()
    position = ended.position
    ticks = [stage.slot() for _ in range(3 * CHUNK)]
    assert ended.position == position == pytest.approx(5 * 0.04 + FADE_SECONDS)
    assert not any(tick.speech or tick.started or tick.ended for tick in ticks)
    assert stage.playout.counts.rollbacks == 0
    assert stage.interrupt() == []


def test_interrupt_without_speech_changes_nothing() -> None:
    stage = Stage()
    stage.make()
    stage.slot()
    assert stage.interrupt() == []
    assert stage.playout.ask() is None
    assert not stage.playout.interrupted


def test_all_that_waits_ends_too(speech: Make) -> None:
    stage = Stage()
    for _ in range(3):
        stage.say(speech(0.6))
    stage.make()
    for _ in range(4):
        stage.slot()
    ended = stage.interrupt()
    assert [(speech_.id, bool(speech_.played)) for speech_ in ended] == [(1, True), (2, False), (3, False)]


def test_talks_again_after_an_interruption(speech: Make) -> None:
    stage = Stage()
    stage.say(speech(3.0))
    stage.make()
    for _ in range(5):
        stage.slot()
    stage.interrupt()
    stage.slot()
    answer = speech(1.0, seed=9)
    stage.say(answer)
    ticks = [stage.slot() for _ in range(70)]
    begin = next(n for n, tick in enumerate(ticks) if tick.started)
    np.testing.assert_array_equal(heard(ticks[begin : begin + 25]), answer)
    assert [speech_.id for tick in ticks for speech_ in tick.ended] == [2]
