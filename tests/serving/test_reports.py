"""What the browser is told about which picture belongs to which sound, however late the packets left."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

pytest.importorskip("aiortc", reason="the extra 'live' is not installed")

from aiortc import RTCPeerConnection
from aiortc.rtp import RtcpSenderInfo, RtcpSrPacket

from streamavatar.serving.reports import KEPT, SteadyReports, steady

SECOND = 1 << 32
BEGAN = 3_900_000_000 * SECOND


def test_delays_do_not_move_the_media() -> None:
    """A report a second; the packet before it was up to 100 ms on its way through encoder and event loop."""
    delays = np.random.default_rng(0).uniform(0.002, 0.1, 300)
    reports, errors = SteadyReports(90_000), []
    for second, delay in enumerate(delays):
        rtp = (0xFFFFFF00 + 90_000 * second) % (1 << 32)  # wraps at once, and not at zero
        told = reports.correct(BEGAN + round((second + delay) * SECOND), rtp)
        errors.append((told - BEGAN) / SECOND - second)
    assert errors[0] == pytest.approx(delays[0], abs=1e-6)
    assert min(errors) == pytest.approx(min(delays), abs=1e-6)
    assert max(errors[20:]) < 0.02
    assert np.abs(np.diff(errors[100:])).max() < 0.01


def test_clocks_that_drift_apart_are_followed() -> None:
    reports = SteadyReports(48_000)
    for second in range(600):  # the wall clock is 100 parts in a million faster
        told = reports.correct(BEGAN + round(second * 1.0001 * SECOND), 48_000 * second)
    assert (told - BEGAN) / SECOND == pytest.approx(599 * 1.0001, abs=1.1e-4 * KEPT)


def test_the_sender_tells_corrected_times() -> None:
    async def run() -> list[int]:
        connection, sent = RTCPeerConnection(), []
        sender = connection.addTransceiver("video").sender

        async def send(packets: list[RtcpSrPacket]) -> None:
            sent.extend(packets)

        sender._send_rtcp = send  # type: ignore[method-assign]
        steady(sender, 90_000)
        await sender._send_rtcp([RtcpSrPacket(1, RtcpSenderInfo(0, 0, 0, 0))])  # before anything was sent
        for second, delay in enumerate([0.01, 0.08, 0.0, 0.05]):
            ntp = BEGAN + round((second + delay) * SECOND)
            await sender._send_rtcp([RtcpSrPacket(1, RtcpSenderInfo(ntp, 7 + 90_000 * second, second + 1, 1))])
        await connection.close()
        return [packet.sender_info.ntp_timestamp for packet in sent]

    first, *told = asyncio.run(run())
    assert first == 0
    seconds = [(ntp - BEGAN) / SECOND for ntp in told]
    assert seconds == pytest.approx([0.01, 1.01, 2.0, 3.0], abs=1e-6)
