"""Who is kept out: foreign hosts and origins, missing tokens, bodies without end; and what TURN is told."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra live")

import httpx
from fastapi.testclient import TestClient

from streamavatar.errors import UserError
from streamavatar.serving.app import create_app
from streamavatar.serving.engine_client import Capacity
from streamavatar.serving.problems import ApiProblem
from streamavatar.serving.security import BodyLimit, ice_servers, origin_allowed, turn_credentials
from streamavatar.serving.settings import ServerSettings


class NoEngine:
    ready, capacity, restarts, client = False, Capacity(1, 0.384), 0, None


def client_of(**settings: Any) -> TestClient:
    return TestClient(create_app(ServerSettings(**settings), NoEngine()), "http://127.0.0.1:8080")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "", "192.168.0.7", "[::2]"]
)
def test_foreign_hosts_on_loopback(host: str) -> None:
    with client_of() as client:
        assert client.get("/v1/avatars", headers={"Host": host}).status_code == 403


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost:8080", "localhost", "[::1]:8080"])
def test_names_of_this_machine(host: str) -> None:
    with client_of() as client:
        assert client.get("/healthz", headers={"Host": host}).status_code == 200


def test_foreign_pages_may_look_but_not_act() -> None:
    evil = {"Origin": "http://evil.example"}
    with client_of() as client:
        assert client.post("/v1/sessions", json={}, headers=evil).status_code == 403
        assert client.post("/v1/sessions", json={}, headers={"Origin": "http://127.0.0.1:8080"}).status_code == 503
        assert "access-control-allow-origin" not in client.get("/v1/avatars", headers=evil).headers
    with client_of(allowed_origins=("http://evil.example",)) as client:
        answer = client.post("/v1/sessions", json={}, headers=evil)
        assert answer.status_code == 503
        assert answer.headers["access-control-allow-origin"] == "http://evil.example"
    assert origin_allowed(None, "a", ())
    assert not origin_allowed("null", "a", ())


def test_no_path_leads_to_files() -> None:
    """`settings.py` lies beside the page's folder. Sent as they are: the usual clients tidy paths up."""
    places = ("", "/v1/samples", "/v1/avatars", "/v1/videos", "/v1/sessions")
    paths = ("/../settings.py", "/..%2fsettings.py", "/%2e%2e/settings.py", "//etc/passwd", "/..\\settings.py", "/%00")

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(create_app(ServerSettings(), NoEngine()))
        async with httpx.AsyncClient(transport=transport) as client:
            urls = (f"{place}{path}".encode() for place in places for path in paths)
            return [await client.get(httpx.URL("http://127.0.0.1:8080", raw_path=url)) for url in urls]

    for answer in asyncio.run(ask()):
        assert answer.status_code in (401, 404, 405), (answer.url, answer.text)
        assert "ServerSettings" not in answer.text


def test_the_servers_token() -> None:
    with client_of(host="0.0.0.0", token="secret") as client:
        for call in (
            client.post("/v1/sessions", json={}),
            client.get("/v1/avatars"),
            client.post("/v1/videos", json={}),
        ):
            assert call.status_code == 401
        right = {"Authorization": "Bearer secret"}
        assert client.post("/v1/sessions", json={}, headers=right).status_code == 503
        assert client.get("/v1/avatars", headers=right).status_code == 200
        assert client.get("/healthz", headers={"Host": "anything.example"}).status_code == 200
    assert "secret" not in repr(ServerSettings(token="secret", turn_secret="secret", turn_url="turn:x"))


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "example.org", "::"])
def test_no_wide_door_without_a_token(host: str) -> None:
    with pytest.raises(UserError, match="--token"):
        ServerSettings(host=host)
    assert ServerSettings(host="::1").on_loopback
    with pytest.raises(UserError, match="TURN"):
        ServerSettings(turn_url="turn:x")


def limited(pieces: list[tuple[float, bytes]], most: int, seconds: float) -> bytes:
    """Read a body whose pieces come after some seconds each."""

    async def run() -> bytes:
        left = list(pieces)

        async def receive() -> dict[str, Any]:
            wait, data = left.pop(0)
            await asyncio.sleep(wait)
            return {"type": "http.request", "body": data, "more_body": bool(left)}

        limit, got = BodyLimit(receive, most, seconds), b""
        while True:
            message = await limit()
            got += message["body"]
            if not message["more_body"]:
                return got

    return asyncio.run(run())


def test_bodies_end() -> None:
    assert limited([(0, b"ab"), (0.01, b"c")], 3, 1) == b"abc"
    with pytest.raises(ApiProblem) as large:
        limited([(0, b"ab"), (0, b"cd")], 3, 1)
    assert large.value.status_code == 413
    with pytest.raises(ApiProblem) as slow:
        limited([(0.06, b"a")] * 5, 100, 0.15)
    assert slow.value.status_code == 408


def test_turn_credentials() -> None:
    user, password = turn_credentials("north", "s1", now=1000.0)
    assert user == "4600:s1"
    assert base64.b64decode(password) == hmac.new(b"north", b"4600:s1", hashlib.sha1).digest()
    settings = ServerSettings(turn_url="turn:t.example:3478", turn_secret="north", stun_url="stun:s.example")
    stun, turn = ice_servers(settings, "s1")
    assert stun == {"urls": "stun:s.example"}
    assert turn["urls"] == "turn:t.example:3478"
    assert turn["username"].endswith(":s1")
    assert "north" not in str(turn)
