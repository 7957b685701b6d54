"""A session that is interrupted, in virtual time and on the real engine: what is heard, shown and made again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("aiortc", reason="the extra 'live' is not installed")

from session_recorder import Recorder, talk_to

from streamavatar.models.avatar import AvatarModel
from streamavatar.serving.engine_client import EngineClient, EngineSettings
from streamavatar.serving.live_session import LiveSession, LiveSettings
from streamavatar.serving.playout import FADE_SECONDS

Make = Callable[..., NDArray[np.int16]]
Run = Callable[[Coroutine[Any, Any, Any]], Any]
FADE = round(FADE_SECONDS * 24_000)


@pytest.mark.parametrize("cost", [0.07, 0.4])
def test_interrupt(virtual: Run, recorder: Any, speech: Make, cost: float) -> None:
    rec = recorder(cost=cost)
    samples = speech(6.0)
    told: dict[str, float] = {}

    async def work() -> None:
        session = await rec.start()
        session.push_agent(samples)
        await asyncio.sleep(2.5)
        told["at"] = asyncio.get_running_loop().time()
        told["position"] = session.interrupt()
        told["slots"] = len(rec.slots)
        assert session.state == "interrupting"
        await asyncio.sleep(0.3)
        session.push_agent(speech(1.0, seed=3))
        session.end_agent()
        await asyncio.sleep(5)
        await session.close("done")

    virtual(work())
    slots = int(told["slots"])
    heard = rec.heard
    sounds = np.flatnonzero(heard[: (slots + 4) * 960])
    edge = rec.times[slots] + (sounds[-1] - slots * 960) / 24_000
    assert edge - told["at"] <= 0.06
    begin = int(sounds[0])
    np.testing.assert_array_equal(heard[begin : slots * 960], samples[: slots * 960 - begin])
    assert told["position"] * 24_000 == slots * 960 - begin + FADE
    first, second = rec.of("agent.speak_ended")
    assert first["interrupted"]
    assert first["playback_position"] == pytest.approx(told["position"], abs=1e-6)
    assert (second["speech"], second["interrupted"], second["playback_position"]) == (2, False, 1.0)
    rolled = [call for call in rec.engine.calls if call[0] == "rollback"]
    assert len(rolled) == 1
    assert [made.index for made in rec.engine.kept] == list(range(1, len(rec.engine.kept) + 1))
    stats = rec.of("metrics")[-1]
    assert stats["interrupt_to_silence_seconds"] <= 0.06
    assert stats["interrupt_to_rest_seconds"] <= 0.48 + cost
    states = [event["state"] for event in rec.of("agent.state_updated")]
    assert states == ["talking", "interrupting", "idle", "talking", "idle"]


def test_interrupt_while_the_chunk_ahead_is_being_made(virtual: Run, recorder: Any, speech: Make) -> None:
    """Its result, or failure, comes later and does no harm; the chunk is made again at once."""
    rec = recorder(cost=0.3)

    async def work() -> None:
        session = await rec.start()
        session.push_agent(speech(4.0))
        await asyncio.sleep(0.3 + 0.48 + 0.1)
        assert rec.engine.calls[-1] == ("make", 3)
        session.interrupt()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert rec.engine.calls[-2:] == [("rollback", 3), ("make", 3)]
        await asyncio.sleep(2)
        assert not session.ended.done()
        await session.close("done")

    virtual(work())
    assert not rec.engine.kept[2].agent.any()
    assert rec.of("error") == []


def test_server_barges_in(virtual: Run, recorder: Any, speech: Make) -> None:
    rec = recorder()

    async def work() -> None:
        session = await rec.start()
        session.push_agent(speech(10.0))
        await asyncio.sleep(2)
        session.server_barge_in = True  # as the page's switch does, in the middle of a session
        rec.events.clear()
        begin = session.seconds
        await talk_to(session, speech(0.5, 16_000))
        (ended,) = rec.of("agent.speak_ended")
        assert ended["interrupted"]
        assert ended["time"] - begin == pytest.approx(0.2 + 0.06, abs=0.045)
        session.push_agent(speech(1.0))  # the client did not know yet
        assert session.queued_seconds == 0
        await asyncio.sleep(2)
        await session.close("done")

    virtual(work())
    assert rec.of("agent.state_updated")[-1]["state"] == "idle"


def test_user_over_agent_without_server_barge_in(virtual: Run, recorder: Any, speech: Make) -> None:
    rec = recorder()

    async def work() -> None:
        session = await rec.start(LiveSettings(overlap="user"))
        session.push_agent(speech(2.5))
        session.end_agent()
        await asyncio.sleep(1.2)
        await talk_to(session, speech(4.0, 16_000))
        await asyncio.sleep(1)
        await session.close("done")

    virtual(work())
    states = [event["state"] for event in rec.of("agent.state_updated")]
    assert states == ["talking", "interrupting", "listening", "idle"]
    assert not rec.of("agent.speak_ended")[0]["interrupted"]
    assert sum(bool(made.user.any()) for made in rec.engine.kept) >= 8  # the model hears the user all the time


# with the real engine --------------------------------------------------------------------------------


@pytest.mark.slow
def test_real_engine(
    monkeypatch: pytest.MonkeyPatch, make_model: Callable[..., AvatarModel], tmp_path: Path, speech: Make
) -> None:
    """Two sessions of a random model, one of them interrupted, which shows what a session shows that was never asked
    for the dropped chunk. To the other one nothing has happened."""
    make_model().save(tmp_path / "model")
    pictures = {
        name: np.random.default_rng(seed).integers(0, 255, (64, 96, 3), np.uint8) for seed, name in enumerate("ab")
    }
    kept: dict[str, dict[int, list[NDArray[Any]]]] = {"a": {}, "b": {}}

    async def work() -> tuple[Recorder, dict[str, Any], dict[str, list[NDArray[np.uint8]]]]:
        engine = await EngineClient.start(EngineSettings(model=tmp_path / "model", threads=1, sessions=2))
        make = engine.make

        async def noted(session: str, index: int, agent: NDArray[np.int16], user: NDArray[np.int16]) -> Any:
            kept[session][index] = [agent, user]
            chunk = await make(session, index, agent, user)
            kept[session][index][2:] = [chunk.frames]
            return chunk

        rec = Recorder(monkeypatch, engine)
        with monkeypatch.context() as patched:
            patched.setattr(engine, "make", noted)
            both = {
                name: LiveSession(engine, name, picture, seed=7, settings=LiveSettings(), on_event=rec.events.append)
                for name, picture in pictures.items()
            }
            patched.setattr(both["b"]._viewers, "put", lambda *_: None)  # the recorder's ticks are those of the first
            for session in both.values():
                await session.start()
                session.push_agent(speech(5.0))
            await asyncio.sleep(1.2)
            assert (both["a"].interrupt() or 0) > 0.5
            await asyncio.sleep(1.6)
            for session in both.values():
                await session.close("done")
        alone: dict[str, list[NDArray[np.uint8]]] = {}
        for name, picture in pictures.items():
            await engine.open(f"{name} alone", picture, 7)
            chunks = [await engine.make(f"{name} alone", i, *kept[name][i][:2]) for i in sorted(kept[name])]
            alone[name] = [chunk.frames for chunk in chunks]
        await engine.stop()
        return rec, {name: session.stats() for name, session in both.items()}, alone

    rec, stats, alone = asyncio.run(work())
    assert {name: figures["rollbacks"] for name, figures in stats.items()} == {"a": 1, "b": 0}
    expected = np.concatenate(alone["a"])
    first = next(n for n, frame in enumerate(rec.frames) if (frame == expected[0]).all())
    shown = rec.frames[first:]
    frames = [frame for n, frame in enumerate(shown) if n == 0 or frame is not shown[n - 1]]
    assert all(np.array_equal(a, b) for a, b in zip(frames, expected, strict=False))
    assert len(frames) > 48
    made = [chunk[2] for _, chunk in sorted(kept["b"].items()) if len(chunk) > 2]  # the last may not be done
    assert len(made) >= 5
    assert all(np.array_equal(a, b) for a, b in zip(made, alone["b"], strict=False))
    assert all(chunk[0].any() for chunk in list(kept["b"].values())[1:])  # it went on speaking
