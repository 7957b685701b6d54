"""The gateway with fake engines, and what its tests do with it."""

from __future__ import annotations

import io
import json
import struct
import time
import wave
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from fastapi.testclient import TestClient

from streamavatar.serving.app import create_app
from streamavatar.serving.engine_client import Capacity, EngineDied, Timing
from streamavatar.serving.settings import ServerSettings

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
"""The fixture `open_app`: open_app(sessions=2, ready=True, **settings) -> a client; `client.keeper` is its keeper."""


def opened(make_engine: Callable[..., Any], sessions: int = 2, ready: bool = True, **changes: Any) -> TestClient:
    """A client of an app that is to be entered and left."""
    info = make_engine().info
    info.device, info.precision = "cpu", "float32"
    keeper = FakeKeeper(FakeEngines(make_engine, info), Capacity(sessions, 0.384, {1: Timing(0.1, 0.2, 0.1)}), ready)
    client = TestClient(create_app(replace(ServerSettings(), **changes), keeper), HERE)
    client.keeper = keeper
    return client


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
