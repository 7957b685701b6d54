"""What the engine's process must not do: stall the gateway, die of one request, leave things behind, change colours."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import pytest

from streamavatar.models.avatar import AvatarModel
from streamavatar.serving.engine_client import EngineClient, EngineDied, EngineSettings
from streamavatar.serving.engine_process import to_i420

PICTURE = np.full((64, 96, 3), 100, np.uint8)


@pytest.fixture
def settings(make_model: Callable[..., AvatarModel], tmp_path: Path) -> EngineSettings:
    make_model().save(tmp_path / "model")
    return EngineSettings(tmp_path / "model", precision="float32", threads=1, sessions=2)


def test_i420_is_what_video_encoders_expect() -> None:
    red = np.broadcast_to(np.array([255, 0, 0], np.uint8), (1, 4, 4, 3)).copy()
    planes = to_i420(red)[0].ravel()
    assert [set(part) for part in (planes[:16], planes[16:20], planes[20:])] == [{81}, {90}, {240}]


def loaded(code: str, *modules: str) -> list[str]:
    """Those of the modules that a program has loaded."""
    program = f"import sys\n{code}\nprint(*[name for name in {modules!r} if name in sys.modules])"
    return subprocess.check_output([sys.executable, "-c", program], text=True).split()


def test_the_gateway_does_not_load_torch() -> None:
    """It would cost a second and 200 MB."""
    pytest.importorskip("fastapi", reason="needs the extra live")
    code = "import streamavatar.cli, streamavatar.serving.server"
    assert loaded(code, "fastapi", "torch") == ["fastapi"]


def test_a_model_is_loaded_without_the_compiler(settings: EngineSettings) -> None:
    """It would cost another second: so much does a careless initialisation on the meta device pull in."""
    code = f"from streamavatar.avatar import Avatar\nAvatar.load({str(settings.model)!r})"
    assert loaded(code, "torch", "torch._dynamo") == ["torch"]


def test_an_engine_that_hangs_stalls_nobody_and_is_killed(settings: EngineSettings) -> None:
    """More requests than the pipe holds, to a process that reads none of them."""

    async def run() -> None:
        engine = await EngineClient.start(settings)
        engine.settings = replace(settings, answer_seconds=1.0)
        await engine.open("s1", PICTURE, 1)
        assert engine._process.pid is not None
        os.kill(engine._process.pid, signal.SIGSTOP)
        begin = monotonic()
        calls = [asyncio.create_task(engine.rollback("s" * 5000, k)) for k in range(1, 41)]
        await asyncio.sleep(0.1)
        assert monotonic() - begin < 0.9, "the event loop waited for the engine"
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(result) for result in results} == {EngineDied}
        assert monotonic() - begin < 5
        await engine.stop()

    threads = threading.active_count()
    asyncio.run(run())
    patience = monotonic() + 10
    while threading.active_count() > threads and monotonic() < patience:
        sleep(0.05)  # the thread that reads answers has yet to see the end of the pipe
    assert threading.active_count() <= threads
