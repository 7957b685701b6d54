"""The page in a real browser with fake devices, against a real server on loopback."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamavatar import bundled
from streamavatar.media import read_audio

playwright = pytest.importorskip("playwright.sync_api", reason="the page's tests need playwright")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="the page's tests need axe-playwright-python")
live = pytest.importorskip("live", reason="the live server needs the extra `live`")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="the page's tests need Chromium"),
]

FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
]
GRACE = 3.0
RATE = 24_000
LOUD, QUIET = 0.02, 0.005
"""Of full scale, as root mean square: a beep is louder than one, what a codec leaves of silence is below the other."""

# Keeps connections where the tests can ask them for statistics and cut them.
CONNECTIONS = """
window.peers = [];
window.sockets = [];
window.RTCPeerConnection = class extends RTCPeerConnection {
  constructor(...given) { super(...given); window.peers.push(this); }
};
window.WebSocket = class extends WebSocket {
  constructor(...given) { super(...given); window.sockets.push(this); }
};
"""
# What a peer connection reports when nothing comes through any more.
FAIL = """() => {
  const peer = window.peers.at(-1);
  Object.defineProperty(peer, "connectionState", { value: "failed" });
  peer.dispatchEvent(new Event("connectionstatechange"));
}"""
# Notes the loudness of the avatar's track every 5 ms, with the times of the page's clock and of the sound's own: the
# page may be late to hear of it.
LISTEN = """() => {
  const context = new AudioContext();
  const source = context.createMediaStreamSource(document.getElementById("video").srcObject);
  const meter = context.createScriptProcessor(256, 1, 1);
  window.heard = [];
  meter.onaudioprocess = (event) => {
    const samples = event.inputBuffer.getChannelData(0);
    const power = samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length;
    window.heard.push([performance.now(), Math.sqrt(power), 1000 * event.playbackTime]);
  };
  source.connect(meter).connect(context.destination);
}"""
# Notes the brightness of every frame when it is shown.
WATCH = """() => {
  const video = document.getElementById("video");
  const canvas = new OffscreenCanvas(8, 8);
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  window.seen = [];
  const look = (now, frame) => {
    pen.drawImage(video, 0, 0, 8, 8);
    const pixels = pen.getImageData(0, 0, 8, 8).data;
    window.seen.push([frame.expectedDisplayTime, pixels.reduce((sum, value) => sum + value, 0) / pixels.length]);
    video.requestVideoFrameCallback(look);
  };
  video.requestVideoFrameCallback(look);
}"""
# Ids of what can be used at the moment.
CONTROLS = """() => [...document.querySelectorAll("main :is(button, input, textarea)[id]")]
  .filter((control) => !control.disabled && control.checkVisibility())
  .map((control) => control.id)"""
FRAMES = """async () => {
  const report = [...(await window.peers.at(-1).getStats()).values()];
  const video = report.find((entry) => entry.type === "inbound-rtp" && entry.kind === "video");
  return [video?.timestamp ?? 0, video?.framesReceived ?? 0];
}"""


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """The real server with the bundled model, and a short grace for clients that vanish."""
    port = live.free_port()
    options = ["--port", str(port), "--sessions", "2", "--grace-seconds", str(GRACE)]
    with live.running_server([sys.executable, "-m", "streamavatar.cli", "live", *options], port) as server:
        yield server


@pytest.fixture(scope="module")
def flashing() -> Iterator[Any]:
    """The real gateway with an engine that shows white while the agent is loud."""
    port = live.free_port()
    with live.running_server([sys.executable, str(Path(__file__).parent / "flashing.py"), str(port)], port) as server:
        yield server


@pytest.fixture(scope="module")
def microphone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the browser's fake microphone hears, again and again: the user's side of the conversation."""
    path = tmp_path_factory.mktemp("microphone") / "user.wav"
    write_wav(path, read_audio(bundled.conversation()[1], 48_000).samples, 48_000)
    return path


