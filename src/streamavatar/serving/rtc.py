"""WebRTC with aiortc: tracks on our clock, one peer per viewer, and the same ticks for all of them.

Time stamps come from the slot's number, never from aiortc's own clocks (30 fps). Opus is encoded once for all viewers,
straight from 24 kHz; pictures once per viewer, by aiortc in its threads, so that each gets its key frames. A viewer
that cannot keep up loses whole ticks, sound and picture together, and slows nobody.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCDataChannel,
    RTCIceServer,
    RTCPeerConnection,
    RTCRtpSender,
    RTCSessionDescription,
)
from aiortc.codecs import h264, vpx
from aiortc.mediastreams import MediaStreamError
from aiortc.sdp import candidate_from_sdp
from av import AudioCodecContext, AudioFrame, CodecContext, Packet, VideoFrame
from numpy.typing import NDArray

from streamavatar.errors import UserError
from streamavatar.serving.clock import AGENT_RATE, AUDIO_CLOCK, VIDEO_CLOCK, MediaClock
from streamavatar.serving.lanes import Int16
from streamavatar.serving.reports import steady

logger = logging.getLogger(__name__)

EVENTS_CHANNEL = "events"
"""Label of the data channel that repeats the session's events."""
PACKET_SECONDS = 0.02
"""One Opus packet."""
AUDIO_BITRATE = 48_000
MAX_PENDING_TICKS = 3
"""A viewer this far behind loses ticks."""
MAX_CHANNEL_BYTES = 1 << 20
"""Events are dropped for a viewer that does not read them."""
CONNECT_SECONDS = 20.0
CLOSE_SECONDS = 5.0


