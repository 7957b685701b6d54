"""One live session for minutes: does it keep up, does sound stay with picture, does the server stay small?

Starts a real server, connects as a browser would (WebRTC by aiortc, over loopback), speaks the bundled conversation
into both lanes again and again, and looks every few seconds at what arrives and at what the server's processes use.
Skew is how far the picture has moved against the sound since the first seconds, by arrival times and time stamps.

    python benchmarks/live.py --minutes 10 --json live.json

With --restarts it kills the engine in the middle of a session instead, and times the start and each new session:

    python benchmarks/live.py --restarts 5
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from aiortc import MediaStreamTrack, RTCPeerConnection, RTCSessionDescription
from aiortc.contrib.media import MediaPlayer
from aiortc.mediastreams import MediaStreamError

from streamavatar import bundled
from streamavatar.provenance import commit, machine

FPS = 25
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
SETTLE_SECONDS = 5.0
"""Time that the jitter buffers get before the skew counts."""


# the server ------------------------------------------------------------------------------------------


@dataclass
class Server:
    """A running server: its address and its process."""

    base: str
    process: subprocess.Popen[bytes] | None

    def call(self, method: str, path: str, body: bytes | None = None, token: str = "") -> Any:
        """JSON of an answer, None where it has no body. Raises urllib.error.HTTPError."""
        request = urllib.request.Request(self.base + path, body, method=method)
        request.add_header("Content-Type", "application/json")
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def ready(self, path: str = "/readyz") -> bool:
        try:
            self.call("GET", path)
        except OSError:
            return False
        return True

    def processes(self) -> dict[str, int]:
        """Process ids: the gateway, which was started, and the engine, the largest of the processes forked for it."""
        assert self.process is not None, "only a server that was started here has known processes"
        found = {"gateway": self.process.pid}
        engines = [pid for child in children(self.process.pid) for pid in children(child)]
        return found | ({"engine": max(engines, key=lambda pid: used(pid)[0])} if engines else {})


def children(pid: int) -> list[int]:
    return [int(pid) for task in Path(f"/proc/{pid}/task").glob("*/children") for pid in task.read_text().split()]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_server(command: list[str], port: int, seconds: float = 120.0, every: float = 0.2) -> Iterator[Server]:
    """Start a server and look now and then until it is ready; stop it at the end."""
    process = subprocess.Popen(command)
    server = Server(f"http://127.0.0.1:{port}", process)
    try:
        deadline = time.monotonic() + seconds
        while not server.ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not become ready: {' '.join(command)}")
            time.sleep(every)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# the client ------------------------------------------------------------------------------------------


@dataclass
class Arrivals:
    """When frames came and what their time stamps say, both in seconds."""

    at: list[float] = field(default_factory=list)
    stamp: list[float] = field(default_factory=list)

    def note(self, stamp: float) -> None:
        self.at.append(time.monotonic())
        self.stamp.append(stamp)

    def delay(self, begin: float, end: float) -> float:
        """Median of arrival minus time stamp over a span of time; its zero is unknown but fixed."""
        at, stamp = np.array(self.at), np.array(self.stamp)
        use = (at >= begin) & (at < end)
        return float(np.median((at - stamp)[use])) if use.any() else float("nan")


class Client:
    """A session and its WebRTC connection."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.session: dict[str, Any] = {}
        self.video, self.audio = Arrivals(), Arrivals()
        self.pictured = asyncio.Event()
        self._connection = RTCPeerConnection()
        self._tasks: list[asyncio.Task[None]] = []

    async def call(self, method: str, part: str = "", body: bytes | None = None) -> Any:
        path = f"/v1/sessions/{self.session['id']}{part}"
        return await asyncio.to_thread(self.server.call, method, path, body, self.session["token"])

    async def open(self, wishes: dict[str, Any]) -> None:
        self.session = await asyncio.to_thread(self.server.call, "POST", "/v1/sessions", json.dumps(wishes).encode())

    async def connect(self, microphone: MediaStreamTrack | None = None) -> None:
        connection = self._connection
        connection.on("track", lambda track: self._tasks.append(asyncio.create_task(self._receive(track))))
        connection.addTransceiver(microphone or "audio", "sendrecv" if microphone else "recvonly")
        connection.addTransceiver("video", "recvonly")
        await connection.setLocalDescription(await connection.createOffer())
        offer = json.dumps({"type": "offer", "sdp": connection.localDescription.sdp}).encode()
        answer = await self.call("POST", "/offer", offer)
        await connection.setRemoteDescription(RTCSessionDescription(answer["sdp"], answer["type"]))

    async def _receive(self, track: MediaStreamTrack) -> None:
        arrivals = self.video if track.kind == "video" else self.audio
        while True:
            try:
                frame = await track.recv()
            except MediaStreamError:
                return
            arrivals.note(float(frame.pts * frame.time_base))
            if track.kind == "video":
                self.pictured.set()

    async def hang_up(self) -> None:
        """End the connection; the session goes on for the grace."""
        await self._connection.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self) -> None:
        await self.hang_up()
        await self.call("DELETE")


