"""The gateway over HTTP and WebSocket, with a fake engine: who gets in, what is answered, and what harms nobody."""

from __future__ import annotations

import base64
import io
import json
import struct
import time
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs the extra live")
pytest.importorskip("dlib", reason="needs the extra live")

from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from streamavatar import bundled
from streamavatar.serving import voice
from streamavatar.serving.app import create_app
from streamavatar.serving.engine_client import Capacity, EngineDied, Timing
from streamavatar.serving.faces import find_face, portrait_framing
from streamavatar.serving.sessions import OUTBOX, Outbox
from streamavatar.serving.settings import ServerSettings
from streamavatar.serving.speech import synthesizers

HERE, THERE = "http://127.0.0.1:8080", "ws://127.0.0.1:8080"


@dataclass
class FakeEngines:
    """One fake engine per session, since the fake knows only one."""

    make_engine: Callable[..., Any]
    info: Any
    sessions: dict[str, Any] = field(default_factory=dict)
    calls: list[tuple[str, int]] = field(default_factory=list)
    faces: set[str] = field(default_factory=set)

    async def encode(self, face: str, picture: np.ndarray) -> None:
        self.faces.add(face)

    async def forget(self, face: str) -> None:
        self.faces.discard(face)

    async def open(self, session: str, picture: np.ndarray, seed: int, face: str) -> None:
        self.faces.add(face)
        self.sessions[session] = self.make_engine(cost=0.01, calls=self.calls)
        await self.sessions[session].open(session, picture, seed)

    async def make(self, session: str, index: int, agent: np.ndarray, user: np.ndarray) -> Any:
        return await self.sessions[session].make(session, index, agent, user)

    async def rollback(self, session: str, index: int) -> None:
        await self.sessions[session].rollback(session, index)

    async def close_session(self, session: str) -> None:
        await self.sessions[session].close_session(session)

    async def memory(self) -> int:
        return 2**20


@dataclass
class FakeKeeper:
    """An engine that is simply there."""

    engine: Any
    capacity: Capacity | None
    ready: bool = True
    restarts: int = 0

    @property
    def client(self) -> Any:
        if not self.ready:
            raise EngineDied("the engine is starting")
        return self.engine


Open = Callable[..., TestClient]


@pytest.fixture
def open_app(make_engine: Callable[..., Any]) -> Iterator[Open]:
    """open_app(sessions=2, ready=True, **settings) -> a client of a running app; `client.keeper` is its keeper."""
    clients: list[TestClient] = []

    def open_it(sessions: int = 2, ready: bool = True, **changes: Any) -> TestClient:
        info = make_engine().info
        info.device, info.precision = "cpu", "float32"
        engine = FakeEngines(make_engine, info)
        keeper = FakeKeeper(engine, Capacity(sessions, 0.384, {1: Timing(0.1, 0.2, 0.1)}), ready)
        client = TestClient(create_app(replace(ServerSettings(), **changes), keeper), HERE)
        client.__enter__()
        client.keeper = keeper
        clients.append(client)
        return client

    yield open_it
    for client in clients:
        client.__exit__(None, None, None)


def start(client: TestClient, **wish: Any) -> tuple[str, dict[str, str]]:
    """A session: its path, and the header that opens it."""
    answer = client.post("/v1/sessions", json=wish)
    assert answer.status_code == 201, answer.text
    return f"/v1/sessions/{answer.json()['id']}", {"Authorization": f"Bearer {answer.json()['token']}"}


def events(client: TestClient, path: str, key: dict[str, str]) -> Any:
    return client.websocket_connect(f"{THERE}{path}/events?token={key['Authorization'].split()[1]}")


def until(socket: Any, kind: str, seconds: float = 10.0) -> dict[str, Any]:
    """The next event of a kind."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        event = json.loads(socket.receive_text())
        if event["type"] == kind:
            return event
    raise AssertionError(f"no {kind}")


def problem(answer: Any) -> tuple[int, str]:
    body = answer.json()["error"]
    assert set(body) == {"code", "message", "retryable"}
    assert body["message"]
    return answer.status_code, body["code"]


def packet(lane: int, index: int, samples: np.ndarray) -> bytes:
    return struct.pack(">BQ", lane, index) + samples.astype("<i2").tobytes()


def wav(seconds: int) -> bytes:
    """A recording that is loud throughout."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((1, 2, 24000, 0, "NONE", ""))
        file.writeframes(np.tile(LOUD, seconds).astype("<i2").tobytes())
    return out.getvalue()


