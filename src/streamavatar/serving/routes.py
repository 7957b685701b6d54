"""The HTTP calls; `bodies` holds what they take and give."""

from __future__ import annotations

import asyncio
import base64
import binascii
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse, JSONResponse
from numpy.typing import NDArray

from streamavatar.errors import UserError
from streamavatar.serving import bodies
from streamavatar.serving.clock import AGENT_RATE, USER_RATE
from streamavatar.serving.engine_client import EngineDied
from streamavatar.serving.events import serve_events
from streamavatar.serving.faces import FORMATS, Face, Faces
from streamavatar.serving.metrics import CONTENT_TYPE_LATEST, Metrics
from streamavatar.serving.problems import ApiProblem, documented
from streamavatar.serving.samples import samples
from streamavatar.serving.security import bearer, ice_servers, same_secret
from streamavatar.serving.sessions import Entry, Registry, states, summary
from streamavatar.serving.settings import ServerSettings
from streamavatar.serving.speech import synthesizers
from streamavatar.serving.videos import Video, Videos
from streamavatar.serving.voice import decode_audio, play, say

_MEMORY_SECONDS = 2.0


@dataclass
class House:
    """What the routes work with; one per app."""

    settings: ServerSettings
    registry: Registry
    faces: Faces
    metrics: Metrics
    videos: Videos


async def house_of(request: Request) -> House:
    house: House = request.app.state.house
    return house


def address_of(request: Request) -> str:
    """Of the client; what a proxy on this machine says of it, else a proxy is one client for all behind it."""
    return request.client.host if request.client else ""


HouseIn = Annotated[House, Depends(house_of)]
Authorization = Annotated[str | None, Header()]
Name = Annotated[str, Path(max_length=64)]


async def admitted(house: HouseIn, authorization: Authorization = None) -> None:
    """The server's own token, where it has one."""
    if house.settings.token and not same_secret(bearer(authorization), house.settings.token):
        raise ApiProblem(401, "unauthorized", "this server needs its token: Authorization: Bearer TOKEN")


async def entry_of(session: Name, house: HouseIn, authorization: Authorization = None) -> Entry:
    return house.registry.find(session, bearer(authorization))


EntryIn = Annotated[Entry, Depends(entry_of)]
SESSION_ERRORS = documented(401, 403, 404, 422)

plain = APIRouter(tags=["server"], responses=documented(403))
avatars = APIRouter(prefix="/v1/avatars", tags=["avatars"], responses=documented(401, 403, 404))
sessions = APIRouter(prefix="/v1/sessions", tags=["sessions"], responses=SESSION_ERRORS)
videos = APIRouter(prefix="/v1/videos", tags=["videos"], responses=documented(401, 403, 404, 422))


# the server ------------------------------------------------------------------------------------------


@plain.get("/healthz", response_model=bodies.Status)
async def health() -> dict[str, str]:
    """The process lives."""
    return {"status": "ok"}


@plain.get("/readyz", response_model=bodies.Status, responses={503: {"model": bodies.Status}})
async def ready(house: HouseIn) -> JSONResponse:
    """New sessions are welcome."""
    if house.registry.draining:
        return JSONResponse({"status": "draining"}, 503)
    is_ready = house.registry.keeper.ready
    return JSONResponse({"status": "ready" if is_ready else "starting"}, 200 if is_ready else 503)


@plain.get("/metrics", response_class=Response)
async def metrics(house: HouseIn) -> Response:
    """For Prometheus."""
    registry, memory = house.registry, 0
    with suppress(EngineDied, asyncio.TimeoutError):  # scraped while an engine starts, or hangs
        memory = await asyncio.wait_for(registry.keeper.client.memory(), _MEMORY_SECONDS)
    text = house.metrics.text(states(registry.entries), registry.keeper.restarts, memory)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


