"""Sender reports that tell a receiver which moments of picture and sound belong together.

A report pairs a time stamp of the stream with a time of the wall clock, and a receiver plays what has the same wall
time together. aiortc takes the wall time at which the last packet left, so that encoding a picture, or a busy machine,
moves the picture against the sound by as much. Time stamps of slots run with the clock, and delays are never negative:
the smallest distance of the last reports is the true one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from aiortc import RTCRtpSender
from aiortc.rtp import AnyRtcpPacket, RtcpSrPacket

KEPT = 60
"""Reports that count, about a minute's: by then the clocks of the machine have not drifted apart."""
_SECOND = 1 << 32  # of an NTP time stamp
_WRAP = 1 << 32  # of an RTP time stamp


class SteadyReports:
    """Corrects the wall times of one stream's reports.

    Args:
        rate: time stamps per second.
    """

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._last: int | None = None
        self._position = 0  # time stamps since the first report
        self._distances: deque[int] = deque(maxlen=KEPT)

    def correct(self, ntp: int, rtp: int) -> int:
        """The NTP time at which the media of time stamp `rtp` was due, given the time at which its packet left."""
        step = 0 if self._last is None else (rtp - self._last) % _WRAP
        self._last = rtp
        self._position += step if step < _WRAP // 2 else step - _WRAP
        due = self._position * _SECOND // self._rate
        self._distances.append(ntp - due)
        return due + min(self._distances)


def steady(sender: RTCRtpSender, rate: int) -> None:
    """Have a sender's reports corrected; call it before anything is sent. aiortc has no public place for this."""
    reports, send = SteadyReports(rate), sender._send_rtcp

    async def corrected(packets: Sequence[AnyRtcpPacket]) -> None:
        for packet in packets:
            if isinstance(packet, RtcpSrPacket) and packet.sender_info.packet_count:
                info = packet.sender_info
                info.ntp_timestamp = reports.correct(info.ntp_timestamp, info.rtp_timestamp)
        await send(list(packets))

    sender._send_rtcp = corrected  # type: ignore[method-assign]
