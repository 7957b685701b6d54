"""Renders one offline video in a process of its own: `python -m streamavatar.serving.video_worker FOLDER`.

The folder holds `job.json`, `portrait.png` and the lanes as `.npy`; the video is written beside them. Progress goes to
standard output, one number from 0 to 1 a line; what is wrong is the last line of standard error.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from streamavatar.avatar import Avatar
from streamavatar.engine import run_lanes
from streamavatar.errors import UserError
from streamavatar.media import VideoWriter
from streamavatar.serving.clock import AGENT_RATE, USER_RATE
from streamavatar.serving.protocol import VIDEO

RATES = {"agent": AGENT_RATE, "user": USER_RATE}


def render(folder: Path) -> None:
    """Do the job in that folder."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    avatar = Avatar.load(job["model"], device=job["device"], precision=job["precision"], threads=job["threads"])
    size = avatar.config.geometry
    lanes = {
        name: (np.load(path) / 32768).astype(np.float32) for name in RATES if (path := folder / f"{name}.npy").exists()
    }
    session = avatar.session(folder / "portrait.png", agent_rate=AGENT_RATE, user_rate=USER_RATE, seed=job["seed"])
    with VideoWriter(folder / VIDEO, size.height, size.width, size.fps, AGENT_RATE) as writer:
        for output in run_lanes(session, lanes, job["seconds"]):
            writer.write(output.frames, np.clip(output.audio, -1, 1))
            done = writer.frames_written / size.fps / job["seconds"]
            sys.stdout.write(f"{min(done, 1.0):.4f}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    try:
        render(Path(sys.argv[1]))
    except UserError as problem:
        sys.exit(str(problem))