def set_bitrates(height: int, width: int, fps: int) -> None:
    """Tell aiortc's encoders where to begin and how far to go for pictures of this size; all are alike in a process."""
    start = 250_000 + round(0.16 * height * width * fps)
    for codec in (vpx, h264):
        for name, value in (("DEFAULT", start), ("MIN", start // 2), ("MAX", 2 * start)):
            setattr(codec, f"{name}_BITRATE", value)


class OpusTicks:
    """Encodes ticks of 24 kHz sound as packets of 20 ms."""

    def __init__(self) -> None:
        codec = CodecContext.create("libopus", "w")
        assert isinstance(codec, AudioCodecContext)
        codec.sample_rate, codec.layout, codec.format = AGENT_RATE, "mono", "s16"
        codec.bit_rate, codec.time_base = AUDIO_BITRATE, Fraction(1, AGENT_RATE)
        codec.options = {"application": "audio", "compression_level": "5"}
        self._codec = codec
        self._size = round(PACKET_SECONDS * AGENT_RATE)

    def encode(self, samples: Int16) -> list[bytes]:
        """The packets of one tick, int16 [T] with T a multiple of 20 ms."""
        packets = []
        for piece in samples.reshape(-1, 1, self._size):
            frame = AudioFrame.from_ndarray(np.ascontiguousarray(piece), format="s16", layout="mono")
            frame.sample_rate = AGENT_RATE
            packets += [bytes(packet) for packet in self._codec.encode(frame)]
        return packets


class PictureTrack(MediaStreamTrack):
    """Frames with the time stamps of their slots."""

    kind = "video"

    def __init__(self) -> None:
        super().__init__()
        self.queue: asyncio.Queue[tuple[int, NDArray[np.uint8]]] = asyncio.Queue()

    async def recv(self) -> VideoFrame:
        pts, picture = await self.queue.get()
        frame = VideoFrame.from_ndarray(picture, format="yuv420p")
        frame.pts, frame.time_base = pts, Fraction(1, VIDEO_CLOCK)
        return frame


class SoundTrack(MediaStreamTrack):
    """Opus packets with the time stamps of their slots, each sent when its 20 ms begin."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self.queue: asyncio.Queue[tuple[int, float, bytes]] = asyncio.Queue()

    async def recv(self) -> Packet:
        pts, due, payload = await self.queue.get()
        wait = due - asyncio.get_running_loop().time()
        if wait > 0:
            await asyncio.sleep(wait)
        packet = Packet(payload)
        packet.pts, packet.time_base = pts, Fraction(1, AUDIO_CLOCK)
        return packet


class Peer:
    """One connection: pictures and sound out, perhaps a microphone in, perhaps the channel of events.

    Args:
        ice_servers: as browsers take them.
        microphone: called with int16 mono samples and their rate; None for a viewer that only receives.
        on_change: called with this peer whenever `state` has changed.
        silent_seconds: without any packet from the other side, it counts as gone.
    """

    def __init__(
        self,
        ice_servers: Sequence[Mapping[str, Any]],
        *,
        microphone: Callable[[Int16, int], None] | None,
        on_change: Callable[[Peer], None],
        silent_seconds: float,
    ) -> None:
        # An empty list: with none at all aiortc would ask a public STUN server.
        servers = [RTCIceServer(**{k: s[k] for k in ("urls", "username", "credential") if k in s}) for s in ice_servers]
        self._connection = RTCPeerConnection(RTCConfiguration(iceServers=servers))
        self._microphone, self._on_change, self._silent_seconds = microphone, on_change, silent_seconds
        self._picture: PictureTrack | None = None
        self._sound: SoundTrack | None = None
        self._channel: RTCDataChannel | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.state = "connecting"
        """connecting, connected or closed."""
        self.reason = ""
        """Why it is closed."""
        self.heard_at = asyncio.get_running_loop().time()
        """When the other side was last heard of."""
        self.dropped = 0
        """Ticks that it lost because it was too slow."""

    # signalling ------------------------------------------------------------------------------------

    async def answer(self, sdp: str) -> str:
        """Take an offer and return the answer. Raises UserError, after closing, for one that cannot be answered."""
        connection = self._connection
        try:
            self._add_tracks(sdp)
            connection.on("track", self._on_track)
            connection.on("datachannel", self._on_channel)
            connection.on("connectionstatechange", self._on_connection)
            await connection.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
            await connection.setLocalDescription(await connection.createAnswer())
        except UserError:
            await self.close("refused")
            raise
        except Exception as error:  # aiortc raises whatever a malformed description makes it stumble over
            await self.close("refused")
            raise UserError(
                f"the offer cannot be answered ({type(error).__name__}: {error}): send an SDP offer of a browser with "
                "Opus and VP8 or H.264"
            ) from error
        self._tasks.append(asyncio.create_task(self._watch()))
        return connection.localDescription.sdp

    async def add_candidate(self, candidate: Mapping[str, Any] | None) -> None:
        """Take a trickled candidate, None or an empty one at the end. Raises UserError if it cannot be read."""
        try:
            line = str(candidate["candidate"]) if candidate else ""
            parsed = None
            if candidate and line:
                parsed = candidate_from_sdp(line.removeprefix("candidate:"))
                parsed.sdpMid, parsed.sdpMLineIndex = candidate.get("sdpMid"), candidate.get("sdpMLineIndex")
            await self._connection.addIceCandidate(parsed)
        except Exception as error:
            raise UserError(
                f"the candidate cannot be read ({type(error).__name__}): send what the browser's icecandidate event has"
            ) from error

    def _add_tracks(self, sdp: str) -> None:
        kinds = re.findall(r"^m=(audio|video) ", sdp, re.MULTILINE)
        if not kinds or len(kinds) != len(set(kinds)):
            raise UserError("an offer needs one audio or one video section, or one of each: add what is missing")
        if "video" in kinds:
            self._picture = PictureTrack()
            steady(self._connection.addTransceiver(self._picture, "sendonly").sender, VIDEO_CLOCK)
        if "audio" in kinds:
            self._sound = SoundTrack()
            direction = "sendrecv" if self._microphone else "sendonly"
            transceiver = self._connection.addTransceiver(self._sound, direction)
            steady(transceiver.sender, AUDIO_CLOCK)
            codecs = RTCRtpSender.getCapabilities("audio").codecs
            transceiver.setCodecPreferences([codec for codec in codecs if codec.mimeType == "audio/opus"])

    # what the connection reports -------------------------------------------------------------------

    def _on_track(self, track: MediaStreamTrack) -> None:
        if track.kind == "audio" and self._microphone:
            self._tasks.append(asyncio.create_task(self._listen(track, self._microphone)))

    def _on_channel(self, channel: RTCDataChannel) -> None:
        if channel.label == EVENTS_CHANNEL:
            self._channel = channel

    def _on_connection(self) -> None:
        state = self._connection.connectionState
        if state == "connected":
            self._change("connected")
        elif state in ("closed", "failed"):
            self._change("closed", f"the connection {'was closed' if state == 'closed' else 'failed'}")

    def _change(self, state: str, reason: str = "") -> None:
        if state != self.state and self.state != "closed":
            self.state, self.reason = state, reason
            self._on_change(self)

    async def _listen(self, track: MediaStreamTrack, microphone: Callable[[Int16, int], None]) -> None:
        while True:
            try:
                frame = await track.recv()
            except MediaStreamError:
                return
            if isinstance(frame, AudioFrame):
                samples = frame.to_ndarray().reshape(-1, frame.layout.nb_channels)
                microphone((samples.sum(1, dtype=np.int32) // samples.shape[1]).astype(np.int16), frame.sample_rate)

    async def _watch(self) -> None:
        """Notice a peer that never connects or of which nothing is heard any more; consent checks take far longer."""
        loop = asyncio.get_running_loop()
        begin, received = loop.time(), 0
        while self.state != "closed":
            await asyncio.sleep(1)
            report = await self._connection.getStats()
            total = sum(stats.bytesReceived for stats in report.values() if stats.type == "transport")
            if total > received:
                received, self.heard_at = total, loop.time()
            if self.state == "connecting" and loop.time() - begin > CONNECT_SECONDS:
                self._change("closed", f"no connection within {CONNECT_SECONDS:.0f} s")
            elif self.state == "connected" and loop.time() - self.heard_at > self._silent_seconds:
                self._change("closed", f"nothing was heard for {self._silent_seconds:.0f} s")

    # out -------------------------------------------------------------------------------------------

    @property
    def hears(self) -> bool:
        return self.state == "connected" and self._sound is not None

    def put(self, clock: MediaClock, slot: int, now: float, picture: NDArray[np.uint8], packets: list[bytes]) -> None:
        """Send one tick, or drop it whole if the viewer is too far behind."""
        if self.state != "connected":
            return
        pictures = self._picture.queue.qsize() if self._picture else 0
        sounds = self._sound.queue.qsize() // len(packets) if self._sound and packets else 0
        if max(pictures, sounds) >= MAX_PENDING_TICKS:
            self.dropped += 1
            return
        if self._picture:
            self._picture.queue.put_nowait((clock.video_pts(slot), picture))
        if self._sound:
            for i, packet in enumerate(packets):
                pts = clock.audio_pts(slot) + round(i * PACKET_SECONDS * AUDIO_CLOCK)
                self._sound.queue.put_nowait((pts, now + i * PACKET_SECONDS, packet))

    def send(self, text: str) -> None:
        """An event on the channel, if there is one and it is read."""
        channel = self._channel
        if channel and channel.readyState == "open" and channel.bufferedAmount < MAX_CHANNEL_BYTES:
            channel.send(text)

    async def close(self, reason: str) -> None:
        """End the connection and everything that belongs to it; may be called more than once."""
        self._change("closed", reason)
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            await asyncio.wait_for(self._connection.close(), CLOSE_SECONDS)
        except Exception:
            logger.exception("a peer did not close")