@plain.get("/v1/capacity", response_model=bodies.CapacityAnswer, responses=documented(503))
async def capacity(house: HouseIn) -> dict[str, Any]:
    """How many sessions fit, how many there are, and the measurement behind it."""
    registry = house.registry
    known = registry.keeper.capacity
    if known is None or not registry.keeper.ready:
        raise ApiProblem(503, "engine_starting", "the engine is starting", retry_after=1)
    info: Any = registry.keeper.client.info
    return {
        "sessions": known.sessions,
        "active": registry.active,
        "chunk_seconds": {str(n): {"p50": t.p50, "p99": t.p99} for n, t in known.chunk_seconds.items()},
        "chunk_budget_seconds": known.budget,
        "draining": registry.draining,
        "model": info.model,
        "device": info.device,
        "precision": info.precision,
        "width": info.width,
        "height": info.height,
        "fps": info.fps,
        "speech": bool(synthesizers()),
    }


@plain.get("/v1/samples", response_model=bodies.SampleList)
async def list_samples() -> dict[str, Any]:
    """Lines that ship, to try the avatar with: the agent's to be said, the user's to be heard."""
    known = await asyncio.to_thread(samples)
    entries = [{"id": s.id, "title": s.title, "lane": s.lane, "seconds": round(s.seconds, 2)} for s in known.values()]
    return {"samples": entries}


@plain.get("/v1/samples/{sample}", response_class=Response, responses=documented(404, 422))
async def sample_file(sample: Name) -> Response:
    """One line, WAV."""
    known = await asyncio.to_thread(samples)
    if sample not in known:
        raise ApiProblem(404, "no_sample", f"there is no sample {sample!r}")
    return Response(known[sample].wav, media_type="audio/wav")


# avatars ---------------------------------------------------------------------------------------------


def _avatar(face: Face) -> dict[str, Any]:
    shown = {"id": face.id, "name": face.name, "description": face.description, "own": face.own}
    return {**shown, "picture": f"/v1/avatars/{face.id}/picture"}


@avatars.get("", response_model=bodies.AvatarList, dependencies=[Depends(admitted)])
async def list_avatars(house: HouseIn) -> dict[str, Any]:
    """The bundled portraits. Uploads are not listed: whoever has the id may use one."""
    return {"avatars": [_avatar(face) for face in house.faces.listed]}


@avatars.get("/{avatar}/picture", response_class=Response, responses=documented(422))
async def avatar_picture(avatar: Name, house: HouseIn) -> Response:
    """PNG. The id is the key: pictures are shown without a token, so that pages can embed them."""
    return Response(house.faces.get(avatar).as_png(), media_type="image/png")


_PICTURE = {
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in FORMATS},
    }
}


@avatars.post(
    "",
    status_code=201,
    response_model=bodies.AvatarEntry,
    responses=documented(408, 413, 415, 422, 507),
    openapi_extra=_PICTURE,
    dependencies=[Depends(admitted)],
)
async def add_avatar(request: Request, house: HouseIn, crop: Literal["face", "centre"] = "face") -> dict[str, Any]:
    """Upload an own face: a PNG, JPEG or WebP as the body. `crop=centre` takes a picture in which no face is found."""
    data = await read_body(request, house.settings.face_bytes)
    async with house.registry.slow_work:
        face = await asyncio.to_thread(
            house.faces.add, data, request.headers.get("content-type", ""), crop, address_of(request)
        )
    await house.registry.prepare(face)
    return _avatar(face)


@avatars.delete("/{avatar}", status_code=204, responses=documented(422), dependencies=[Depends(admitted)])
async def delete_avatar(avatar: Name, house: HouseIn) -> None:
    """Forget an uploaded face. Sessions that show it go on."""
    await house.registry.forget(avatar)