LOUD = np.random.default_rng(0).normal(0, 8000, 24000).astype(np.int16)


# the server ------------------------------------------------------------------------------------------


def test_what_the_server_says_of_itself(open_app: Open) -> None:
    client = open_app()
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}
    capacity = client.get("/v1/capacity").json()
    assert (capacity["sessions"], capacity["active"], capacity["chunk_seconds"]) == (
        2,
        0,
        {"1": {"p50": 0.1, "p99": 0.2}},
    )
    avatars = client.get("/v1/avatars").json()["avatars"]
    assert [a["id"] for a in avatars] == list(bundled.portraits())
    assert client.get(avatars[0]["picture"]).content.startswith(b"\x89PNG")
    page = client.get("/")
    assert page.status_code == 200
    assert "script-src" not in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]
    text = client.get("/metrics").text
    for name in ("first_frame_seconds", "chunk_seconds", "lead_seconds", "underrun_total", "av_skew_seconds",
                 "interrupt_to_silence_seconds", "interrupt_to_rest_seconds", "speech_to_mouth_seconds", "sessions",
                 "admission_rejected_total", "device_memory_bytes"):  # fmt: skip
        assert f"# TYPE {name.removesuffix('_total')}" in text, name


def test_lines_to_try_it_with(open_app: Open) -> None:
    """Each is one line of the conversation, without the silence in which the other side speaks."""
    client = open_app()
    samples = client.get("/v1/samples").json()["samples"]
    assert {s["lane"] for s in samples} == {"agent", "user"}
    assert len({s["id"] for s in samples}) == len(samples) >= 2
    for sample in samples:
        with wave.open(io.BytesIO(client.get(f"/v1/samples/{sample['id']}").content)) as file:
            sound = np.frombuffer(file.readframes(file.getnframes()), "<i2")
            assert len(sound) / file.getframerate() == pytest.approx(sample["seconds"], abs=0.01)
            loud = np.flatnonzero(np.abs(sound.astype(int)) > 1000) / file.getframerate()
        assert loud[0] < 0.4
        assert loud[-1] > sample["seconds"] - 0.4
    assert problem(client.get("/v1/samples/nothing")) == (404, "no_sample")


