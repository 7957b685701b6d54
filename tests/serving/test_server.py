"""The server as a process: it starts, says what is wrong in one line, tells nobody its secrets, and goes when told."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra live")
pytest.importorskip("dlib", reason="needs the extra live")

connect = pytest.importorskip("websockets.sync.client").connect
START_SECONDS, STOP_SECONDS = 90, 20


class Running:
    """A server process and its address."""

    def __init__(self, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "streamavatar.cli", "live", "--port", str(self.port), "--sessions", "1"]
        self.process = subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def call(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
        """Status and JSON of an answer."""
        url = f"http://127.0.0.1:{self.port}{path}"
        headers = {"Content-Type": "application/json", **headers}
        request = urllib.request.Request(url, body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")

    def status(self, path: str) -> int:
        try:
            return self.call("GET", path)[0]
        except OSError:
            return 0

    def wait_for(self, path: str) -> None:
        end = time.monotonic() + START_SECONDS
        while self.status(path) != 200:
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < end
            time.sleep(0.1)


@pytest.fixture
def run() -> Iterator[Callable[..., Running]]:
    """run(*options) -> a server that is starting."""
    servers: list[Running] = []

    def start(*options: str) -> Running:
        servers.append(Running(*options))
        return servers[-1]

    yield start
    for server in servers:
        server.process.kill()
        server.process.communicate()


@pytest.mark.slow
def test_a_server_from_start_to_drain(run: Callable[..., Running]) -> None:
    server = run("--token", "swordfish")
    server.wait_for("/healthz")
    assert server.status("/readyz") in (200, 503)
    server.wait_for("/readyz")
    assert server.call("POST", "/v1/sessions", b"{}")[0] == 401
    key = {"Authorization": "Bearer swordfish"}
    status, session = server.call("POST", "/v1/sessions", b"{}", **key)
    assert status == 201
    with connect(f"ws://127.0.0.1:{server.port}{session['events']}?token={session['token']}") as socket_:
        server.process.send_signal(signal.SIGTERM)
        while (event := json.loads(socket_.recv(5)))["type"] != "error":
            pass
        assert event["code"] == "draining"
        assert server.status("/readyz") == 503
        assert server.call("POST", "/v1/sessions", b"{}", **key)[1]["error"]["code"] == "draining"
        assert (
            server.call("DELETE", f"/v1/sessions/{session['id']}", Authorization=f"Bearer {session['token']}")[0] == 204
        )
        while (event := json.loads(socket_.recv(5))).get("state") != "closed":
            pass
    output = server.process.communicate(timeout=STOP_SECONDS)[0]
    assert server.process.returncode == 0, output
    assert session["token"] not in output
    assert "swordfish" not in output


@pytest.mark.slow
def test_ctrl_c_does_not_wait_for_sessions(run: Callable[..., Running]) -> None:
    server = run()
    server.wait_for("/readyz")
    assert server.call("POST", "/v1/sessions", b"{}")[0] == 201
    server.process.send_signal(signal.SIGINT)
    output = server.process.communicate(timeout=STOP_SECONDS)[0]
    assert server.process.returncode == 0, output


@pytest.mark.slow
def test_what_is_wrong_is_one_line(run: Callable[..., Running], tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        cases = {
            ("--port", str(taken.getsockname()[1])): "cannot listen on",
            ("--host", "0.0.0.0"): "--token",
            ("--model", str(tmp_path)): str(tmp_path),
            ("--turn-url", "turn:t.example"): "--turn-secret",
        }
        for options, words in cases.items():
            server = run(*options)
            output = server.process.communicate(timeout=START_SECONDS)[0]
            assert server.process.returncode == 2, output
            last = output.strip().splitlines()[-1]
            assert last.startswith("error: ")
            assert words in last
            assert "Traceback" not in output
