"""The WebSocket of a session: events out, commands and sound in."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from streamavatar.errors import UserError
from streamavatar.serving.live_session import LaneFull
from streamavatar.serving.problems import ApiProblem
from streamavatar.serving.sessions import Entry, Outbox, Registry
from streamavatar.serving.voice import check_free, say

logger = logging.getLogger(__name__)
AGENT, USER = 0, 1
HEADER = 9  # lane, sample index
LARGEST = 1_000_000  # bytes in one message
SLOW = 1013
_LAST_WORDS = 0.5  # seconds for the events that wait when the session ends


async def serve_events(socket: WebSocket, registry: Registry, name: str, token: str) -> None:
    """From the handshake to the end of the session or of the connection.

    A page cannot set headers here: its token comes in the query, or as a subprotocol beside `bearer`.
    """
    offered = socket.scope.get("subprotocols", [])
    token = token or next((word for word in offered if word != "bearer"), "")
    try:
        entry = registry.find(name, token)
    except ApiProblem as problem:
        await socket.close(4000 + problem.status_code, problem.detail)
        return
    await socket.accept("bearer" if "bearer" in offered else None)
    outbox = Outbox()
    entry.outboxes.add(outbox)
    live = entry.live
    outbox.put(entry.event("session.state_updated", state="connected" if live.connected else "connecting"))
    outbox.put(entry.event("agent.state_updated", state=live.state))
    speaker = asyncio.create_task(_speak(socket, outbox))
    listener = asyncio.create_task(_listen(socket, entry, registry, outbox))
    ended = asyncio.create_task(_until(live.ended))
    tasks = (speaker, listener, ended)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if ended.done() and not speaker.done():
            await asyncio.wait({speaker}, timeout=_LAST_WORDS)
    finally:
        entry.outboxes.discard(outbox)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            error = None if task.cancelled() else task.exception()
            if error is not None and not isinstance(error, WebSocketDisconnect):
                logger.error("events of session %s: %r", name, error, exc_info=error)
    if socket.client_state is WebSocketState.CONNECTED and socket.application_state is WebSocketState.CONNECTED:
        await socket.close(SLOW if outbox.overflown else 1000)


async def _until(ended: asyncio.Future[str]) -> None:
    await asyncio.shield(ended)


async def _speak(socket: WebSocket, outbox: Outbox) -> None:
    while not outbox.overflown:
        event = await outbox.take()
        await socket.send_text(json.dumps(event))
        if event["type"] == "session.state_updated" and event["state"] == "closed":
            return


async def _listen(socket: WebSocket, entry: Entry, registry: Registry, outbox: Outbox) -> None:
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return
        entry.touch()
        try:
            if message.get("bytes") is not None:
                _sound(entry, message["bytes"])
            else:
                await _command(entry, registry, message.get("text") or "")
        except LaneFull:
            pass  # the session has said so itself: audio_buffer.full
        except (ApiProblem, UserError) as error:
            code = error.code if isinstance(error, ApiProblem) else "bad_request"
            text = error.detail if isinstance(error, ApiProblem) else str(error)
            retryable = isinstance(error, ApiProblem) and error.retryable
            outbox.put(entry.event("error", code=code, message=text, retryable=retryable))


def _sound(entry: Entry, data: bytes) -> None:
    """Binary: 1 byte lane, 8 bytes sample index (big-endian), int16 little-endian mono."""
    if len(data) > LARGEST or len(data) < HEADER or (len(data) - HEADER) % 2:
        raise UserError(f"a binary message is {HEADER} bytes of header and whole 16-bit samples, at most {LARGEST}")
    lane, index = data[0], int.from_bytes(data[1:HEADER], "big")
    samples = np.frombuffer(data, "<i2", offset=HEADER)
    if lane == AGENT:
        check_free(entry)
        entry.live.push_agent(samples, index=index)
    elif lane == USER:
        entry.live.push_user(samples, index=index)
    else:
        raise UserError(f"lane {lane} is unknown: 0 is the agent's, 1 the user's")


async def _command(entry: Entry, registry: Registry, text: str) -> None:
    if len(text) > LARGEST:
        raise UserError(f"a message has at most {LARGEST} characters")
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError("this is not JSON") from error
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise UserError("a message is an object with a type")
    kind = message["type"]
    if kind == "agent.speak":
        await _agent_speak(entry, registry, message)
    elif kind == "client.metrics":
        skew = message.get("av_skew_seconds")
        if isinstance(skew, int | float) and not isinstance(skew, bool) and math.isfinite(skew):
            registry.metrics.skew(float(skew))
    elif kind == "session.update":
        wish = message.get("server_barge_in")
        if not isinstance(wish, bool):
            raise UserError("session.update needs server_barge_in: true or false")
        entry.live.server_barge_in = wish
    elif kind in _PLAIN:
        _PLAIN[kind](entry)
    else:
        known = ", ".join(sorted([*_PLAIN, "agent.speak", "client.metrics", "session.update"]))
        raise UserError(f"the type {kind[:60]!r} is unknown: there are {known}")


_PLAIN: dict[str, Callable[[Entry], object]] = {
    "agent.speak_end": lambda entry: entry.live.end_agent(),
    "agent.interrupt": lambda entry: entry.live.interrupt(),
    # The avatar listens whenever the user's lane carries a voice; these names of other agents need no action.
    "agent.start_listening": lambda entry: None,
    "agent.stop_listening": lambda entry: None,
    "session.keep_alive": lambda entry: None,
}


async def _agent_speak(entry: Entry, registry: Registry, message: dict[str, Any]) -> None:
    text, audio, rate = message.get("text"), message.get("audio"), message.get("rate", 24000)
    if isinstance(text, str) and text:
        await say(registry, entry, text, None)
    if isinstance(audio, str):
        if not isinstance(rate, int) or isinstance(rate, bool):
            raise UserError("rate is a whole number of samples per second")
        check_free(entry)
        entry.live.push_agent(_samples(audio), rate=rate)
    elif not isinstance(text, str) or not text:
        raise UserError("agent.speak needs text, or audio: base64 of 16-bit mono samples")


def _samples(audio: str) -> NDArray[np.int16]:
    try:
        data = base64.b64decode(audio, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError("audio is not base64") from error
    if len(data) % 2:
        raise UserError("audio is not whole 16-bit samples")
    return np.frombuffer(data, "<i2")