# what is measured ------------------------------------------------------------------------------------


def used(pid: int) -> tuple[int, float]:
    """Resident bytes and seconds of processor time of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    resident = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return resident, (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


async def speak(client: Client, speech: bytes, seconds: float) -> None:
    """Say the agent's side of the conversation as long as the session lasts."""
    while True:
        await client.call("POST", "/speech", speech)
        await asyncio.sleep(seconds)


async def watch(client: Client, minutes: float, every: float) -> list[dict[str, Any]]:
    """A row for each span of `every` seconds."""
    processes = client.server.processes()
    rows: list[dict[str, Any]] = []
    begin = time.monotonic()
    before, seen = {name: used(pid)[1] for name, pid in processes.items()}, len(client.video.at)
    for step in range(1, round(60 * minutes / every) + 1):
        start = time.monotonic()
        await asyncio.sleep(max(0.0, begin + step * every - start))
        now = time.monotonic()
        state = await client.call("GET")
        row: dict[str, Any] = {
            "seconds": round(now - begin, 1),
            "fps": round((len(client.video.at) - seen) / (now - start), 2),
            "delay": client.video.delay(start, now) - client.audio.delay(start, now),
            "stats": state["stats"],
        }
        seen = len(client.video.at)
        for name, pid in processes.items():
            resident, cpu = used(pid)
            row[name] = {"bytes": resident, "cpu_share": round((cpu - before[name]) / (now - start), 3)}
            before[name] = cpu
        rows.append(row)
    return rows


def summary(rows: list[dict[str, Any]], client: Client) -> dict[str, Any]:
    """The figures of a run; the first row is the base of skew and memory."""
    skew = [row["delay"] - rows[0]["delay"] for row in rows]
    stats = rows[-1]["stats"]
    span = client.video.at[-1] - client.video.at[0]
    return {
        "minutes": round(rows[-1]["seconds"] / 60, 2),
        "rtf": stats["rtf"],
        "first_frame_seconds": stats["first_frame_seconds"],
        "chunk_seconds": stats["chunk_seconds"],
        "received_fps": round((len(client.video.at) - 1) / span, 3),
        "received_share": round((len(client.video.at) - 1) / span / FPS, 4),
        "skew_seconds": {
            "largest": round(max(map(abs, skew)), 4),
            "last": round(skew[-1], 4),
            "curve": [round(value, 4) for value in skew],
        },
        "late": stats["underrun_total"],
        "ticks": {name: stats[f"{name}_ticks"] for name in ("repeated", "skipped", "dropped", "starved")},
        "processes": {
            name: {
                "first_bytes": rows[0][name]["bytes"],
                "last_bytes": rows[-1][name]["bytes"],
                "curve_bytes": [row[name]["bytes"] for row in rows],
                "cpu_share": round(float(np.mean([row[name]["cpu_share"] for row in rows])), 3),
            }
            for name in client.server.processes()
        },
    }


