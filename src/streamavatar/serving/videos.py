"""Offline videos: one at a time, in a process that waits whenever live sessions need the machine.

The worker runs at the lowest priority and is halted while no further session would find room. A video lies in a private
folder and is deleted some time after it is done.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from streamavatar.serving.problems import ApiProblem
from streamavatar.serving.protocol import VIDEO, EngineSettings

_LOOK_SECONDS = 0.5
Status = Literal["working", "waiting", "done", "failed"]


@dataclass(eq=False)
class Video:
    """One job; times on the loop's clock."""

    id: str
    folder: Path
    status: Status = "working"
    progress: float = 0.0
    message: str = ""
    ended: float = 0.0

    @property
    def file(self) -> Path:
        return self.folder / VIDEO


class Videos:
    """See the module's docstring.

    Args:
        engine: what renders.
        keep_seconds: how long a finished video can be fetched.
        has_room: whether the live sessions leave room.
    """

    def __init__(self, engine: EngineSettings, keep_seconds: float, has_room: Callable[[], bool]) -> None:
        self._engine, self._keep_seconds, self._has_room = engine, keep_seconds, has_room
        self._videos: dict[str, Video] = {}
        self._work: asyncio.Task[None] | None = None

    def get(self, name: str) -> Video:
        """Raises ApiProblem 404."""
        self._forget_old()
        if name not in self._videos:
            raise ApiProblem(404, "no_video", "there is no such video, or its time is over")
        return self._videos[name]

    def check_free(self) -> None:
        """Raise ApiProblem 429 while another video is made, 503 while the live sessions need the machine."""
        if self._work is not None and not self._work.done():
            raise ApiProblem(429, "busy", "another video is being made", retry_after=10)
        if not self._has_room():
            raise ApiProblem(503, "no_room", "the live sessions need the machine", retry_after=30)

    def start(self, png: bytes, lanes: Mapping[str, NDArray[np.int16]], seconds: float, seed: int) -> Video:
        """Begin a video of a picture and lanes (int16 at the lanes' rates). Raises ApiProblem as `check_free`."""
        self.check_free()
        self._forget_old()
        folder = Path(tempfile.mkdtemp(prefix="streamavatar-video-"))
        (folder / "portrait.png").write_bytes(png)
        for name, samples in lanes.items():
            np.save(folder / f"{name}.npy", samples)
        job = {**asdict(self._engine), "seconds": seconds, "seed": seed, "threads": self._engine.threads or 1}
        (folder / "job.json").write_text(json.dumps(job, default=str), encoding="utf-8")
        video = Video(secrets.token_urlsafe(12), folder)
        self._videos[video.id] = video
        self._work = asyncio.create_task(self._make(video), name=f"video {video.id}")
        return video

    async def close(self) -> None:
        """Stop and delete everything."""
        if self._work is not None:
            self._work.cancel()
            with suppress(asyncio.CancelledError):
                await self._work
        for video in self._videos.values():
            shutil.rmtree(video.folder, ignore_errors=True)
        self._videos.clear()

    def _forget_old(self) -> None:
        now = asyncio.get_running_loop().time()
        for video in list(self._videos.values()):
            if video.ended and now - video.ended > self._keep_seconds:
                shutil.rmtree(video.folder, ignore_errors=True)
                del self._videos[video.id]

    async def _make(self, video: Video) -> None:
        command = [sys.executable, "-m", "streamavatar.serving.video_worker", str(video.folder)]
        if nice := shutil.which("nice"):
            command = [nice, "-n", "19", *command]
        pipe = asyncio.subprocess.PIPE
        worker = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
        assert worker.stdout is not None
        assert worker.stderr is not None
        waits = asyncio.create_task(self._give_way(video, worker.pid))
        try:
            errors = asyncio.create_task(worker.stderr.read())
            async for line in worker.stdout:
                video.progress = float(line)
            lines = (await errors).decode(errors="replace").strip().splitlines()
            failed = await worker.wait() != 0
            video.message = (lines[-1] if lines else "the worker was stopped") if failed else ""
            video.status = "failed" if failed else "done"
        finally:
            waits.cancel()
            if worker.returncode is None:
                worker.kill()
                await worker.wait()
            video.ended = asyncio.get_running_loop().time()

    async def _give_way(self, video: Video, worker: int) -> None:
        """Halt the worker while there is no room, and let it go on afterwards."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            room = self._has_room()
            if room == (video.status == "waiting"):
                os.kill(worker, signal.SIGCONT if room else signal.SIGSTOP)
                video.status = "working" if room else "waiting"
