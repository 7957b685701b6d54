"""Two hundred visitors leave nothing behind: no memory, no sockets, no threads, no tasks."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamavatar import bundled

uvicorn = pytest.importorskip("uvicorn", reason="the live server needs the extra `live`")
websockets = pytest.importorskip("websockets.asyncio.client", reason="the live server needs the extra `live`")
live = pytest.importorskip("live", reason="the live server needs the extra `live`")
flashing = pytest.importorskip("flashing", reason="the live server needs the extra `live`")

pytestmark = pytest.mark.slow
CYCLES, WARM = 200, 40
GROWTH_BYTES = 64 * 2**20
"""Of either process from the warm state on: 400 kB for each visitor would be noticed; a session is megabytes."""
SETTLE_SECONDS = 12.0
"""Closed connections of a visitor who left without a word are given up after 10 s."""


async def visit(server: Any, number: int) -> None:
    """Open a session, watch its first picture with the events open, and leave in one of three ways."""
    client = live.Client(server)
    await client.open({"avatar": bundled.DEFAULT_AVATAR, "seed": number})
    events = f"{server.base.replace('http', 'ws')}{client.session['events']}?token={client.session['token']}"
    async with websockets.connect(events) as socket:
        await client.connect()
        await asyncio.wait_for(client.pictured.wait(), 20)
        assert json.loads(await socket.recv())["type"] == "session.state_updated"
        if number % 3 == 0:
            await client.close()  # the session ends while the socket is open
    if number % 3 == 1:
        await client.close()
    if number % 3 == 2:
        await client.call("DELETE")  # the session ends under the connection
        await client.hang_up()


def held(pid: int) -> dict[str, int]:
    """Descriptors and threads of a process."""
    folder = Path(f"/proc/{pid}")
    return {"descriptors": len(list((folder / "fd").iterdir())), "threads": len(list((folder / "task").iterdir()))}


def threads() -> set[str]:
    """Names of this process's threads; the event loop's own pool grows with need, up to a limit."""
    return {thread.name for thread in threading.enumerate() if not thread.name.startswith("asyncio_")}


@pytest.fixture
def server() -> Iterator[Any]:
    port = live.free_port()
    command = [sys.executable, "-m", "streamavatar.cli", "live", "--port", str(port), "--sessions", "4"]
    with live.running_server(command, port) as server:
        yield server


def test_visitors_leave_no_memory_sockets_or_threads(server: Any) -> None:
    pids = server.processes()

    async def visits(numbers: range) -> None:
        for number in numbers:
            await visit(server, number)
        await asyncio.sleep(SETTLE_SECONDS)

    asyncio.run(visits(range(WARM)))
    before = {name: (held(pid), live.used(pid)[0]) for name, pid in pids.items()}
    asyncio.run(visits(range(WARM, CYCLES)))
    assert server.processes() == pids, "the engine was replaced meanwhile"
    for name, pid in pids.items():
        assert held(pid) == before[name][0], name
        assert live.used(pid)[0] - before[name][1] < GROWTH_BYTES, name
    assert server.call("GET", "/v1/capacity")["active"] == 0


def test_visitors_leave_no_tasks() -> None:
    """Server and visitors on one event loop, where tasks can be counted."""

    async def run() -> None:
        port = live.free_port()
        gateway = uvicorn.Server(uvicorn.Config(flashing.flashing_app(port), port=port, log_level="warning"))
        serving = asyncio.create_task(gateway.serve())
        while not gateway.started:
            await asyncio.sleep(0.05)
        server = live.Server(f"http://127.0.0.1:{port}", None)
        for number in range(3):
            await visit(server, number)
        await asyncio.sleep(SETTLE_SECONDS)
        before = {task.get_name() for task in asyncio.all_tasks()}, threads()
        for number in range(15):
            await visit(server, number)
        await asyncio.sleep(SETTLE_SECONDS)
        gc.collect()
        left = {task for task in asyncio.all_tasks() if task.get_name() not in before[0]}
        assert left == set()
        assert threads() <= before[1]
        gateway.should_exit = True
        await serving

    asyncio.run(run())
