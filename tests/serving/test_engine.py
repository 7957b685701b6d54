"""The engine behind its process: sessions stay apart, bad requests stay small, and a dead process is noticed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from streamavatar.avatar import Avatar
from streamavatar.engine import Pipeline, StepSession
from streamavatar.errors import UserError
from streamavatar.models.avatar import AvatarModel
from streamavatar.serving.admission import Admission, Supervisor
from streamavatar.serving.engine_client import Capacity, EngineClient, EngineDied, EngineInfo, EngineSettings, Timing
from streamavatar.serving.engine_process import AGENT_RATE, USER_RATE, Engine, as_float, to_i420

AGENT, USER = 14 * 960, 12 * 640


def leftovers() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith("psm_")}


@pytest.fixture(scope="module")
def folder(make_model: Callable[..., AvatarModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine") / "model"
    make_model().save(folder)
    return folder


@pytest.fixture(scope="module")
def settings(folder: Path) -> EngineSettings:
    return EngineSettings(folder, precision="float32", threads=1, sessions=2)


Run = Callable[[Callable[[EngineClient], Coroutine[Any, Any, None]]], None]


@pytest.fixture(scope="module")
def run(settings: EngineSettings) -> Iterator[Run]:
    """run(work) runs work(engine) with an engine that the tests of this file share; each leaves no session in it."""
    before = leftovers()
    loop = asyncio.new_event_loop()
    engine = loop.run_until_complete(EngineClient.start(settings))
    yield lambda work: loop.run_until_complete(work(engine))
    loop.run_until_complete(engine.stop())
    loop.close()
    assert leftovers() <= before


def picture(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 255, (64, 96, 3), np.uint8)


def sound(seed: int, size: int) -> NDArray[np.int16]:
    return np.random.default_rng(seed).normal(0, 3000, size).astype(np.int16)


def alone(folder: Path, who: int, chunks: int) -> list[NDArray[np.uint8]]:
    """What a session gives when it is all by itself, in this process."""
    rates = {"agent_rate": AGENT_RATE, "user_rate": USER_RATE, "seed": who}
    session = StepSession(AvatarModel.load(folder), Pipeline(1), picture(who), **rates)
    steps = ((sound(10 * who + k, AGENT), sound(50 + 10 * who + k, USER)) for k in range(1, chunks + 1))
    return [to_i420(session.step(as_float(a), as_float(u))) for a, u in steps]


def test_sessions_together_are_sessions_alone(folder: Path, run: Run) -> None:
    """Interleaved, with a roll-back in one and the other one closed half-way: frames as if each were alone."""

    async def work(engine: EngineClient) -> None:
        assert (engine.info.height, engine.info.width, engine.info.chunk_frames) == (64, 96, 12)
        assert engine.capacity.sessions == 2
        made: dict[int, list[NDArray[np.uint8]]] = {1: [], 2: []}
        for who in made:
            await engine.open(f"s{who}", picture(who), seed=who)

        async def make(who: int, k: int, salt: int = 0) -> NDArray[np.uint8]:
            given = sound(salt + 10 * who + k, AGENT), sound(salt + 50 + 10 * who + k, USER)
            chunk = await engine.make(f"s{who}", k, *given)
            assert {"audio", "transformer", "decode", "encode", "queue", "total"} == set(chunk.seconds)
            return chunk.frames

        for k in range(1, 6):
            if k == 3:  # made ahead, then taken back; even while it is being made
                lost = asyncio.create_task(make(1, 3, salt=1000))
                await asyncio.sleep(0)
                await engine.rollback("s1", 3)
                await lost
            if k == 4:
                await engine.close_session("s2")
            both = await asyncio.gather(*(make(who, k) for who in made if who == 1 or k < 4))
            for who, frames in zip(made, both, strict=False):
                made[who].append(frames)
        await engine.close_session("s1")
        for who, chunks in made.items():
            for got, expected in zip(chunks, alone(folder, who, len(chunks)), strict=True):
                assert np.array_equal(got, expected)

    run(work)


def test_a_chunk_is_made_again_the_moment_it_is_taken_back(folder: Path, run: Run) -> None:
    """As an interruption does it: nobody waits for the chunk that is not wanted any more."""

    async def work(engine: EngineClient) -> None:
        await engine.open("s1", picture(1), seed=1)
        expected = alone(folder, 1, 1)[0]
        for salt in range(12):
            lost = asyncio.create_task(engine.make("s1", 1, sound(100 + salt, AGENT), sound(200 + salt, USER)))
            await asyncio.sleep(0)
            await engine.rollback("s1", 1)
            again = await engine.make("s1", 1, sound(11, AGENT), sound(61, USER))
            assert np.array_equal(again.frames, expected)
            await lost
            await engine.rollback("s1", 1)
        await engine.close_session("s1")

    run(work)


def test_a_face_is_encoded_once(folder: Path, run: Run) -> None:
    """Sessions of a kept face start from what was encoded, and are sessions of its picture; forgotten is forgotten."""

    async def work(engine: EngineClient) -> None:
        expected = alone(folder, 1, 2)
        other = np.zeros_like(picture(1))  # seen only if it is encoded
        await engine.encode("me", picture(1))
        for name in ("s1", "s2"):
            await engine.open(name, other, 1, "me")
        for k in (1, 2):
            for name in ("s1", "s2"):
                chunk = await engine.make(name, k, sound(10 + k, AGENT), sound(60 + k, USER))
                assert np.array_equal(chunk.frames, expected[k - 1])
        await engine.forget("me")
        await engine.forget("nobody")
        await engine.open("s3", other, 1, "me")
        chunk = await engine.make("s3", 1, sound(11, AGENT), sound(61, USER))
        assert not np.array_equal(chunk.frames, expected[0])
        for name in ("s1", "s2", "s3"):
            await engine.close_session(name)
        await engine.forget("me")
        with pytest.raises(UserError, match="picture must be"):
            await engine.encode("me", picture(1)[:32])

    run(work)


def test_kept_faces_have_a_limit(make_model: Callable[..., AvatarModel], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(Avatar(make_model(), Pipeline(1)), lambda answer: None)
    size = engine._reference("a", picture(1)).nbytes
    assert size > 3 * 4 * 64 * 96  # the picture in float32 is part of it
    monkeypatch.setattr("streamavatar.serving.engine_process.KEPT_BYTES", 2 * size)
    engine._reference("b", picture(2))
    kept = engine._reference("a", picture(3))
    engine._reference("c", picture(3))
    assert list(engine._faces) == ["a", "c"]  # the one that was not used for the longest time has gone
    assert engine._reference("a", picture(3)) is kept
    engine._reference("", picture(4))
    assert list(engine._faces) == ["c", "a"]
    monkeypatch.setattr("streamavatar.serving.engine_process.KEPT_BYTES", size - 1)
    engine._reference("d", picture(4))
    assert engine._faces == {}


def test_bad_requests_are_answered_and_harm_nobody(folder: Path, run: Run) -> None:
    async def work(engine: EngineClient) -> None:
        await engine.open("s1", picture(1), seed=1)
        good = sound(11, AGENT), sound(61, USER)

        async def refused(call: object, words: str) -> None:
            with pytest.raises(UserError, match=words):
                await call  # type: ignore[misc]

        await refused(engine.open("s1", picture(1), 1), "open already")
        await refused(engine.open("s2", picture(1)[:32], 1), "picture must be")
        await refused(engine.make("nobody", 1, *good), "no session nobody")
        await refused(engine.make("s1", 2, *good), "next chunk is 1, not 2")
        await refused(engine.make("s1", 1, good[0][:-1], good[1]), "has 13440 samples")
        await refused(engine.rollback("s1", 1), "last chunk is 0")
        await engine.close_session("nobody")
        first = asyncio.create_task(engine.make("s1", 1, *good))
        await asyncio.sleep(0)
        await refused(engine.make("s1", 2, *good), "still being made")
        assert np.array_equal((await first).frames, alone(folder, 1, 1)[0])
        await engine.rollback("s1", 1)
        await refused(engine.rollback("s1", 1), "last chunk is 0")
        await engine.close_session("s1")

    run(work)


def test_no_request_kills_the_engine_or_leaves_anything(run: Run) -> None:
    before = leftovers()

    async def work(engine: EngineClient) -> None:
        agent, user = sound(1, AGENT), sound(2, USER)
        assert engine._process.pid is not None
        assert os.getpgid(engine._process.pid) != os.getpgid(0)  # Ctrl-C is for the gateway, which drains first
        with pytest.raises(UserError):
            await engine.open("s1", np.array("nothing"), 1)
        opening = asyncio.create_task(engine.open("s1", picture(1), 1))
        await asyncio.sleep(0)
        opening.cancel()
        with suppress(asyncio.CancelledError):
            await opening
        await engine.close_session("s1")
        assert leftovers() <= before
        await engine.open("s1", picture(1), 1)
        for bad in (
            (np.full(AGENT, "x"), user),
            (np.full(AGENT, np.nan), user),
            (agent, np.full(USER, None)),
            (agent.reshape(2, -1), user),
        ):
            with pytest.raises(UserError):
                await engine.make("s1", 1, *bad)
        assert (await engine.make("s1", 1, agent, user)).index == 1
        assert await engine.memory() > 2**20
        await engine.close_session("s1")

    run(work)
    assert leftovers() <= before


def test_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    async def run() -> None:
        with pytest.raises(UserError, match=r"config\.json"):
            await EngineClient.start(EngineSettings(tmp_path))

    asyncio.run(run())


def test_a_killed_engine_is_noticed_and_replaced(settings: EngineSettings) -> None:
    before = leftovers()

    async def run() -> None:
        reasons: list[str] = []

        async def on_death(reason: str) -> None:
            reasons.append(reason)

        supervisor = Supervisor(settings, on_death)
        with pytest.raises(EngineDied, match="starting"):
            _ = supervisor.client
        engine = await supervisor.start()
        await engine.open("s1", picture(1), seed=1)
        pending = asyncio.create_task(engine.make("s1", 1, sound(1, AGENT), sound(2, USER)))
        await asyncio.sleep(0)
        assert engine._process.pid is not None
        killed = monotonic()
        os.kill(engine._process.pid, signal.SIGKILL)
        with pytest.raises(EngineDied, match="exit status -9"):
            await pending
        assert monotonic() - killed < 1
        with pytest.raises(EngineDied):
            await engine.make("s1", 2, sound(1, AGENT), sound(2, USER))
        while not (supervisor.ready and supervisor.restarts):
            await asyncio.sleep(0.05)
        assert monotonic() - killed < 10
        assert supervisor.client is not engine
        assert len(reasons) == 1
        await supervisor.client.open("s1", picture(1), seed=1)
        chunk = await supervisor.client.make("s1", 1, sound(1, AGENT), sound(2, USER))
        assert chunk.frames.shape == (12, 96, 96)
        await engine.stop()
        await supervisor.stop()

    asyncio.run(run())
    assert leftovers() <= before


GATEWAY = """
import asyncio, sys
from pathlib import Path
from streamavatar.serving.engine_client import EngineClient, EngineSettings