def write_wav(path: Path, samples: Any, rate: int) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())


@pytest.fixture(scope="module")
def browser(microphone: Path) -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        flags = [*FLAGS, f"--use-file-for-fake-audio-capture={microphone}"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[[Any], Any]]:
    """visit(server) -> the page with a running session, or before its start; its errors fail the test at its end."""
    context = browser.new_context()
    context.add_init_script(CONNECTIONS)
    errors: list[str] = []

    def visit(server: Any, started: bool = True) -> Any:
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(server.base)
        page.wait_for_selector(".face")
        if started:
            start(page)
        return page

    yield visit
    context.close()
    assert errors == []


def start(page: Any) -> None:
    page.click("#play")
    page.wait_for_selector("html[data-phase=live]", timeout=20_000)


def wait_for_state(page: Any, state: str, seconds: float) -> None:
    page.wait_for_selector(f"html[data-phase=live][data-state={state}]", timeout=1000 * seconds)


def until(page: Any, condition: str, seconds: float) -> None:
    """Wait for a JavaScript condition; the page's security policy forbids Playwright's own way."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(50)


def active(server: Any) -> int:
    return int(server.call("GET", "/v1/capacity")["active"])


def wait_until_free(server: Any, seconds: float) -> float:
    begin = time.monotonic()
    while active(server):
        assert time.monotonic() - begin < seconds, "the session is still there"
        time.sleep(0.1)
    return time.monotonic() - begin


def heard(page: Any) -> Any:
    """Times in ms of the page's clock and loudness of the avatar's track, [N, 2].

    The times are the sound's own. The page hears of it later by what it needs, and by more where it is busy: the least
    delay of two seconds says how the two clocks are set.
    """
    noted = np.array(page.evaluate("window.heard"))
    delays, wide = noted[:, 0] - noted[:, 2], np.arange(-200, 201)
    near = np.clip(np.arange(len(noted))[:, None] + wide, 0, len(noted) - 1)
    return np.stack((noted[:, 2] + delays[near].min(1), noted[:, 1]), 1)


# what a visitor does -----------------------------------------------------------------------------------


def test_frames_arrive_and_the_user_is_heard(server: Any, visit: Callable[[Any], Any]) -> None:
    page = visit(server)
    page.click("#microphone")
    page.wait_for_timeout(1000)
    begin, frames = page.evaluate(FRAMES)
    wait_for_state(page, "listening", 12)
    page.wait_for_timeout(max(0, 5000 - (page.evaluate(FRAMES)[0] - begin)))
    end, more = page.evaluate(FRAMES)
    assert (more - frames) / (end - begin) * 1000 >= 0.95 * 25
    page.click("#microphone")
    wait_for_state(page, "idle", 5)
    page.click("#stop")
    wait_until_free(server, 2)


def test_it_talks_and_stops_at_once(server: Any, visit: Callable[[Any], Any]) -> None:
    page = visit(server)
    page.evaluate(LISTEN)
    page.click(".sample.agent")
    wait_for_state(page, "talking", 10)
    until(page, f"window.heard.slice(-40).every(([, level]) => level > {QUIET})", 8)
    pressed = page.evaluate("performance.now()")
    page.keyboard.press("Escape")
    until(page, "document.getElementById('caption').textContent.includes('Interrupted after')", 3)
    page.wait_for_timeout(2000)
    assert "Interrupted after" in page.inner_text("#caption")  # whatever the states are meanwhile
    track = heard(page)
    after = track[track[:, 0] > pressed]
    loud = after[after[:, 1] > QUIET]
    assert len(after) > 200
    assert (loud[-1, 0] if len(loud) else pressed) - pressed <= 150
    wait_for_state(page, "idle", 5)


def words(page: Any, line: str) -> list[str]:
    """Of a line's button, as the subtitle shows them."""
    who, _, text = page.inner_text(line).partition("\n")
    return [f"{who.strip()}:", *text.split()]


