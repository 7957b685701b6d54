"""A whole session in virtual time: the clock, the engine's calls, events, and what is left afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("aiortc", reason="the extra 'live' is not installed")

from session_recorder import PICTURE

from streamavatar.errors import UserError
from streamavatar.serving.live_session import LaneFull, LiveSession, LiveSettings

Make = Callable[..., NDArray[np.int16]]
Run = Callable[[Coroutine[Any, Any, Any]], Any]


def test_a_minute_is_steady(virtual: Run, recorder: Any, frame_number: Any) -> None:
    rec = recorder()

    async def work() -> None:
        session = await rec.start()
        await asyncio.sleep(60)
        await session.close("done")

    virtual(work())
    assert rec.slots == list(range(len(rec.slots)))
    assert 1500 <= len(rec.slots) <= 1501
    np.testing.assert_allclose(np.diff(rec.times), 0.04, atol=1e-6)
    numbers = [frame_number(frame) for frame in rec.frames[2:]]  # two slots of the picture, until the first chunk
    assert numbers == list(range(len(numbers)))
    assert rec.frames[0][0, :2].tolist() != [1, 0]
    stats = rec.of("metrics")[-1]
    assert stats["underrun_total"] == {"repeat": 0, "freeze": 0, "loop": 0}
    assert len(rec.of("metrics")) == 61
    assert stats["lead_seconds"] == pytest.approx(0.44 - 0.04, abs=0.05)
    assert stats["rtf"] == pytest.approx(0.07 / 0.48, abs=1e-3)
    assert stats["first_frame_seconds"] == pytest.approx(0.08)


def test_frames_and_sound_belong_together(virtual: Run, recorder: Any, speech: Make) -> None:
    rec = recorder()
    samples = speech(2.0)

    async def work() -> None:
        session = await rec.start()
        for piece in np.split(samples, 40):
            session.push_agent(piece)
        session.end_agent()
        await asyncio.sleep(5)
        await session.close("done")

    virtual(work())
    bright = [bool(frame[8, 8] > 128) for frame in rec.frames]
    loud = [bool(sound.any()) for sound in rec.sound]
    assert bright == loud
    assert sum(loud) == 50
    begin = int(np.flatnonzero(rec.heard)[0])
    np.testing.assert_array_equal(rec.heard[begin : begin + len(samples)], samples)
    (started,), (ended,) = rec.of("agent.speak_started"), rec.of("agent.speak_ended")
    assert started["time"] == pytest.approx(begin / 24_000)
    assert ended["time"] == pytest.approx(started["time"] + 49 * 0.04)
    assert (ended["speech"], ended["playback_position"], ended["interrupted"]) == (1, 2.0, False)
    assert [event["state"] for event in rec.of("agent.state_updated")] == ["talking", "idle"]


def test_late_chunk_freezes_speech_and_loses_nothing(virtual: Run, recorder: Any, speech: Make) -> None:
    rec = recorder(slow={3: 0.7, 8: 0.6})
    samples = speech(2.0)

    async def work() -> None:
        session = await rec.start()
        session.push_agent(samples)
        session.end_agent()
        await asyncio.sleep(8)
        await session.close("done")

    virtual(work())
    assert rec.slots == list(range(len(rec.slots)))  # time stamps never stop
    silent = np.array([not sound.any() for sound in rec.sound])
    frozen = [n for n in range(1, len(silent)) if silent[n] and not silent[: n + 1].all() and not silent[n:].all()]
    assert 5 <= len(frozen) <= 7
    assert all((rec.frames[n] == rec.frames[frozen[0] - 1]).all() for n in frozen)
    played = rec.heard.reshape(-1, 960)[~silent].ravel()
    np.testing.assert_array_equal(played, samples)
    assert rec.of("metrics")[-1]["underrun_total"] == {"repeat": 1, "freeze": 1, "loop": 0}
    assert [event["state"] for event in rec.of("agent.state_updated")] == ["talking", "idle"]  # a freeze is no pause


def test_silence_of_a_recording_is_no_talking(virtual: Run, recorder: Any, speech: Make) -> None:
    """Before the first word, in a long pause and after the last word nobody talks; between words somebody does."""
    rec = recorder()
    parts = [
        np.zeros(48_000, np.int16),
        speech(0.4),
        np.zeros(4_800, np.int16),
        speech(0.4),
        np.zeros(24_000, np.int16),
    ]
    samples = np.concatenate([*parts, speech(0.4), np.zeros(24_000, np.int16)])

    async def work() -> None:
        session = await rec.start()
        session.push_agent(samples)
        session.end_agent()
        await asyncio.sleep(7)
        await session.close("done")

    virtual(work())
    (started,), changes = rec.of("agent.speak_started"), rec.of("agent.state_updated")
    assert [event["state"] for event in changes] == ["talking", "idle"] * 2
    assert [event["time"] - started["time"] for event in changes] == pytest.approx([2.0, 3.36, 4.0, 4.76], abs=0.041)
    assert rec.of("agent.speak_ended")[0]["playback_position"] == len(samples) / 24_000


def test_late_event_loop_skips_slots_and_sends_no_burst(
    virtual: Run, recorder: Any, speech: Make, frame_number: Any
) -> None:
    rec = recorder()
    samples = speech(3.0)

    async def work() -> None:
        session = await rec.start()
        session.push_agent(samples)
        session.end_agent()
        loop: Any = asyncio.get_running_loop()
        await asyncio.sleep(2.01)
        loop.now += 0.33  # something blocks the loop
        await asyncio.sleep(5)
        await session.close("done")

    virtual(work())
    steps = np.diff(rec.slots)
    assert sorted(steps)[-2:] == [1, 8]
    assert np.diff(rec.times).min() >= 0.02 - 1e-6
    late = np.array(rec.times) - rec.times[0] - 0.04 * np.array(rec.slots)
    assert late.min() > -1e-6
    assert late.max() < 0.04  # every slot goes out within its own time
    numbers = [frame_number(frame) for frame in rec.frames[2:]]
    assert (np.diff(numbers) >= 0).all()
    assert (np.diff(numbers) <= 1).all()  # nothing of what was made is left out
    np.testing.assert_array_equal(rec.heard[rec.heard != 0], samples)
    stats = rec.of("metrics")[-1]
    assert (stats["underrun_total"]["loop"], stats["skipped_ticks"]) == (1, 7)


def test_speech_ten_times_too_slow_loses_nothing_and_stalls_nobody(virtual: Run, recorder: Any, speech: Make) -> None:
    rec = recorder()
    samples = speech(1.0)

    async def work() -> None:
        session = await rec.start()
        for piece in np.split(samples, 25):
            session.push_agent(piece)
            await asyncio.sleep(0.4)
        session.end_agent()
        await asyncio.sleep(2)
        await session.close("done")

    virtual(work())
    assert rec.slots == list(range(len(rec.slots)))
    (ended,) = rec.of("agent.speak_ended")
    assert (ended["playback_position"], ended["interrupted"]) == (1.0, False)
    stats = rec.of("metrics")[-1]
    assert stats["underrun_total"] == {"repeat": 0, "freeze": 0, "loop": 0}
    assert stats["starved_ticks"] > 100
    played = rec.heard[rec.heard != 0]
    assert len(played) > 0.85 * len(samples)  # each pause fades the last 5 ms before it


def test_lane_full_is_told(virtual: Run, recorder: Any, speech: Make) -> None:
    rec = recorder()

    async def work() -> None:
        session = await rec.start(LiveSettings(agent_buffer_seconds=2.0))
        assert session.push_agent(speech(1.9)) == pytest.approx(1.9)
        assert session.speech_id == 1
        with pytest.raises(LaneFull):
            session.push_agent(speech(0.5))
        await session.close("done")

    virtual(work())
    assert rec.of("audio_buffer.full") == [
        {"type": "audio_buffer.full", "time": 0.0, "lane": "agent", "retry_after": 0.4}
    ]


def test_gaps_and_repeats_are_told(virtual: Run, recorder: Any, speech: Make) -> None:
    rec = recorder()

    async def work() -> None:
        session = await rec.start()
        session.push_user(speech(0.1, 16_000), index=0)
        session.push_user(speech(0.1, 16_000), index=3200)
        session.push_agent(speech(0.1), index=0)
        session.push_agent(speech(0.1), index=1200)
        stats = session.stats()
        assert stats["lost_samples"] == {"agent": 0, "user": 1600}
        assert stats["repeated_samples"] == {"agent": 1200, "user": 0}
        await session.close("done")

    virtual(work())
    assert [(event["lane"], event["samples"]) for event in rec.of("audio_buffer.gap")] == [("user", 1600)]


def test_mouth_follows_within_a_lead_and_a_chunk(virtual: Run, recorder: Any, speech: Make) -> None:
    def delay(lead: float | None) -> float:
        rec = recorder()

        async def work() -> float:
            session = await rec.start(LiveSettings(lead_seconds=lead))
            for n in range(6):
                await asyncio.sleep(1.53 + 0.11 * n)
                session.push_agent(speech(0.5))
                session.end_agent()
            await asyncio.sleep(2)
            stats = session.stats()
            await session.close("done")
            assert stats["underrun_total"]["repeat"] == 0
            return float(stats["speech_to_mouth_seconds"])

        return float(virtual(work()))

    assert delay(None) < 0.96
    assert delay(0.2) < delay(None) - 0.2


@pytest.mark.parametrize("phase", [0.0, 0.1, 0.3])
def test_phases_take_turns(virtual: Run, recorder: Any, phase: float, frame_number: Any) -> None:
    rec = recorder()

    async def work() -> None:
        session = await rec.start(phase=phase)
        await asyncio.sleep(3)
        await session.close("done")

    virtual(work())
    first = next(n for n, frame in enumerate(rec.frames) if frame[0, :2].tolist() == [1, 0])
    assert (rec.times[first] - phase + 1e-6) % 0.48 < 0.041
    assert rec.times[first] - rec.times[0] < 0.6


def test_dead_engine_ends_the_session_with_a_reason(virtual: Run, recorder: Any) -> None:
    rec = recorder()

    async def work() -> str:
        session = await rec.start()
        await asyncio.sleep(1)
        rec.engine.dead = "killed by signal 9"
        return str(await asyncio.wait_for(session.ended, 2))

    assert virtual(work()) == "the engine failed: killed by signal 9"
    (error,) = rec.of("error")
    assert (error["code"], error["retryable"]) == ("engine", True)
    assert rec.events[-1] | {"time": 0} == {
        "type": "session.state_updated",
        "time": 0,
        "state": "closed",
        "reason": "the engine failed: killed by signal 9",
    }


def test_close_ends_everything_also_twice_and_from_a_callback(virtual: Run, recorder: Any) -> None:
    rec = recorder(cost=0.3)

    async def work() -> None:
        session = await rec.start()
        await asyncio.sleep(0.5)
        await asyncio.gather(session.close("one"), session.close("two"))
        await session.close("three")
        assert session.ended.result() == "one"

    virtual(work())  # checks that no task is left
    assert rec.engine.calls[-1] == ("close", 0)
    assert [event["reason"] for event in rec.of("session.state_updated")] == ["one"]


def test_close_before_start(virtual: Run, recorder: Any, make_engine: Any) -> None:
    async def work() -> None:
        session = LiveSession(make_engine(), "a", PICTURE, seed=1, settings=LiveSettings(), on_event=lambda _: None)
        await session.close("never began")

    virtual(work())


def test_close_while_it_starts(virtual: Run, recorder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rec = recorder()

    async def slow(*arguments: Any) -> None:
        await asyncio.sleep(1)

    monkeypatch.setattr(rec.engine, "open", slow)

    async def work() -> None:
        session = LiveSession(rec.engine, "a", PICTURE, seed=1, settings=LiveSettings(), on_event=rec.events.append)
        begun = asyncio.create_task(session.start())
        await asyncio.sleep(0.5)
        await session.close("gone")
        with pytest.raises(UserError, match="closed while it began"):
            await begun

    virtual(work())
    assert rec.engine.calls == [("close", 0)] * 2


def test_failing_callback_does_not_stop_the_clock(virtual: Run, recorder: Any, speech: Make) -> None:
    rec = recorder()

    async def work() -> None:
        session = await rec.start()
        session._on_event = lambda event: 1 / 0
        session.push_agent(speech(0.2))
        await asyncio.sleep(1)
        assert not session.ended.done()
        await session.close("done")

    virtual(work())
    assert len(rec.slots) >= 25


def test_malformed_offers_are_refused(virtual: Run, recorder: Any) -> None:
    rec = recorder()
    cut = "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 0\r\na=rtpmap:0 PCMU/8000\r\n"

    async def work() -> None:
        session = await rec.start()
        for sdp in ("", "garbage", "v=0\r\nm=audio", "m=video 9 x 96\r\n" * 3, cut, cut[:-30], "\0" * 1000):
            with pytest.raises(UserError):
                await session.offer(sdp)
            with pytest.raises(UserError):
                await session.whep(sdp)
        with pytest.raises(UserError, match="offer first"):
            await session.add_candidate(None)
        assert not await session.drop_viewer("nobody")
        assert not session.connected
        await session.close("done")

    virtual(work())


def test_trace_has_what_happened(virtual: Run, recorder: Any, speech: Make) -> None:
    rec = recorder(slow={6: 0.9})

    async def work() -> dict[str, Any]:
        session = await rec.start()
        session.push_agent(speech(1.0))
        await asyncio.sleep(1.2)
        session.interrupt()
        await asyncio.sleep(3)
        trace = session.trace()
        await session.close("done")
        return trace

    names = {event["name"] for event in virtual(work())["traceEvents"]}
    assert {
        "chunk 1",
        "chunk 4",
        "idle",
        "speech 1 starts",
        "speech 1 ends",
        "interrupt",
        "late chunk: repeat",
        "talking",
    } <= names
