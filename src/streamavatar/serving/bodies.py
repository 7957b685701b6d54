"""The bodies of requests and answers: the contract that the OpenAPI document states."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from streamavatar.serving.speech import VoiceName

LANE_CHARACTERS = 8_000_000
Seconds = Annotated[float, Field(ge=0)]


class Body(BaseModel):
    """A request: unknown fields are refused, so that a misspelt wish is not silently dropped."""

    model_config = ConfigDict(extra="forbid")


class ProblemDetail(BaseModel):
    code: str
    message: str
    retryable: bool


class Problem(BaseModel):
    error: ProblemDetail


class Status(BaseModel):
    status: str


class AvatarEntry(BaseModel):
    id: str
    name: str
    description: str
    own: bool
    picture: str


class AvatarList(BaseModel):
    avatars: list[AvatarEntry]


class SampleEntry(BaseModel):
    id: str
    title: str
    lane: Literal["agent", "user"]
    seconds: Seconds


class SampleList(BaseModel):
    samples: list[SampleEntry]


class ChunkTiming(BaseModel):
    p50: Seconds
    p99: Seconds


class CapacityAnswer(BaseModel):
    sessions: int
    active: int
    chunk_seconds: dict[str, ChunkTiming]
    chunk_budget_seconds: Seconds
    draining: bool
    model: str
    device: str
    precision: str
    width: int
    height: int
    fps: int
    speech: bool


class SessionWish(Body):
    avatar: Annotated[str, Field(max_length=64)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    overlap: Literal["agent", "user"] = "agent"
    server_barge_in: bool = False


class IceServer(BaseModel):
    urls: str
    username: str | None = None
    credential: str | None = None


class SessionOpened(BaseModel):
    id: str
    token: str
    expires_in: Seconds
    ice_servers: list[IceServer]
    width: int
    height: int
    fps: int
    agent_rate: int
    user_rate: int
    events: str


class SessionState(BaseModel):
    id: str
    state: Literal["connected", "waiting"]
    agent_state: Literal["idle", "listening", "talking", "interrupting"]
    connected: bool
    seconds: Seconds
    queued_seconds: Seconds
    stats: dict[str, Any]


class Offer(Body):
    sdp: Annotated[str, Field(max_length=200_000)]
    type: Literal["offer"] = "offer"


class OfferAnswer(BaseModel):
    sdp: str
    type: Literal["answer"] = "answer"


class IceCandidate(BaseModel):
    """As a browser's `RTCIceCandidate.toJSON` gives it."""

    model_config = ConfigDict(extra="ignore")

    candidate: Annotated[str, Field(max_length=2000)]
    sdpMid: Annotated[str, Field(max_length=64)] | None = None
    sdpMLineIndex: Annotated[int, Field(ge=0, lt=64)] | None = None


class Candidate(Body):
    candidate: IceCandidate | None


class Words(Body):
    text: Annotated[str, Field(min_length=1, max_length=10_000)]
    voice: VoiceName | None = None


class Spoken(BaseModel):
    speech: int
    seconds: Seconds


class Interrupted(BaseModel):
    playback_position: Seconds
    interrupted: bool


class VideoWish(Body):
    """Lanes are whole audio files (WAV, FLAC, MP3, ...) in base64; without `seconds` the longer one counts."""

    avatar: Annotated[str, Field(max_length=64)] | None = None
    agent_audio: Annotated[str, Field(max_length=LANE_CHARACTERS)] | None = None
    user_audio: Annotated[str, Field(max_length=LANE_CHARACTERS)] | None = None
    seconds: Annotated[float, Field(ge=0.04, le=3600)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0


class VideoStarted(BaseModel):
    id: str


class VideoState(BaseModel):
    """`waiting` while live sessions need the machine; `message` says what went wrong."""

    id: str
    status: Literal["working", "waiting", "done", "failed"]
    progress: Annotated[float, Field(ge=0, le=1)]
    message: str
    file: str | None
