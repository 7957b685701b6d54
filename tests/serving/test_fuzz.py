"""Schemathesis over the OpenAPI document: whatever a client sends, the server never fails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

schemathesis = pytest.importorskip("schemathesis", reason="a development tool")
pytest.importorskip("fastapi", reason="needs the extra live")

from hypothesis import HealthCheck, settings  # noqa: E402

from streamavatar.serving.app import create_app  # noqa: E402
from streamavatar.serving.engine_client import Capacity  # noqa: E402
from streamavatar.serving.settings import ServerSettings  # noqa: E402

EXPECTED = {501, 503, 507}
"""No synthesiser; no engine yet, or draining; no room for pictures: documented answers."""


@dataclass
class Starting:
    """An engine that never gets ready: what is fuzzed is the door, and sessions have tests of their own."""

    ready: bool = False
    capacity: Capacity | None = None
    restarts: int = 0
    client: Any = None


@schemathesis.serializer("application/sdp", "audio/*", "image/png", "image/jpeg", "image/webp")
def as_it_is(context: Any, value: Any) -> bytes:
    """Bodies that are no JSON."""
    return value if isinstance(value, bytes) else str(value).encode(errors="replace")


TOKEN = {"Authorization": "Bearer token"}
APP = create_app(ServerSettings(host="0.0.0.0", token="token"), Starting())
schema = schemathesis.openapi.from_asgi("/openapi.json", APP)


@schema.parametrize()
@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
def test_never_a_server_error(case: Any) -> None:
    response = case.call(headers=TOKEN)
    assert response.status_code < 500 or response.status_code in EXPECTED, response.text
    if response.status_code >= 400:
        body = response.json()
        assert set(body) == {"error"} or set(body) == {"status"}, body
