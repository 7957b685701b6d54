"""Everything an operator may set, checked before anything starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address

from streamavatar.errors import UserError
from streamavatar.serving.protocol import EngineSettings
from streamavatar.serving.speech import VoiceName


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine alone."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class ServerSettings:
    """How the server behaves.

    Attributes:
        host, port: where it listens.
        engine: what makes the chunks.
        token: what clients show to open sessions and to upload; needed beyond loopback.
        allowed_origins: web pages of other origins that may use the server; none by default.
        voice: of text to speech, the best one installed by default.
        turn_url, turn_secret: TURN server and the secret it shares with us, for time-limited credentials.
        stun_url: STUN server, if the clients need one.
        sessions_per_client: at a time, by address.
        max_minutes: length of a session.
        grace_seconds: how long a session lives on without its client.
        drain_seconds: how long a stopping server waits for its sessions.
        face_bytes: largest upload of a picture.
        face_count, faces_per_client, face_keep_seconds: how many are kept, and how long one that nobody asks for.
        audio_bytes: largest upload of speech.
        audio_seconds: longest speech in one upload.
        upload_seconds: within which a request's body must arrive.
        text_characters: longest text to speak at once.
        video_seconds: longest offline video.
        video_keep_seconds: how long a finished one can be fetched.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    engine: EngineSettings = field(default_factory=EngineSettings)
    token: str = field(default="", repr=False)
    allowed_origins: tuple[str, ...] = ()
    voice: VoiceName = "auto"
    turn_url: str = ""
    turn_secret: str = field(default="", repr=False)
    stun_url: str = ""
    sessions_per_client: int = 4
    max_minutes: float = 60.0
    grace_seconds: float = 30.0
    drain_seconds: float = 30.0
    face_bytes: int = 10_000_000
    face_count: int = 64
    faces_per_client: int = 16
    face_keep_seconds: float = 86_400.0
    audio_bytes: int = 20_000_000
    audio_seconds: float = 600.0
    upload_seconds: float = 30.0
    text_characters: int = 2000
    video_seconds: float = 300.0
    video_keep_seconds: float = 600.0

    def __post_init__(self) -> None:
        if not self.on_loopback and not self.token:
            raise UserError(
                f"listening on {self.host} lets others in: give --token (a long random secret), or leave --host out"
            )
        if bool(self.turn_url) != bool(self.turn_secret):
            raise UserError("a TURN server needs both --turn-url and --turn-secret")

    @property
    def on_loopback(self) -> bool:
        return is_loopback(self.host)