async def read_body(request: Request, most: int) -> bytes:
    """The body, read piece by piece. Raises ApiProblem 413 as soon as it is too long."""
    declared = request.headers.get("content-length", "0")
    data = bytearray()
    if declared.isdigit() and int(declared) > most:
        raise ApiProblem(413, "too_large", f"the body is larger than {most} bytes")
    async for piece in request.stream():
        data += piece
        if len(data) > most:
            raise ApiProblem(413, "too_large", f"the body is larger than {most} bytes")
    return bytes(data)


# sessions --------------------------------------------------------------------------------------------


@sessions.post(
    "",
    status_code=201,
    response_model=bodies.SessionOpened,
    responses=documented(429, 503),
    dependencies=[Depends(admitted)],
)
async def open_session(wish: bodies.SessionWish, request: Request, house: HouseIn) -> dict[str, Any]:
    """Start a live avatar."""
    entry = await house.registry.open(wish, address_of(request))
    info: Any = house.registry.keeper.client.info
    return {
        "id": entry.id,
        "token": entry.token,
        "expires_in": 60 * house.settings.max_minutes,
        "ice_servers": ice_servers(house.settings, entry.id),
        "width": info.width,
        "height": info.height,
        "fps": info.fps,
        "agent_rate": AGENT_RATE,
        "user_rate": USER_RATE,
        "events": f"/v1/sessions/{entry.id}/events",
    }


@sessions.get("/{session}", response_model=bodies.SessionState)
async def look(entry: EntryIn) -> dict[str, Any]:
    """State and figures."""
    return summary(entry)


@sessions.delete("/{session}", status_code=204)
async def close_session(entry: EntryIn) -> None:
    """End the session."""
    await entry.live.close("The session was closed.")


@sessions.post("/{session}/offer", response_model=bodies.OfferAnswer)
async def offer(body: bodies.Offer, entry: EntryIn) -> dict[str, str]:
    """Connect the user's WebRTC peer: picture and sound out, microphone in."""
    try:
        return {"sdp": await entry.live.offer(body.sdp), "type": "answer"}
    except UserError as error:
        raise ApiProblem(422, "bad_sdp", str(error)) from error


@sessions.patch("/{session}/offer", status_code=204)
async def trickle(body: bodies.Candidate, entry: EntryIn) -> None:
    """A candidate of the user's peer, or null at the end."""
    candidate = None if body.candidate is None else body.candidate.model_dump()
    try:
        await entry.live.add_candidate(candidate)
    except UserError as error:
        raise ApiProblem(422, "bad_candidate", str(error)) from error


_SDP = {"requestBody": {"required": True, "content": {"application/sdp": {"schema": {"type": "string"}}}}}


@sessions.post(
    "/{session}/whep",
    status_code=201,
    response_class=Response,
    responses=documented(408, 413),
    openapi_extra=_SDP,
)
async def whep(request: Request, entry: EntryIn) -> Response:
    """Add a viewer (WHEP)."""
    data = await read_body(request, 200_000)
    try:
        viewer, sdp = await entry.live.whep(data.decode())
    except (UserError, UnicodeDecodeError) as error:
        raise ApiProblem(422, "bad_sdp", str(error)) from error
    where = f"/v1/sessions/{entry.id}/whep/{viewer}"
    return Response(sdp, 201, {"Location": where}, media_type="application/sdp")


@sessions.delete("/{session}/whep/{viewer}", status_code=204)
async def drop_viewer(viewer: Name, entry: EntryIn) -> None:
    """Remove a viewer."""
    if not await entry.live.drop_viewer(viewer):
        raise ApiProblem(404, "no_viewer", "there is no such viewer")


_AUDIO = {"requestBody": {"required": True, "content": {"audio/*": {"schema": {"type": "string", "format": "binary"}}}}}


@sessions.post(
    "/{session}/speech",
    status_code=202,
    response_model=bodies.Spoken,
    responses=documented(408, 409, 413, 429),
    openapi_extra=_AUDIO,
)
async def speech(request: Request, entry: EntryIn, house: HouseIn) -> dict[str, Any]:
    """Say a recording: any audio file as the body."""
    data = await read_body(request, house.settings.audio_bytes)
    number, seconds = await play(house.registry, entry, data)
    return {"speech": number, "seconds": seconds}


