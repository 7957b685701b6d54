"""Whatever a client sends, the server never fails, and its answers are those that the OpenAPI document names.

Schemathesis draws the calls; most of those that belong to a session get one that exists.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra live")
pytest.importorskip("dlib", reason="needs the extra live")
pytest.importorskip("schemathesis", reason="a development tool")

import httpx
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from streamavatar.serving.app import create_app
from streamavatar.serving.engine_client import Capacity
from streamavatar.serving.settings import ServerSettings

SIZE, CHUNK = 64, 12
BUSY = {429, 501, 503, 507}
"""Documented and right: full, no synthesiser, no room."""


@schemathesis.serializer("application/sdp", "audio/*", "image/png", "image/jpeg", "image/webp")
def as_bytes(context: Any, value: Any) -> bytes:
    """Bodies that are no JSON."""
    return value if isinstance(value, bytes) else str(value).encode(errors="replace")


class GreyEngine:
    """Any number of sessions; every frame is grey."""

    info = SimpleNamespace(
        height=SIZE, width=SIZE, fps=25, chunk_frames=CHUNK, model="grey", device="cpu", precision="float32"
    )

    async def encode(self, face: str, picture: Any) -> None: ...
    async def forget(self, face: str) -> None: ...

    async def open(self, session: str, picture: Any, seed: int, face: str) -> None:
        assert picture.shape == (SIZE, SIZE, 3)

    async def make(self, session: str, index: int, agent: Any, user: Any) -> Any:
        frames = np.full((CHUNK, SIZE * 3 // 2, SIZE), 128, np.uint8)
        return SimpleNamespace(index=index, frames=frames, seconds={"transformer": 0.001})

    async def rollback(self, session: str, index: int) -> None: ...
    async def close_session(self, session: str) -> None: ...

    async def memory(self) -> int:
        return 0


class Keeper:
    client, ready, restarts, capacity = GreyEngine(), True, 0, Capacity(4, 0.384)


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    """The address of a server with a grey engine."""
    limits = ServerSettings(grace_seconds=1.0, face_count=8, video_seconds=0.1, upload_seconds=1.0)
    server = uvicorn.Server(uvicorn.Config(create_app(limits, Keeper()), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


class Session:
    """A session that is there whenever a call needs one."""

    def __init__(self, base: str) -> None:
        self.http = httpx.Client(base_url=base, timeout=10)
        self.path, self.key = "", {}

    def ensure(self) -> None:
        if self.path and self.http.get(self.path, headers=self.key).status_code == 200:
            return
        answer = self.http.post("/v1/sessions", json={})
        while answer.status_code in BUSY:  # those that were opened by the fuzzer die of neglect
            time.sleep(0.1)
            answer = self.http.post("/v1/sessions", json={})
        self.path = f"/v1/sessions/{answer.json()['id']}"
        self.key = {"Authorization": f"Bearer {answer.json()['token']}"}


@pytest.mark.parametrize("examples", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_no_call_breaks_the_server(base: str, examples: int) -> None:
    schema = schemathesis.openapi.from_url(f"{base}/openapi.json")
    session = Session(base)
    checks = [status_code_conformance, content_type_conformance, response_schema_conformance]
    called = behind = 0
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(
            max_examples=examples,
            deadline=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
            database=None,
            derandomize=True,
        )
        @given(case=operation.as_strategy())
        def call(case: Any) -> None:
            nonlocal called, behind
            called += 1
            if "session" in case.path_parameters and called % 4:  # else as it was drawn: nobody's session
                session.ensure()
                case.path_parameters["session"] = session.path.rpartition("/")[2]
                case.headers.update(session.key)
            answer = case.call(timeout=10)
            behind += "session" in case.path_parameters and answer.status_code not in (401, 403, 404)
            case.validate_response(answer, checks=checks)
            if answer.status_code not in BUSY:
                case.validate_response(answer, checks=[not_a_server_error])

        call()
    assert called > 15 * examples
    assert behind > 5 * examples
    assert session.http.get("/readyz").status_code == 200


def test_a_body_that_never_ends_is_not_waited_for(base: str) -> None:
    """A byte now and then keeps no connection open for ever."""
    host, port = base.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(b"POST /v1/avatars HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n")
        begin, answer = time.monotonic(), b""
        client.settimeout(0.2)
        while b"too_slow" not in answer and time.monotonic() - begin < 5:
            client.sendall(b"x")
            try:
                answer += client.recv(10_000)
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"too_slow" in answer
