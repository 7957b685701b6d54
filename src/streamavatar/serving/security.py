"""Who may do what: tokens, hosts and origins, limits on bodies, headers, and credentials for TURN."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamavatar.serving.bodies import LANE_CHARACTERS
from streamavatar.serving.problems import ApiProblem, answer
from streamavatar.serving.settings import ServerSettings, is_loopback

TURN_SECONDS = 3600
_JSON_BYTES = 300_000
SAFE = ("GET", "HEAD", "OPTIONS")
HEADERS = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob: mediastream:; connect-src 'self'; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
    ),
    "permissions-policy": "microphone=(self), camera=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def same_secret(given: str, expected: str) -> bool:
    """In constant time."""
    return hmac.compare_digest(given.encode(), expected.encode())


def bearer(authorization: str | None) -> str:
    """The token of an Authorization header, or nothing."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def turn_credentials(secret: str, name: str, now: float | None = None) -> tuple[str, str]:
    """User name and password that a TURN server with this shared secret accepts for an hour (TURN REST API)."""
    expiry = int(time.time() if now is None else now) + TURN_SECONDS
    username = f"{expiry}:{name}"
    digest = hmac.new(secret.encode(), username.encode(), hashlib.sha1).digest()
    return username, base64.b64encode(digest).decode()


def ice_servers(settings: ServerSettings, session: str) -> list[dict[str, str]]:
    """What a browser and our own peers are told, for one session."""
    servers = [{"urls": settings.stun_url}] if settings.stun_url else []
    if settings.turn_url:
        username, credential = turn_credentials(settings.turn_secret, session)
        servers.append({"urls": settings.turn_url, "username": username, "credential": credential})
    return servers


def origin_allowed(origin: str | None, host: str, allowed: Sequence[str]) -> bool:
    """Whether a page of that origin may act here: our own, one that was allowed, or no page at all."""
    return origin is None or origin.partition("://")[2] == host or origin in allowed


class Guard:
    """Checks that come before everything else, for HTTP and WebSocket alike.

    On loopback the Host header must name loopback, or a foreign page could rebind its name to this machine. Whatever
    changes something must come from our own page, from an allowed one, or from no page.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        refused = self._refused(scope, Headers(scope=scope))
        if scope["type"] == "websocket":
            if not refused:
                return await self.app(scope, receive, send)
            await receive()
            return await send({"type": "websocket.close", "code": 1008, "reason": refused})

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                outgoing = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    outgoing.setdefault(name, value)
            await send(message)

        app = answer(403, "forbidden", refused) if refused else self.app
        await app(scope, BodyLimit(receive, self._most_bytes(scope["path"]), self.settings.upload_seconds), sent)

    def _most_bytes(self, path: str) -> int:
        """Of a body; JSON is parsed on the event loop, where it must be short."""
        if path == "/v1/videos":
            return 2 * LANE_CHARACTERS + _JSON_BYTES
        if path == "/v1/avatars":
            return self.settings.face_bytes
        return self.settings.audio_bytes if path.endswith("/speech") else _JSON_BYTES

    def _refused(self, scope: Scope, headers: Headers) -> str:
        host = headers.get("host", "")
        if self.settings.on_loopback and not is_loopback(_name(host)):
            return f"this server answers to localhost, not to {host[:100]!r}"
        acts = scope["type"] == "websocket" or scope["method"] not in SAFE
        if acts and not origin_allowed(headers.get("origin"), host, self.settings.allowed_origins):
            return "pages of other origins may not use this server; start it with --allow-origin to let them"
        return ""


def _name(host: str) -> str:
    """A Host header without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


class BodyLimit:
    """A request's body, cut off where it is too long or takes too long."""

    def __init__(self, receive: Receive, most: int, seconds: float) -> None:
        self._receive, self._left, self._seconds = receive, most, seconds
        self._deadline: float | None = None
        self._complete = False

    async def __call__(self) -> Message:
        if self._complete:  # what comes now is the client's going
            return await self._receive()
        self._deadline = self._deadline or anyio.current_time() + self._seconds
        try:
            with anyio.fail_after(self._deadline - anyio.current_time()):
                message = await self._receive()
        except TimeoutError as error:
            raise ApiProblem(408, "too_slow", f"the body did not arrive within {self._seconds:g} s") from error
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise ApiProblem(413, "too_large", "the body is too large")
        self._complete = not message.get("more_body", False)
        return message