async def run():
    engine = await EngineClient.start(EngineSettings(Path(sys.argv[1]), threads=1, sessions=1))
    print(engine._process.pid, flush=True)
    await asyncio.sleep(60)

if __name__ == "__main__":
    asyncio.run(run())
"""


def test_the_engine_ends_with_its_gateway(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "gateway.py"
    script.write_text(GATEWAY)
    gateway = subprocess.Popen([sys.executable, str(script), str(folder)], stdout=subprocess.PIPE, text=True)
    assert gateway.stdout is not None
    engine = gateway.stdout.readline().strip()
    parent = Path(f"/proc/{engine}/stat").read_text().rpartition(")")[2].split()[1]
    assert parent != str(gateway.pid)
    assert "libtorch" in Path(f"/proc/{parent}/maps").read_text(), "the next engine would have to load torch again"
    gateway.kill()
    gateway.wait()
    end = monotonic() + 5
    while any(alive(Path("/proc") / pid) for pid in (engine, parent)) and monotonic() < end:
        sleep(0.05)
    assert monotonic() < end


def alive(process: Path) -> bool:
    """Whether there is such a process that has not ended."""
    try:
        return "State:\tZ" not in (process / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_calibration(run: Run) -> None:
    async def work(engine: EngineClient) -> None:
        engine.settings, given = replace(engine.settings, sessions=None, most_sessions=3), engine.settings
        capacity = await engine._warm_up(None)
        engine.settings = given
        assert 1 in capacity.chunk_seconds
        assert set(capacity.chunk_seconds) <= {1, 2, 3}
        assert capacity.sessions == max(
            (n for n, timing in capacity.chunk_seconds.items() if timing.p99 <= capacity.budget), default=1
        )
        assert all(0 < timing.p50 <= timing.p99 for timing in capacity.chunk_seconds.values())
        assert capacity.budget == pytest.approx(0.8 * 0.48)

    run(work)


@pytest.mark.parametrize("cost", [0.5, 0.15, 0.1, 0.02])
@pytest.mark.parametrize("guess", [0.3, 1.0, 3.0])
def test_calibration_finds_where_sessions_stop_to_fit(cost: float, guess: float) -> None:
    """Whatever the first times promise: too much, too little or the truth."""

    class Probe:
        longest_share = cost * guess
        measured: ClassVar[list[int]] = []

        async def measure(self, count: int) -> Timing:
            self.measured.append(count)
            return Timing(count * cost, count * cost, count * cost)

    async def calibrate() -> Capacity:
        client = EngineClient(EngineSettings(most_sessions=6))
        client.info = EngineInfo(64, 64, 25, 12, "none", "cpu", "float32")
        client._writer.shutdown()
        return await client._calibrate(Probe())  # type: ignore[arg-type]

    Probe.measured = []
    capacity = asyncio.run(calibrate())
    assert capacity.sessions == max(1, min(6, int(0.384 / cost)))
    assert len(Probe.measured) == len(set(Probe.measured)) == len(capacity.chunk_seconds) <= 6
    assert capacity.sessions in capacity.chunk_seconds


def test_admission_never_takes_too_many() -> None:
    admission = Admission(4, 0.48)
    taken = [admission.admit() for _ in range(5)]
    assert taken[4] is None
    phases = [slot.phase for slot in taken if slot is not None]
    assert sorted(phases) == pytest.approx([0, 0.12, 0.24, 0.36])
    assert phases[:2] == pytest.approx([0, 0.24])  # the second is as far from the first as can be
    assert admission.active == 4
    assert taken[1] is not None
    for _ in range(2):
        admission.release(taken[1])
    assert admission.active == 3
    admission.draining = True
    assert admission.admit() is None
    admission.draining = False
    again = admission.admit()
    assert again is not None
    assert again.phase == taken[1].phase