async def soak(server: Server, minutes: float, every: float) -> dict[str, Any]:
    agent, user = bundled.conversation()
    client = Client(server)
    await client.open({"avatar": bundled.DEFAULT_AVATAR})
    try:
        player = MediaPlayer(str(user), loop=True)
        await client.connect(player.audio)
        await asyncio.wait_for(client.pictured.wait(), 30)
        speaking = asyncio.create_task(speak(client, agent.read_bytes(), 20.0))
        await asyncio.sleep(SETTLE_SECONDS)
        rows = await watch(client, minutes, every)
        speaking.cancel()
        return summary(rows, client)
    finally:
        await client.close()


async def watched(server: Server) -> Client:
    """A new session whose first picture has come; tries again as long as the server says that its engine starts."""
    client = Client(server)
    while not client.session:
        try:
            await client.open({"avatar": bundled.DEFAULT_AVATAR})
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise
            await asyncio.sleep(0.05)
    await client.connect()
    await asyncio.wait_for(client.pictured.wait(), 30)
    return client


async def restart(server: Server) -> float:
    """Seconds from an engine's death in the middle of a session to the first picture of the next session."""
    client = await watched(server)
    os.kill(server.processes()["engine"], signal.SIGKILL)
    begin = time.monotonic()
    following = await watched(server)
    seconds = time.monotonic() - begin
    await client.hang_up()
    await following.close()
    return seconds


def report_restarts(command: list[str], port: int, times: int) -> dict[str, Any]:
    begin = time.monotonic()
    with running_server(command, port, every=0.05) as server:
        figures: dict[str, Any] = {"start_seconds": round(time.monotonic() - begin, 2)}
        figures["cpu_seconds"] = {name: round(used(pid)[1], 2) for name, pid in server.processes().items()}
        figures["restart_seconds"] = [round(asyncio.run(restart(server)), 2) for _ in range(times)]
        figures["model"] = server.call("GET", "/v1/capacity")["model"]
    busy = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in figures["cpu_seconds"].items())
    print(f"start     {figures['start_seconds']:.1f} s until it is measured and ready; processor time: {busy}")
    quickest, slowest = min(figures["restart_seconds"]), max(figures["restart_seconds"])
    print(f"restart   {quickest:.2f} to {slowest:.2f} s until the first picture of a new session")
    return figures


def report_soak(command: list[str], port: int, minutes: float, every: float) -> dict[str, Any]:
    with running_server(command, port) as server:
        figures = asyncio.run(soak(server, minutes, every))
        figures["model"] = server.call("GET", "/v1/capacity")["model"]
    skew, ticks = figures["skew_seconds"], figures["ticks"]
    print(f"real-time factor  {figures['rtf']:.3f}")
    print(f"frames received   {figures['received_fps']:.2f} per second ({100 * figures['received_share']:.1f} %)")
    print(f"skew              {1000 * skew['largest']:.0f} ms at most, {1000 * skew['last']:.0f} ms at the end")
    print(f"ticks             {', '.join(f'{count} {name}' for name, count in ticks.items())}")
    for name, process in figures["processes"].items():
        first, last = process["first_bytes"] / 2**20, process["last_bytes"] / 2**20
        print(f"{name:17} {first:.0f} MiB, {last:.0f} MiB at the end; {100 * process['cpu_share']:.0f} % of a core")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two looks")
    parser.add_argument("--restarts", type=int, default=0, metavar="N", help="kill the engine so often, and time that")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if 60 * options.minutes < 2 * options.every:
        parser.error("--minutes: at least two looks fit in")
    port, measured = free_port(), commit()
    command = [sys.executable, "-m", "streamavatar.cli", "live", "--port", str(port)]
    if options.restarts:
        figures = report_restarts(command, port, options.restarts)
    else:
        figures = report_soak(command, port, options.minutes, options.every)
    if options.json:
        report = {"model": figures.pop("model"), "figures": figures, "machine": machine(), "commit": measured}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