def test_the_conversation_plays_without_a_start_and_ends_when_interrupted(
    server: Any, visit: Callable[..., Any]
) -> None:
    page = visit(server, started=False)
    page.click("#conversation")
    wait_for_state(page, "listening", 20)
    assert page.inner_text("#subtitle").split() == words(page, "li:nth-child(1) .sample.user")
    wait_for_state(page, "talking", 10)
    assert page.inner_text("#subtitle").split() == words(page, "li:nth-child(2) .sample.agent")
    page.click("#conversation:has-text('Stop')")
    page.wait_for_selector("#conversation:has-text('Whole')")
    wait_for_state(page, "idle", 5)
    assert page.is_hidden("#subtitle")


def test_lines_end_when_interrupted(server: Any, visit: Callable[..., Any]) -> None:
    """Also one that is being fetched, or whose speech the server does not have yet."""
    page = visit(server)
    page.click("li:nth-child(1) .sample.user")
    page.click("li:nth-child(3) .sample.user")  # takes the place of the first
    until(page, "document.getElementById('subtitle').textContent.includes('bread')", 5)
    wait_for_state(page, "listening", 5)
    page.keyboard.press("Escape")
    wait_for_state(page, "idle", 2)
    assert page.is_hidden("#subtitle")
    for line in (".sample.user", ".sample.agent"):
        page.click(f"{line} >> nth=0")
        page.keyboard.press("Escape")
    page.wait_for_timeout(2000)
    assert page.is_hidden("#subtitle")
    assert page.get_attribute("html", "data-state") == "idle"


def test_the_face_is_chosen_and_uploaded(server: Any, visit: Callable[[Any], Any], tmp_path: Path) -> None:
    page = visit(server)
    (tmp_path / "no.png").write_bytes(b"not a picture")
    page.set_input_files("#face-file", tmp_path / "no.png")
    page.wait_for_selector("#face-note[data-kind=error]:not([hidden])")
    page.set_input_files("#face-file", bundled.portrait(bundled.SECOND_AVATAR).path)
    page.wait_for_selector("#face-note:not([hidden])")
    if page.is_visible("#face-anyway"):  # a drawing is no face to every detector
        page.click("#face-anyway")
    page.wait_for_selector("#face-note[data-kind=good]")
    page.wait_for_selector("html[data-phase=live]")
    assert page.locator(".face").count() == len(bundled.portraits()) + 1
    page.click(".remove")
    page.wait_for_selector(".remove", state="detached")
    page.wait_for_selector("html[data-phase=live]")


def test_everybody_can_use_it(server: Any, visit: Callable[..., Any]) -> None:
    """On a phone: without a mouse, with large text, without motion, and with nothing that axe objects to."""
    page = visit(server, started=False)
    page.set_viewport_size({"width": 390, "height": 844})
    page.emulate_media(reduced_motion="reduce")
    for control in ("summary", ".sample.agent"):
        page.focus(control)
        page.keyboard.press("Enter")
    wait_for_state(page, "talking", 20)
    assert page.get_attribute("#caption", "aria-live") == "polite"
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        complaints = axe.Axe().run(page)
        assert complaints.violations_count == 0, complaints.generate_report()
    assert page.evaluate("document.getAnimations().length") == 0
    controls = page.evaluate(CONTROLS)
    assert {"microphone", "interrupt", "say-text", "audio-file", "face-file"} <= set(controls)
    reached = []
    for _ in range(len(controls) + 10):  # lines and faces have no id
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert set(controls) <= set(reached)
    for size in ("100%", "200%"):
        page.evaluate(f"document.documentElement.style.fontSize = '{size}'")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, size


# what goes wrong ---------------------------------------------------------------------------------------


