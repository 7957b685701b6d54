"""The gateway over HTTP and WebSocket, with a fake engine: who gets in, what is answered, and what harms nobody."""

from __future__ import annotations

import base64
import io
import time
import wave

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra live")
pytest.importorskip("dlib", reason="needs the extra live")

from gateway_app import LOUD, THERE, Open, events, packet, problem, start, until, wav
from starlette.websockets import WebSocketDisconnect

from streamavatar import bundled
from streamavatar.serving import voice
from streamavatar.serving.sessions import OUTBOX, Outbox
from streamavatar.serving.speech import synthesizers

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
