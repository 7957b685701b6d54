"""WebRTC on loopback: aiortc on both ends, in one process."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("aiortc", reason="the extra 'live' is not installed")

from aiortc import RTCPeerConnection, RTCRtpSender, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from av import AudioCodecContext, AudioFrame, CodecContext, Packet, VideoFrame

from streamavatar.errors import UserError
from streamavatar.serving import live_session, rtc
from streamavatar.serving.clock import MediaClock
from streamavatar.serving.live_session import LiveSession, LiveSettings
from streamavatar.serving.rtc import MAX_PENDING_TICKS, OpusTicks, Peer
from streamavatar.serving.vad import EnergyVad

Make = Callable[..., NDArray[np.int16]]
PICTURE = np.full((64, 64, 3), 90, np.uint8)


class Microphone(MediaStreamTrack):
    """A tone in stereo at 48 kHz."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self._sent = 0

    async def recv(self) -> AudioFrame:
        await asyncio.sleep(0.02)
        wave = 9000 * np.sin(2 * np.pi * 300 * (self._sent + np.arange(960)) / 48_000)
        frame = AudioFrame.from_ndarray(np.repeat(wave.astype(np.int16), 2)[None], format="s16", layout="stereo")
        frame.sample_rate, frame.pts = 48_000, self._sent
        self._sent += 960
        return frame


class Client:
    """A browser's end: receives, perhaps speaks, perhaps listens to the events."""

    def __init__(self, microphone: bool = False, events: bool = False, codec: str = "video/VP8") -> None:
        self._microphone, self._events, self._codec = microphone, events, codec
        self.video: list[tuple[float, VideoFrame]] = []
        self.audio: list[tuple[float, AudioFrame]] = []
        self.events: list[dict[str, Any]] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def connect(self, answer: Callable[[str], Coroutine[Any, Any, str]]) -> None:
        self.connection = connection = RTCPeerConnection()
        video = connection.addTransceiver("video", "recvonly")
        codecs = RTCRtpSender.getCapabilities("video").codecs
        video.setCodecPreferences([codec for codec in codecs if codec.mimeType == self._codec])
        if self._microphone:
            connection.addTrack(Microphone())
        else:
            connection.addTransceiver("audio", "recvonly")
        if self._events:
            channel = connection.createDataChannel("events")
            channel.on("message", lambda text: self.events.append(json.loads(text)))
        connection.on("track", lambda track: self._tasks.append(asyncio.ensure_future(self._collect(track))))
        await connection.setLocalDescription(await connection.createOffer())
        sdp = await answer(connection.localDescription.sdp)
        await connection.setRemoteDescription(RTCSessionDescription(sdp, "answer"))

    async def _collect(self, track: MediaStreamTrack) -> None:
        with contextlib.suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                kept: list[Any] = self.video if track.kind == "video" else self.audio
                kept.append((asyncio.get_running_loop().time(), frame))

    async def close(self) -> None:
        await self.connection.close()
        await asyncio.gather(*self._tasks)


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch, make_engine: Any) -> Callable[..., Any]:
    """live(work, **settings) runs work(session, events) on a real loop, and checks that no task is left."""
    monkeypatch.setattr(live_session, "make_vad", EnergyVad)

    def run(work: Callable[[LiveSession, list[dict[str, Any]]], Coroutine[Any, Any, None]], **settings: Any) -> None:
        async def main() -> None:
            events: list[dict[str, Any]] = []
            session = LiveSession(
                make_engine(),
                "a",
                PICTURE,
                seed=1,
                settings=LiveSettings(**settings),
                on_event=events.append,
            )
            await session.start()
            try:
                await work(session, events)
            finally:
                await session.close("done")
            for _ in range(20):  # aiortc's own tasks need a moment
                if asyncio.all_tasks() == {asyncio.current_task()}:
                    break
                await asyncio.sleep(0.05)
            assert asyncio.all_tasks() == {asyncio.current_task()}

        asyncio.run(main())

    return run


def onsets(loud: NDArray[np.bool_]) -> NDArray[np.intp]:
    return np.flatnonzero(loud[1:] & ~loud[:-1]) + 1