@sessions.post("/{session}/text", status_code=202, response_model=bodies.Spoken, responses=documented(409, 429, 501))
async def text(body: bodies.Words, entry: EntryIn, house: HouseIn) -> dict[str, Any]:
    """Say a text, where a synthesiser is installed."""
    number, seconds = await say(house.registry, entry, body.text, body.voice)
    return {"speech": number, "seconds": seconds}


@sessions.post("/{session}/interrupt", response_model=bodies.Interrupted)
async def interrupt(entry: EntryIn) -> dict[str, Any]:
    """Stop speaking at once."""
    position = entry.live.interrupt()
    return {"playback_position": position or 0.0, "interrupted": position is not None}


@sessions.get("/{session}/trace")
async def trace(entry: EntryIn) -> dict[str, Any]:
    """The session's last minutes, for chrome://tracing or Perfetto."""
    return entry.live.trace()


@sessions.websocket("/{session}/events")
async def events(socket: WebSocket, session: Name, token: Annotated[str, Query(max_length=100)] = "") -> None:
    house: House = socket.app.state.house
    with suppress(WebSocketDisconnect):  # the client may leave at any moment
        await serve_events(socket, house.registry, session, token or bearer(socket.headers.get("authorization")))


# videos ----------------------------------------------------------------------------------------------


def _video(video: Video) -> dict[str, Any]:
    file = f"/v1/videos/{video.id}/file" if video.status == "done" else None
    shown = {"id": video.id, "status": video.status, "progress": video.progress}
    return {**shown, "message": video.message, "file": file}


def _lane(text: str, name: str, rate: int, most_seconds: float) -> NDArray[np.int16]:
    """Samples of a lane in base64. Slow: not for the event loop. Raises ApiProblem 422."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiProblem(422, "invalid", f"{name} is not base64") from error
    return decode_audio(data, most_seconds, rate)


@videos.post(
    "",
    status_code=202,
    response_model=bodies.VideoStarted,
    responses=documented(408, 413, 429, 503),
    dependencies=[Depends(admitted)],
)
async def start_video(wish: bodies.VideoWish, house: HouseIn) -> dict[str, str]:
    """Render a video offline, marked as AI-generated. One at a time, and only while live sessions leave room."""
    house.videos.check_free()
    face, most = house.faces.find(wish.avatar), house.settings.video_seconds
    lanes, seconds = {}, wish.seconds or 0.0
    for name, text, rate in (("agent", wish.agent_audio, AGENT_RATE), ("user", wish.user_audio, USER_RATE)):
        if text:
            async with house.registry.slow_work:
                lanes[name] = await asyncio.to_thread(_lane, text, f"{name}_audio", rate, most)
            seconds = seconds if wish.seconds else max(seconds, len(lanes[name]) / rate)
    if not seconds:
        raise ApiProblem(422, "invalid", "give agent_audio, user_audio, or seconds of silence")
    if seconds > most:
        raise ApiProblem(422, "too_long", f"a video has at most {most:g} s")
    return {"id": house.videos.start(face.as_png(), lanes, seconds, wish.seed).id}


@videos.get("/{video}", response_model=bodies.VideoState)
async def video(video: Name, house: HouseIn) -> dict[str, Any]:
    """How far it is. The id is the key."""
    return _video(house.videos.get(video))


@videos.get("/{video}/file", response_class=FileResponse, responses=documented(409))
async def video_file(video: Name, house: HouseIn) -> FileResponse:
    """MP4."""
    job = house.videos.get(video)
    if job.status != "done":
        raise ApiProblem(409, "not_ready", "the video is not finished")
    return FileResponse(job.file, media_type="video/mp4")