def test_a_killed_engine_is_told_and_replaced(server: Any, visit: Callable[[Any], Any]) -> None:
    page = visit(server)
    page.click(".sample.agent")
    wait_for_state(page, "talking", 10)
    page.click("li:nth-child(3) .sample.user")  # the microphone is not missed by a connection that is gone
    killed = time.monotonic()
    os.kill(server.processes()["engine"], signal.SIGKILL)
    until(page, "document.getElementById('caption').textContent.includes('engine')", 3)
    page.wait_for_selector("html:not([data-phase=live])")
    page.wait_for_selector("html[data-phase=live]", timeout=10_000)
    assert time.monotonic() - killed < 10


def test_cut_connections_come_back(server: Any, visit: Callable[[Any], Any]) -> None:
    page = visit(server)
    page.evaluate("window.sockets.at(-1).close()")
    page.wait_for_selector("html[data-phase=trouble]")
    assert "lost" in page.inner_text("#caption")
    page.wait_for_selector("html[data-phase=live]")
    assert page.evaluate("window.sockets.length") == 2
    page.evaluate(FAIL)
    page.wait_for_selector("html[data-phase=trouble]")
    page.wait_for_selector("html[data-phase=live]", timeout=10_000)
    assert page.evaluate("window.peers.length") == 2
    page.wait_for_timeout(2000)
    assert page.evaluate(FRAMES)[1] > 25
    assert active(server) == 1


def test_a_closed_page_frees_its_place_at_once(server: Any, visit: Callable[[Any], Any]) -> None:
    page = visit(server)
    assert active(server) == 1
    page.close()
    wait_until_free(server, 2)


def test_a_killed_browser_frees_its_place_within_the_grace(server: Any, browser: Any, tmp_path: Path) -> None:
    port = live.free_port()
    flags = [*FLAGS, f"--remote-debugging-port={port}", f"--user-data-dir={tmp_path}", "about:blank"]
    doomed = subprocess.Popen([str(CHROMIUM), *flags], stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 20
        while not live.Server(f"http://127.0.0.1:{port}", doomed).ready("/json/version"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        page = browser.browser_type.connect_over_cdp(f"http://127.0.0.1:{port}").contexts[0].new_page()
        page.goto(server.base)
        page.wait_for_selector(".face")
        start(page)
        assert active(server) == 1
    finally:
        os.killpg(doomed.pid, signal.SIGKILL)
        doomed.wait()
    wait_until_free(server, 13)  # looks once a second whether a peer has said nothing for 10 s: longer than the grace


# sync --------------------------------------------------------------------------------------------------


def beeps(seconds: int) -> Any:
    """A beep of 120 ms in the middle of each second."""
    time_axis = np.arange(seconds * RATE) / RATE
    return np.where(np.abs(time_axis % 1 - 0.58) < 0.06, 0.5 * np.sin(2 * np.pi * 1000 * time_axis), 0)


def onsets(track: Any, threshold: float) -> Any:
    """Times in ms at which the second column rises above a threshold, for the first time in half a second."""
    above = track[track[:, 1] > threshold, 0]
    return above[np.diff(above, prepend=-np.inf) > 500]


def test_flash_and_beep_are_together(flashing: Any, visit: Callable[[Any], Any], tmp_path: Path) -> None:
    page = visit(flashing)
    page.evaluate(LISTEN)
    page.evaluate(WATCH)
    write_wav(tmp_path / "beeps.wav", beeps(8), RATE)
    skews: list[float] = []
    for _ in range(3):  # a busy machine may spoil a run; a real skew would be in every one
        begun = page.evaluate("performance.now()")
        page.set_input_files("#audio-file", tmp_path / "beeps.wav")
        until(page, f"window.heard.some(([at, level]) => at > {begun} && level > {LOUD})", 5)  # the first beep
        page.wait_for_timeout(7_700)
        sound, picture = onsets(heard(page), LOUD), onsets(np.array(page.evaluate("window.seen")), 150)
        skews = [picture[np.abs(picture - t).argmin()] - t for t in sound if t > begun + 5000]
        if len(skews) >= 3 and abs(np.median(skews)) <= 45:
            break
    assert len(skews) >= 3
    assert abs(np.median(skews)) <= 45, skews