@pytest.mark.parametrize("codec", ["video/VP8", pytest.param("video/H264", marks=pytest.mark.slow)])
def test_loopback(live: Any, speech: Make, codec: str) -> None:
    """25 fps, right time stamps, and every flash within 45 ms of its beep. The user is heard, events arrive."""
    client = Client(microphone=True, events=True, codec=codec)

    async def work(session: LiveSession, events: list[dict[str, Any]]) -> None:
        await client.connect(session.offer)
        while not client.video:
            await asyncio.sleep(0.02)
        assert session.connected
        begin, begun = len(client.video), asyncio.get_running_loop().time()
        for _ in range(3):
            session.push_agent(speech(0.4))
            session.end_agent()
            await asyncio.sleep(1.0)
        expected = 25 * (asyncio.get_running_loop().time() - begun)
        received = len(client.video) - begin
        await asyncio.sleep(0.6)
        assert 0.95 * expected <= received <= 1.05 * expected
        assert session.state == "listening"  # to the microphone
        await client.close()
        while session.connected:
            await asyncio.sleep(0.02)
        assert [event["state"] for event in events if event["type"] == "session.state_updated"] == [
            "connected",
            "disconnected",
        ]

    live(work)
    times = np.array([float(frame.pts * frame.time_base) for _, frame in client.video])
    steps = np.diff(times)
    assert np.abs(steps / 0.04 - np.rint(steps / 0.04)).max() < 1e-6
    assert (steps < 0.05).mean() >= 0.95
    flash = onsets(np.array([frame.to_ndarray()[16:48, 16:48].mean() > 128 for _, frame in client.video]))
    heard = np.concatenate([np.abs(frame.to_ndarray().reshape(-1, 2)[:, 0]) for _, frame in client.audio])
    loud = heard.reshape(-1, 96).max(1) > 1500  # in steps of 2 ms
    beep = onsets(np.convolve(loud, np.ones(25))[: len(loud)] > 0)
    assert len(flash) == len(beep) == 3
    # Both receivers count time stamps from their first packet, which belong to the same tick.
    stamps = np.concatenate([float(frame.pts * frame.time_base) + np.arange(10) * 0.002 for _, frame in client.audio])
    assert np.abs(stamps[beep] - times[flash]).max() < 0.045
    # On arrival, sound is later by what aiortc's receiver holds back: four packets, and pictures one.
    arrivals = np.repeat([at for at, _ in client.audio], 10)
    skew = arrivals[beep] - np.array([at for at, _ in client.video])[flash]
    assert (skew > -0.045).all()
    assert (skew < 0.2).all()
    assert {"agent.speak_started", "agent.speak_ended", "metrics"} <= {event["type"] for event in client.events}


def test_user_reaches_the_model(live: Any, make_engine: Any) -> None:
    client = Client(microphone=True)

    async def work(session: LiveSession, events: list[dict[str, Any]]) -> None:
        await client.connect(session.offer)
        await asyncio.sleep(2.0)
        heard = session._engine.made[-1].user.astype(float)  # type: ignore[attr-defined]
        spectrum = np.abs(np.fft.rfft(heard * np.hanning(len(heard))))
        assert np.argmax(spectrum) * 16_000 / len(heard) == pytest.approx(300, abs=5)
        assert np.abs(heard).max() == pytest.approx(9000, rel=0.25)
        assert session.heard_at > asyncio.get_running_loop().time() - 1.5
        await client.close()

    live(work)


def test_viewers_share_the_ticks(live: Any) -> None:
    clients = [Client() for _ in range(3)]

    async def work(session: LiveSession, events: list[dict[str, Any]]) -> None:
        ids = []
        for client in clients[:2]:

            async def answer(sdp: str) -> str:
                viewer, answer = await session.whep(sdp)
                ids.append(viewer)
                return answer

            await client.connect(answer)
        with pytest.raises(UserError, match="2 viewers"):
            await clients[2].connect(answer)
        await asyncio.sleep(1.5)
        assert not session.connected  # they only watch
        assert min(len(client.video) for client in clients[:2]) > 20
        assert await session.drop_viewer(ids[0])
        before = len(clients[1].video)
        await asyncio.sleep(0.5)
        assert len(clients[1].video) > before + 8
        for client in clients:
            await client.close()

    live(work, max_viewers=2)


def test_new_offer_takes_the_place_of_the_old_peer(live: Any) -> None:
    first, second = Client(), Client()

    async def work(session: LiveSession, events: list[dict[str, Any]]) -> None:
        await first.connect(session.offer)
        await asyncio.sleep(0.6)
        await second.connect(session.offer)
        await asyncio.sleep(0.8)
        assert session.connected
        assert len(second.video) > 5
        assert session.stats()["viewers"] == 1
        await first.close()
        await second.close()

    live(work)


def test_candidates_trickle(live: Any) -> None:
    client = Client()

    async def work(session: LiveSession, events: list[dict[str, Any]]) -> None:
        async def answer(sdp: str) -> str:
            lines = sdp.splitlines()
            candidates = [line[2:] for line in lines if line.startswith("a=candidate")]
            bare = [line for line in lines if not line.startswith(("a=candidate", "a=end-of-candidates"))]
            answer = await session.offer("\r\n".join(bare) + "\r\n")
            for candidate in dict.fromkeys(candidates):
                await session.add_candidate({"candidate": candidate, "sdpMid": "0", "sdpMLineIndex": 0})
            await session.add_candidate(None)
            with pytest.raises(UserError, match="cannot be read"):
                await session.add_candidate({"candidate": "candidate:nonsense", "sdpMid": "0"})
            return answer

        await client.connect(answer)
        for _ in range(100):
            if client.video:
                break
            await asyncio.sleep(0.03)
        assert client.video
        await client.close()

    live(work)


