"""What `deploy/` puts around the server: coturn with its configuration and the credentials that the server makes, and
Caddy with its file, but for the certificate."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamavatar.serving.security import turn_credentials

playwright = pytest.importorskip("playwright.sync_api", reason="this needs a browser")
aioice = pytest.importorskip("aioice", reason="the live server needs the extra `live`")
live = pytest.importorskip("live", reason="the live server needs the extra `live`")

CHROMIUM, COTURN, CADDY = (shutil.which(name) for name in ("chromium", "turnserver", "caddy"))
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and COTURN and CADDY), reason="this needs Chromium, coturn and Caddy"),
]
DEPLOY = Path(__file__).parents[2] / "deploy"
SECRET = "north-south"
# Nothing but the relay may be used, and the tests can ask what is.
RELAYED = """
window.peers = [];
window.RTCPeerConnection = class extends RTCPeerConnection {
  constructor(configuration) {
    super({ ...configuration, iceTransportPolicy: "relay" });
    window.peers.push(this);
  }
};
"""
USED = """async () => {
  const report = [...(await window.peers.at(-1).getStats()).values()];
  const pair = report.find((entry) => entry.type === "candidate-pair" && entry.nominated);
  const video = report.find(({ type, kind }) => type === "inbound-rtp" && kind === "video");
  return [report.find(({ id }) => id === pair?.localCandidateId)?.candidateType, video?.framesDecoded ?? 0];
}"""


def own_address() -> str:
    """Of this machine, as others would see it: browsers do not relay over loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no network")
        return str(probe.getsockname()[0])


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """Address and port of coturn with the configuration that ships; only this machine's address is let through."""
    folder, address, port = tmp_path_factory.mktemp("coturn"), own_address(), live.free_port()
    options = {
        "realm": "streamavatar.test",
        "static-auth-secret": SECRET,
        "listening-port": port,
        "listening-ip": address,
        "relay-ip": address,
        "allowed-peer-ip": address,
        "pidfile": folder / "pid",
        "userdb": folder / "users",
    }
    given = (f"--{name}={value}" for name, value in options.items())
    command = [str(COTURN), "-c", DEPLOY / "coturn.conf", *given]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        time.sleep(1)
        yield address, port
        server.terminate()


async def allocate(relay: tuple[str, int], username: str, password: str) -> None:
    """Ask for a relayed address and give it back. Raises what aioice does where the server refuses."""
    transport, _ = await aioice.turn.create_turn_endpoint(
        asyncio.DatagramProtocol, server_addr=relay, username=username, password=password
    )
    transport.close()
    await asyncio.sleep(0.1)


def test_coturn_takes_our_credentials_for_an_hour(relay: tuple[str, int]) -> None:
    asyncio.run(allocate(relay, *turn_credentials(SECRET, "s1")))
    for wrong in (turn_credentials("south", "s1"), turn_credentials(SECRET, "s1", now=time.time() - 3700)):
        with pytest.raises(aioice.stun.TransactionFailed):
            asyncio.run(allocate(relay, *wrong))


@pytest.fixture
def proxied(tmp_path: Path) -> Iterator[tuple[int, str]]:
    """A port for the server, and the origin at which Caddy shows what is there."""
    port, outside = live.free_port(), f"http://localhost:{live.free_port()}"  # without TLS, since of no authority
    file = tmp_path / "Caddyfile"
    file.write_text((DEPLOY / "Caddyfile").read_text().replace(":8080", f":{port}"))
    places = {"DOMAIN": outside, "XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    command = [str(CADDY), "run", "--config", file, "--adapter", "caddyfile"]
    with subprocess.Popen(command, env=os.environ | places, stderr=subprocess.DEVNULL) as proxy:
        yield port, outside
        proxy.terminate()


def test_the_page_works_behind_the_proxy_and_through_the_relay(
    proxied: tuple[int, str], relay: tuple[str, int]
) -> None:
    port, outside = proxied
    turn = ["--turn-url", f"turn:{relay[0]}:{relay[1]}", "--turn-secret", SECRET]
    options = ["--port", str(port), "--sessions", "1", "--token", "sesame", "--allow-origin", outside, *turn]
    command = [sys.executable, "-m", "streamavatar.cli", "live", *options]
    with live.running_server(command, port), playwright.sync_playwright() as driver:
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--autoplay-policy=no-user-gesture-required"]
        browser: Any = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page()
        page.add_init_script(RELAYED)
        page.goto(outside)
        page.fill("#token", "sesame")
        page.keyboard.press("Enter")
        page.wait_for_selector(".face")
        page.click(".sample.agent")
        page.wait_for_selector("html[data-phase=live][data-state=talking]", timeout=20_000)  # events and media
        before = page.evaluate(USED)[1]
        page.wait_for_timeout(2000)
        kind, frames = page.evaluate(USED)
        assert kind == "relay"
        assert frames - before >= 0.9 * 2 * 25
        page.click("#stop")
        page.wait_for_timeout(300)
        browser.close()
