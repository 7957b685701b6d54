"""The media clock and the pacer."""

from __future__ import annotations

import pytest

from streamavatar.serving.clock import MediaClock, Pacer


def test_time_stamps_share_one_origin() -> None:
    clock = MediaClock(25)
    for slot in (0, 1, 7, 1_000_003):
        assert clock.seconds(slot) == pytest.approx(slot * 0.04)
        assert clock.video_pts(slot) == round(90_000 * slot / 25)
        assert clock.audio_pts(slot) / 48_000 == pytest.approx(clock.video_pts(slot) / 90_000, abs=1e-5)
    assert clock.tick_samples(24_000) == 960


def test_pacer_does_not_drift() -> None:
    pacer = Pacer(MediaClock(25), 5.0)
    now = 5.0
    for slot in range(10_000):
        now = pacer.deadline + (slot % 3) * 0.004  # the loop is always a little late
        assert pacer.take(now) == (slot, 0)
    assert now == pytest.approx(5.0 + 9_999 * 0.04, abs=0.009)


def test_early_timer_is_on_time() -> None:
    pacer = Pacer(MediaClock(25), 5.0)
    pacer.take(5.0)
    assert pacer.take(5.0399) == (1, 0)


def test_late_within_the_slot_is_caught_up_without_a_burst() -> None:
    pacer = Pacer(MediaClock(25), 0.0)
    pacer.take(0.0)
    assert pacer.take(0.04 + 0.035) == (1, 0)
    assert pacer.deadline == pytest.approx(0.095)  # half a tick later, not 5 ms
    assert pacer.take(0.095) == (2, 0)
    assert pacer.deadline == pytest.approx(0.12)  # and on time again


def test_slots_that_passed_are_skipped_not_sent_at_once() -> None:
    pacer = Pacer(MediaClock(25), 0.0)
    pacer.take(0.0)
    assert pacer.take(0.33) == (8, 7)
    assert pacer.deadline == pytest.approx(0.36)
    assert pacer.take(0.36) == (9, 0)
