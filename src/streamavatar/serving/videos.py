"""Offline videos: `streamavatar render` in a process of its own, politely, one at a time."""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import os
import secrets
import shutil
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from streamavatar.serving.bodies import VideoWish
from streamavatar.serving.faces import Faces
from streamavatar.serving.problems import ApiProblem
from streamavatar.serving.settings import ServerSettings

logger = logging.getLogger(__name__)
KEPT_SECONDS = 600.0
_NICE = 10


@dataclass
class Job:
    """One video; its folder is private and goes when the job is forgotten."""

    id: str
    folder: Path
    status: Literal["working", "done", "failed"] = "working"
    message: str = ""

    @property
    def file(self) -> Path:
        return self.folder / "video.mp4"


class Videos:
    """Starts and keeps the jobs of one server."""

    def __init__(self, settings: ServerSettings, faces: Faces) -> None:
        self._settings, self._faces = settings, faces
        self._jobs: dict[str, Job] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def get(self, name: str) -> Job:
        """Raises ApiProblem 404."""
        if name not in self._jobs:
            raise ApiProblem(404, "no_video", "there is no such video, or it was deleted after a while")
        return self._jobs[name]

    def start(self, wish: VideoWish, *, busy: bool) -> Job:
        """Begin a job.

        Args:
            busy: whether live sessions need the machine.

        Raises:
            ApiProblem: 422 for bad lanes, 404 for an unknown avatar, 429 while another job or live sessions run.
        """
        lanes = {"agent": _bytes(wish.agent_audio, "agent_audio"), "user": _bytes(wish.user_audio, "user_audio")}
        if not any(lanes.values()) and wish.seconds is None:
            raise ApiProblem(422, "invalid", "give agent_audio, user_audio, or seconds of silence")
        if (wish.seconds or 0) > self._settings.video_seconds:
            raise ApiProblem(422, "too_long", f"a video has at most {self._settings.video_seconds:g} s")
        face = self._faces.get(wish.avatar or next(face.id for face in self._faces.all()))
        if busy or any(job.status == "working" for job in self._jobs.values()):
            raise ApiProblem(429, "busy", "the machine is busy with other sessions or a video", retry_after=10)
        job = Job(secrets.token_urlsafe(12), Path(tempfile.mkdtemp(prefix="streamavatar-video-")))
        (job.folder / "picture.png").write_bytes(face.as_png())
        command = ["--image", str(job.folder / "picture.png"), "--seed", str(wish.seed), "-o", str(job.file)]
        for name, data in lanes.items():
            if data:
                (job.folder / name).write_bytes(data)
                command += [f"--{name}-audio", str(job.folder / name)]
        command += ["--seconds", str(wish.seconds)] if wish.seconds else []
        engine = self._settings.engine
        command += ["--model", str(engine.model)] if engine.model else []
        command += ["--device", engine.device, "--precision", engine.precision]
        self._jobs[job.id] = job
        task = asyncio.create_task(self._work(job, command), name=f"video {job.id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return job

    async def close(self) -> None:
        """Stop what runs and delete everything."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for name in list(self._jobs):
            self._forget(name)

    async def _work(self, job: Job, command: list[str]) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "streamavatar.cli",
            "render",
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            preexec_fn=lambda: os.nice(_NICE),
        )
        try:
            limit = 20 * self._settings.video_seconds
            _, errors = await asyncio.wait_for(process.communicate(), limit)
        except BaseException:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            job.status, job.message = "failed", "it was stopped"
            raise
        if process.returncode == 0 and job.file.exists():
            job.status = "done"
        else:
            lines = errors.decode(errors="replace").strip().splitlines()
            said = next((line for line in reversed(lines) if line.startswith("error: ")), "error: it failed")
            job.status = "failed"
            job.message = said.removeprefix("error: ").replace(f"{job.folder}/", "")
        asyncio.get_running_loop().call_later(KEPT_SECONDS, self._forget, job.id)

    def _forget(self, name: str) -> None:
        job = self._jobs.pop(name, None)
        if job is not None:
            shutil.rmtree(job.folder, ignore_errors=True)


def _bytes(text: str | None, name: str) -> bytes:
    try:
        return base64.b64decode(text or "", validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiProblem(422, "invalid", f"{name} is not base64") from error