def test_half_open_peer_is_noticed(live: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other side vanishes without a word: nothing comes any more, and nothing says so."""
    client = Client()

    async def work(session: LiveSession, events: list[dict[str, Any]]) -> None:
        await client.connect(session.offer)
        while not session.connected:
            await asyncio.sleep(0.02)
        transport = client.connection.getSenders()[0].transport.transport

        async def lost(data: bytes) -> None:
            return

        monkeypatch.setattr(transport, "_send", lost)
        for _ in range(80):
            if not session.connected:
                break
            await asyncio.sleep(0.05)
        assert not session.connected
        reasons = [event.get("reason") for event in events if event["type"] == "session.state_updated"]
        assert reasons[-1] == "nothing was heard for 1 s"
        await client.close()

    live(work, silent_peer_seconds=1.0)


# without a network -----------------------------------------------------------------------------------


def test_opus_packets_last_20_ms_and_come_at_once() -> None:
    tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(24_000) / 24_000)).astype(np.int16)
    tone[:12_000] = 0
    encoder, decoder = OpusTicks(), CodecContext.create("libopus", "r")
    assert isinstance(decoder, AudioCodecContext)
    decoder.sample_rate, decoder.layout, decoder.format = 48_000, "mono", "s16"
    pieces = []
    for tick in tone.reshape(-1, 960):
        packets = encoder.encode(tick)
        assert len(packets) == 2
        pieces += [frame.to_ndarray().ravel() for packet in packets for frame in decoder.decode(Packet(packet))]
    heard = np.abs(np.concatenate(pieces).astype(float))
    assert len(heard) == 48_000
    assert 0 <= np.flatnonzero(heard > 2000)[0] - 24_000 < 480  # Opus itself takes 6.5 ms
    assert heard.max() == pytest.approx(8000, rel=0.15)


def test_slow_viewer_loses_whole_ticks_and_nobody_else_does(speech: Make) -> None:
    async def main() -> None:
        clock, picture, packets = MediaClock(25), np.zeros((96, 64), np.uint8), [b"a", b"b"]
        slow, quick = (Peer((), microphone=None, on_change=lambda _: None, silent_seconds=10.0) for _ in range(2))
        for peer in (slow, quick):
            peer._add_tracks("m=audio 9 x\r\nm=video 9 x\r\n")
            peer.state = "connected"
        got: dict[str, list[int]] = {"video": [], "audio": []}
        for slot in range(20):
            for peer in (slow, quick):
                peer.put(clock, slot, asyncio.get_running_loop().time() - 1, picture, packets)
            assert quick._picture
            assert quick._sound
            got["video"].append((await quick._picture.recv()).pts or 0)
            got["audio"] += [(await quick._sound.recv()).pts or 0 for _ in range(2)]
        assert got["video"] == [3600 * n for n in range(20)]
        assert got["audio"] == [960 * n for n in range(40)]
        assert quick.dropped == 0
        assert slow.dropped == 20 - MAX_PENDING_TICKS
        assert slow._picture
        assert slow._sound
        left = [slow._picture.queue.get_nowait()[0] for _ in range(slow._picture.queue.qsize())]
        sound = [slow._sound.queue.get_nowait()[0] for _ in range(slow._sound.queue.qsize())]
        assert left == [3600 * n for n in range(MAX_PENDING_TICKS)]
        assert sound == [960 * n for n in range(2 * MAX_PENDING_TICKS)]
        for peer in (slow, quick):
            await peer.close("done")

    asyncio.run(main())


def test_second_packet_of_a_tick_leaves_20_ms_later() -> None:
    async def main() -> None:
        track, loop = rtc.SoundTrack(), asyncio.get_running_loop()
        begin = loop.time()
        track.queue.put_nowait((0, begin, b"a"))
        track.queue.put_nowait((960, begin + 0.02, b"b"))
        await track.recv()
        first = loop.time() - begin
        await track.recv()
        assert first < 0.015
        assert loop.time() - begin >= 0.0195

    asyncio.run(main())


def test_nothing_is_encoded_while_nobody_watches(live: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(self: Any, samples: Any) -> list[bytes]:
        raise AssertionError("encoded for nobody")

    monkeypatch.setattr(OpusTicks, "encode", encode)

    async def work(session: LiveSession, events: list[dict[str, Any]]) -> None:
        await asyncio.sleep(0.5)
        assert session.seconds > 0.4
        assert not session.ended.done()

    live(work)
