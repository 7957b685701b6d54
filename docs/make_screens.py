"""The pictures of the live page in the documentation, taken in a real browser from a real server.

    python docs/make_screens.py

writes docs/images/live.png (a desktop, light) and docs/images/live-phone.png (a phone, dark). Needs the extras `live`
and `dev`, and Chromium.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from streamavatar import bundled

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--autoplay-policy=no-user-gesture-required"]
SPEAKING_SECONDS, SETTLING_SECONDS = 2.0, 15.0


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def shoot(browser: Any, base: str, avatar: str, path: Path, **screen: Any) -> None:
    """Let an avatar speak and take the picture, after an interruption and once there is something in every figure."""
    context = browser.new_context(**screen)
    page = context.new_page()
    page.goto(base)
    page.check(f".face input[value={avatar}]", force=True)
    page.click("#play")
    page.wait_for_selector("html[data-phase=live]", timeout=20_000)
    say(page, 0)
    page.keyboard.press("Escape")
    page.wait_for_selector("[data-figure=skew]:text-matches('ms')", state="attached", timeout=20_000)
    page.wait_for_timeout(1000 * SETTLING_SECONDS)
    say(page, 1)
    page.screenshot(path=path)
    context.close()
    Image.open(path).convert("RGB").save(path, optimize=True)


def say(page: Any, number: int) -> None:
    """One of the avatar's lines, to its middle."""
    page.locator(".sample.agent").nth(number).click()
    page.evaluate("scrollTo(0, 0)")
    page.mouse.move(0, 0)
    page.wait_for_selector("html[data-state=talking]", timeout=20_000)
    page.wait_for_timeout(1000 * SPEAKING_SECONDS)


def main() -> None:
    live = load(ROOT / "benchmarks" / "live.py")
    port = live.free_port()
    command = [sys.executable, "-m", "streamavatar.cli", "live", "--port", str(port)]
    with live.running_server(command, port) as server, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        shoot(
            browser, server.base, bundled.DEFAULT_AVATAR, IMAGES / "live.png", viewport={"width": 1280, "height": 1300}
        )
        phone = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark", "device_scale_factor": 1.5}
        shoot(browser, server.base, bundled.SECOND_AVATAR, IMAGES / "live-phone.png", **phone)
        browser.close()


if __name__ == "__main__":
    main()