def test_every_event_is_counted_when_it_happens(open_app: Open) -> None:
    """Not once a second, and not as an average."""
    client = open_app()
    path, key = start(client)

    def count(name: str) -> float:
        lines = client.get("/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith(name)).split()[-1])

    with events(client, path, key) as socket:
        for spoken in (1, 2):
            client.post(f"{path}/speech", headers=key, content=wav(5))
            until(socket, "agent.speak_started")
            client.post(f"{path}/interrupt", headers=key)
            until(socket, "agent.speak_ended")
            while client.get(path, headers=key).json()["agent_state"] != "idle":
                time.sleep(0.05)
            assert count("speech_to_mouth_seconds_count") == spoken
            assert count("interrupt_to_silence_seconds_count") == spoken
            assert count("interrupt_to_rest_seconds_count") == spoken
        assert count("interrupt_to_silence_seconds_sum") < 2 * 0.1
        assert count("first_frame_seconds_count") == 1
        engine = client.keeper.engine.sessions[path.rpartition("/")[2]]
        made = count('chunk_seconds_count{stage="transformer"}')
        assert len(engine.kept) - 1 <= made <= len(engine.made)  # one may be being made
        assert 0 < count("lead_seconds_count") <= made
    assert count("device_memory_bytes") == 2**20


def test_an_engine_that_is_not_ready(open_app: Open) -> None:
    client = open_app(ready=False)
    assert client.get("/healthz").status_code == 200
    assert client.get("/readyz").status_code == 503
    assert "device_memory_bytes 0.0" in client.get("/metrics").text
    for answer in (client.get("/v1/capacity"), client.post("/v1/sessions", json={})):
        assert problem(answer) == (503, "engine_starting")
        assert int(answer.headers["retry-after"]) > 0


# admission -------------------------------------------------------------------------------------------


def test_a_session_from_beginning_to_end(open_app: Open) -> None:
    client = open_app()
    path, key = start(client, avatar=bundled.SECOND_AVATAR, seed=7)
    state = client.get(path, headers=key).json()
    assert (state["agent_state"], state["connected"]) == ("idle", False)
    assert problem(client.get(path)) == (401, "unauthorized")
    assert problem(client.get(path, headers={"Authorization": "Bearer x"})) == (401, "unauthorized")
    assert "traceEvents" in client.get(f"{path}/trace", headers=key).json()
    assert client.delete(path, headers=key).status_code == 204
    assert problem(client.get(path, headers=key)) == (404, "no_session")
    assert problem(client.post("/v1/sessions", json={"avatar": "nobody"})) == (404, "no_avatar")
    assert problem(client.post("/v1/sessions", json={"avatr": bundled.DEFAULT_AVATAR})) == (422, "invalid")
    assert client.keeper.engine.calls[0] == ("open", 7)
    assert ("close", 0) in client.keeper.engine.calls


def test_never_more_than_fit(open_app: Open) -> None:
    client = open_app(sessions=2)
    first, _ = start(client), start(client)
    full = client.post("/v1/sessions", json={})
    assert problem(full) == (429, "full")
    assert int(full.headers["retry-after"]) > 0
    client.delete(first[0], headers=first[1])
    start(client)
    assert client.get("/v1/capacity").json()["active"] == 2
    assert 'admission_rejected_total{reason="full"} 1.0' in client.get("/metrics").text


def test_never_too_many_for_one_client(open_app: Open) -> None:
    client = open_app(sessions=3, sessions_per_client=1)
    start(client)
    assert problem(client.post("/v1/sessions", json={})) == (429, "too_many_sessions")


def test_draining(open_app: Open) -> None:
    client = open_app()
    path, key = start(client)
    with events(client, path, key) as socket:
        registry = client.app.state.house.registry
        client.portal.call(registry.stop_admission)
        assert until(socket, "error")["code"] == "draining"
        assert problem(client.post("/v1/sessions", json={})) == (503, "draining")
        assert client.get("/readyz").status_code == 503
        client.portal.call(registry.close_all, "The server went down.")
        closed = until(socket, "session.state_updated")
        while closed["state"] != "closed":
            closed = until(socket, "session.state_updated")
        assert closed["reason"] == "The server went down."
    assert client.get("/v1/capacity").json()["active"] == 0


@pytest.mark.parametrize("limit", [{"grace_seconds": 0.3}, {"max_minutes": 0.005}])
def test_sessions_without_a_client_or_time_end(limit: dict[str, float], open_app: Open) -> None:
    client = open_app(**limit)
    path, key = start(client)
    end = time.monotonic() + 5
    while client.get("/v1/capacity").json()["active"] and time.monotonic() < end:
        time.sleep(0.1)
    assert problem(client.get(path, headers=key)) == (404, "no_session")
    start(client)


def test_a_socket_that_says_nothing_does_not_stand_in_for_its_client(open_app: Open) -> None:
    """A connection whose other end has vanished looks open for minutes."""
    client = open_app(grace_seconds=0.6)
    path, key = start(client)
    with events(client, path, key) as socket:
        while (event := until(socket, "session.state_updated"))["state"] != "closed":
            pass
        assert event["reason"] == "The client has gone."
    assert client.get("/v1/capacity").json()["active"] == 0


def test_a_long_speech_does_not_stand_in_for_its_client(open_app: Open) -> None:
    client = open_app(grace_seconds=0.6)
    path, key = start(client)
    assert client.post(f"{path}/speech", headers=key, content=wav(45)).status_code == 202
    time.sleep(2.5)
    assert client.get("/v1/capacity").json()["active"] == 0


# speech ----------------------------------------------------------------------------------------------


def test_sound_over_the_socket(open_app: Open) -> None:
    client = open_app()
    path, key = start(client)
    with events(client, path, key) as socket:
        assert until(socket, "session.state_updated")["state"] == "connecting"
        socket.send_bytes(packet(0, 0, LOUD[:9600]))
        socket.send_json({"type": "agent.speak", "audio": base64.b64encode(LOUD[:4800].tobytes()).decode()})
        socket.send_bytes(packet(1, 0, LOUD[:640]))
        socket.send_json({"type": "agent.speak_end"})
        assert until(socket, "audio_buffer.appended")["queued_seconds"] == pytest.approx(0.4, abs=0.05)
        assert until(socket, "agent.speak_started")["speech"] == 1
        assert until(socket, "agent.state_updated")["state"] == "talking"
        ended = until(socket, "agent.speak_ended")
        assert ended["playback_position"] == pytest.approx(0.6, abs=0.001)
        assert not ended["interrupted"]
        assert until(socket, "metrics")["first_frame_seconds"] > 0


def test_an_interruption(open_app: Open) -> None:
    client = open_app()
    path, key = start(client)
    with events(client, path, key) as socket:
        answer = client.post(f"{path}/speech", headers=key, content=bundled.conversation()[0].read_bytes())
        assert answer.status_code == 202
        assert answer.json() == {"speech": 1, "seconds": pytest.approx(16.4, abs=0.5)}
        until(socket, "agent.speak_started")
        stopped = client.post(f"{path}/interrupt", headers=key).json()
        assert stopped["interrupted"]
        ended = until(socket, "agent.speak_ended")
        assert ended["interrupted"]
        assert ended["playback_position"] == pytest.approx(stopped["playback_position"], abs=1e-3)
        assert client.get(path, headers=key).json()["queued_seconds"] == 0
    assert not client.post(f"{path}/interrupt", headers=key).json()["interrupted"]


def test_a_speech_longer_than_the_lane(open_app: Open) -> None:
    """It is fed as room comes up; a second one has to wait; an interruption ends it."""
    client = open_app()
    path, key = start(client)
    recording = wav(45)
    answer = client.post(f"{path}/speech", headers=key, content=recording)
    assert answer.json()["seconds"] == pytest.approx(45)
    assert 15 < client.get(path, headers=key).json()["queued_seconds"] < 25
    assert problem(client.post(f"{path}/speech", headers=key, content=recording)) == (409, "busy")
    client.post(f"{path}/interrupt", headers=key)
    time.sleep(1.5)
    assert client.get(path, headers=key).json()["queued_seconds"] == 0
    short = client.post(f"{path}/speech", headers=key, content=bundled.conversation()[0].read_bytes())
    assert short.status_code == 202


@pytest.mark.skipif(not synthesizers(), reason="no synthesiser is installed")
@pytest.mark.parametrize("name", synthesizers())
def test_text_becomes_speech(name: str, open_app: Open) -> None:
    client = open_app()
    path, key = start(client)
    answer = client.post(f"{path}/text", headers=key, json={"text": "Hello, how are you?", "voice": name})
    assert answer.status_code == 202
    assert 0.7 < answer.json()["seconds"] < 4
    assert problem(client.post(f"{path}/text", headers=key, json={"text": "x" * 5000})) == (422, "too_long")
    assert client.post(f"{path}/text", headers=key, json={"text": "-o /etc/passwd; \x00\n ü"}).status_code in (202, 422)


def test_text_without_a_synthesizer(open_app: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voice, "synthesizers", tuple)
    client = open_app()
    path, key = start(client)
    assert problem(client.post(f"{path}/text", headers=key, json={"text": "Hello"})) == (501, "no_synthesizer")
    with events(client, path, key) as socket:
        socket.send_json({"type": "agent.speak", "text": "Hello"})
        assert until(socket, "error")["code"] == "no_synthesizer"


# what is wrong ---------------------------------------------------------------------------------------


BAD_MESSAGES = [
    "", "{", "[]", "3", '{"type": 3}', '{"type": "agent.dance"}', '{"type": "agent.speak"}', "[" * 50_000,
    '{"type": "agent.speak", "audio": "%%%"}', '{"type": "agent.speak", "audio": "AA=="}',
    '{"type": "agent.speak", "audio": "AAAA", "rate": 1e9}', '{"type": "agent.speak", "audio": "AAAA", "rate": 7}',
    '{"type": "agent.speak", "text": "\\ud800"}', '{"type": "agent.speak", "audio": "AAAA", "rate": ' + "9" * 400 + "}",
    '{"type": "session.update"}', '{"type": "session.update", "server_barge_in": 1}',
    b"", b"\x00", b"\x00" * 8, b"\x07" + bytes(10), b"\x00" + bytes(9), bytes(1_000_001),
]  # fmt: skip


def test_bad_messages_are_answered(open_app: Open) -> None:
    client = open_app()
    path, key = start(client)
    with events(client, path, key) as socket:
        for message in BAD_MESSAGES:
            socket.send_text(message) if isinstance(message, str) else socket.send_bytes(message)
            assert until(socket, "error")["message"], message
        socket.send_json({"type": "session.update", "server_barge_in": True})
        socket.send_bytes(packet(0, 0, LOUD[:9600]))
        socket.send_json({"type": "agent.speak_end"})
        until(socket, "agent.speak_ended")
        assert next(iter(client.app.state.house.registry.entries)).live.server_barge_in


def test_sound_that_comes_too_fast_is_refused_and_nothing_is_lost(open_app: Open) -> None:
    client = open_app()
    path, key = start(client)
    with events(client, path, key) as socket:
        for second in range(40):
            socket.send_bytes(packet(0, 24000 * second, LOUD))
        full = until(socket, "audio_buffer.full")
        assert full["lane"] == "agent"
        assert full["retry_after"] > 0
        assert 25 < client.get(path, headers=key).json()["queued_seconds"] <= 30
        assert client.get(path, headers=key).json()["agent_state"] in ("idle", "talking")


def test_who_may_not_listen(open_app: Open) -> None:
    client = open_app()
    path, key = start(client)
    for url, headers in (
        (f"{path}/events?token=wrong", {}),
        ("/v1/sessions/nobody/events", {}),
        (f"{path}/events?token={key['Authorization'].split()[1]}", {"origin": "http://evil.example"}),
    ):
        with pytest.raises(WebSocketDisconnect), client.websocket_connect(THERE + url, headers=headers) as socket:
            socket.receive_text()


def test_a_slow_listener_loses_what_it_can_do_without() -> None:
    outbox = Outbox()
    for number in range(OUTBOX):
        outbox.put({"type": "metrics", "number": number})
    for number in range(OUTBOX):
        outbox.put({"type": "agent.state_updated", "number": number})
    outbox.put({"type": "metrics", "number": OUTBOX})  # no room, and nothing that it could replace
    assert not outbox.overflown
    assert [event["number"] for event in outbox._events] == list(range(OUTBOX))
    assert {event["type"] for event in outbox._events} == {"agent.state_updated"}
    outbox.put({"type": "agent.speak_ended"})
    assert outbox.overflown  # and the connection is closed


@pytest.mark.parametrize("data", [b"", b"not audio at all", bytes(1000), b"RIFF" + bytes(100)])
def test_bad_recordings(data: bytes, open_app: Open) -> None:
    client = open_app(audio_bytes=2000)
    path, key = start(client)
    answer = client.post(f"{path}/speech", headers=key, content=data)
    assert problem(answer) == (422, "bad_audio")
    assert "/tmp" not in answer.text
    assert problem(client.post(f"{path}/speech", headers=key, content=bytes(2001))) == (413, "too_large")


@pytest.mark.parametrize("sdp", ["", "v=0", "garbage\r\n" * 100, "v=0\r\no=- 0 0 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n"])
def test_bad_offers(sdp: str, open_app: Open) -> None:
    client = open_app()
    path, key = start(client)
    assert problem(client.post(f"{path}/offer", headers=key, json={"sdp": sdp, "type": "offer"})) == (422, "bad_sdp")
    assert problem(client.post(f"{path}/whep", headers=key, content=sdp.encode()))[0] == 422
    assert problem(client.post(f"{path}/whep", headers=key, content=b"\xff\xfe")) == (422, "bad_sdp")
    bad = {"candidate": {"candidate": "candidate:nonsense", "sdpMid": "0"}}
    assert client.patch(f"{path}/offer", headers=key, json=bad).status_code in (204, 422)
    assert problem(client.delete(f"{path}/whep/nobody", headers=key)) == (404, "no_viewer")


# pictures --------------------------------------------------------------------------------------------


def png(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def upload(client: TestClient, data: bytes, kind: str = "image/png", **query: str) -> Any:
    return client.post("/v1/avatars", params=query, content=data, headers={"Content-Type": kind})


def portrait_with_a_face() -> np.ndarray:
    """A bundled portrait, [256, 256, 3], in which the detector finds a face (a drawing is none to every detector)."""
    pictures = (Image.open(p.path).convert("RGB").resize((256, 256)) for p in bundled.portraits().values())
    return next(pixels for pixels in map(np.asarray, pictures) if find_face(pixels))


NOISE = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)


def test_an_own_face(open_app: Open) -> None:
    client = open_app(face_count=2)
    wide = np.full((300, 700, 3), 180, np.uint8)
    wide[20:276, 400:656] = portrait_with_a_face()
    made = upload(client, png(wide, "JPEG", quality=95), "image/jpeg")
    assert made.status_code == 201, made.text
    avatar = made.json()
    assert avatar["own"]
    kept = client.keeper.engine.faces
    assert kept == {avatar["id"]}  # encoded before a session asks for it
    shown = np.asarray(Image.open(io.BytesIO(client.get(avatar["picture"]).content)))
    assert shown.shape == (512, 512, 3)
    x, y, width, height = find_face(shown)
    framing = portrait_framing()
    assert width == pytest.approx(framing.share * 512, abs=60)  # framed as the bundled ones are
    assert (x + width / 2, y + height / 2) == pytest.approx((256, framing.middle * 512), abs=40)
    path, key = start(client, avatar=avatar["id"])
    assert client.get(path, headers=key).status_code == 200
    assert all(not shown["own"] for shown in client.get("/v1/avatars").json()["avatars"])
    assert upload(client, png(NOISE), crop="centre").status_code == 201
    assert problem(upload(client, png(NOISE), crop="centre")) == (507, "full")
    assert client.delete(f"/v1/avatars/{avatar['id']}").status_code == 204
    assert avatar["id"] not in kept
    assert problem(client.get(avatar["picture"])) == (404, "no_avatar")
    assert problem(client.delete(f"/v1/avatars/{bundled.DEFAULT_AVATAR}")) == (403, "forbidden")


def test_uploads_have_limits(open_app: Open) -> None:
    client = open_app(faces_per_client=1, face_keep_seconds=0.5)
    assert upload(client, png(NOISE), crop="centre").status_code == 201
    assert problem(upload(client, png(NOISE), crop="centre")) == (507, "full")
    kept, end = client.keeper.engine.faces, time.monotonic() + 5
    while kept and time.monotonic() < end:  # nobody asks for it
        time.sleep(0.1)
    assert not kept
    assert upload(client, png(NOISE), crop="centre").status_code == 201


def test_pictures_that_are_refused(open_app: Open) -> None:
    client = open_app(face_bytes=300_000)
    assert problem(upload(client, png(NOISE))) == (422, "no_face")
    assert problem(upload(client, b"GIF89a" + bytes(50), "image/gif")) == (415, "unsupported_type")
    assert problem(upload(client, b"hello", "image/png")) == (415, "unsupported_type")
    assert problem(upload(client, png(NOISE), "text/html")) == (415, "unsupported_type")
    assert problem(upload(client, png(NOISE)[:9000])) == (422, "damaged")
    assert problem(upload(client, png(NOISE[:40, :40]))) == (422, "too_small")
    bomb = png(np.zeros((8000, 8000), np.uint8))
    assert len(bomb) < 300_000
    assert problem(upload(client, bomb)) == (422, "too_large")
    assert problem(upload(client, bytes(300_001))) == (413, "too_large")


ASSETS = Path(__file__).resolve().parents[2] / ".." / "shared" / "assets" / "portraits"


@pytest.mark.skipif(not ASSETS.is_dir(), reason="the folder of real portraits is not here")
def test_faces_are_found_on_photographs() -> None:
    pictures = sorted(ASSETS.glob("halfbody_*"))
    found = [find_face(np.asarray(Image.open(path).convert("RGB"))) for path in pictures]
    assert len(pictures) >= 10
    assert all(box is not None and 100 < box[2] < 350 for box in found)


# videos ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_offline_videos(open_app: Open) -> None:
    client = open_app(video_seconds=5.0)
    job = client.post("/v1/videos", json={"avatar": bundled.DEFAULT_AVATAR, "seconds": 0.5})
    assert job.status_code == 202
    name = job.json()["id"]
    assert problem(client.get(f"/v1/videos/{name}/file")) == (409, "not_ready")
    assert problem(client.post("/v1/videos", json={"seconds": 1})) == (429, "busy")
    end = time.monotonic() + 300  # the worker has the lowest priority
    while (state := client.get(f"/v1/videos/{name}").json())["status"] == "working" and time.monotonic() < end:
        time.sleep(0.2)
    assert (state["status"], state["progress"]) == ("done", 1.0), state
    with av.open(io.BytesIO(client.get(state["file"]).content)) as video:
        assert video.streams.video[0].frames == 13
        assert video.metadata["comment"].startswith("AI-generated")


def test_videos_that_are_refused(open_app: Open) -> None:
    client = open_app(sessions=1, video_seconds=2.0)

    def answer(**wish: Any) -> tuple[int, str]:
        return problem(client.post("/v1/videos", json=wish))

    long = base64.b64encode(bundled.conversation()[0].read_bytes()).decode()
    assert answer() == (422, "invalid")
    assert answer(seconds=3) == (422, "too_long")
    assert answer(agent_audio="%") == (422, "invalid")
    assert answer(agent_audio=base64.b64encode(b"noise").decode()) == (422, "bad_audio")
    assert answer(user_audio=long) == (422, "too_long")
    assert answer(seconds=1, avatar="nobody") == (404, "no_avatar")
    assert problem(client.get("/v1/videos/nobody")) == (404, "no_video")
    start(client)
    assert answer(seconds=1) == (503, "no_room")
