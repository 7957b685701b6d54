"""Fill a folder with shards of synthetic clips: what is missing is made, by several processes, in any order.

A shard is a function of the source and its number, so it does not matter who makes it or how often work was stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from math import ceil
from pathlib import Path
from typing import Any

from streamavatar.data import packing
from streamavatar.data.crew import Report, run_units
from streamavatar.data.shards import FORMAT, ShardWriter, mend_manifest, shard_name, sweep, write_whole
from streamavatar.errors import UserError
from streamavatar.synth.performance import FPS
from streamavatar.synth.source import SIDES, ClipSource, SynthClip
from streamavatar.synth.speech import SAMPLE_RATE

JOB = "job.json"
DIALOGUES = 4  # per shard: enough for a file of megabytes, little to lose
LICENCE = (
    "Synthetic person and synthetic speech, made with streamavatar; no real person is shown or heard. "
    "Pictures rendered from assets are in here, the assets themselves are not."
)
Tell = Callable[[float, float], None]
"""(seconds of video done, seconds in all)."""


@dataclass(frozen=True)
class Produced:
    """What the folder holds, and how many of its shards this call made."""

    shards: int
    clips: int
    seconds: float
    size: int
    made: int


def produce(source: ClipSource, folder: Path, *, hours: float, workers: int, tell: Tell) -> Produced:
    """Make the shards of at least `hours` of video that are not in the folder yet.

    May be stopped at any time and called again; also by several processes at once, each of which returns when all
    shards are there.

    Args:
        source: makes the clips; the folder belongs to this source from the first call on.
        tell: told about every clip.

    Raises:
        UserError: the source lacks something, the folder holds another source's shards or a damaged one, the disk is
            full, or a worker was killed twice at the same shard.
    """
    begin_job(source, folder)
    shard_seconds = DIALOGUES * len(SIDES) * source.frames / FPS
    wanted = range(max(1, ceil(hours * 3600 / shard_seconds - 1e-9)))
    there = mend_manifest(folder)
    missing = [index for index in wanted if shard_name(index) not in there]
    seconds = {index: shard_seconds for index in wanted if shard_name(index) in there}

    def heard(index: int, made: float) -> None:
        seconds[index] = made
        tell(sum(seconds.values()), len(wanted) * shard_seconds)

    tell(sum(seconds.values()), len(wanted) * shard_seconds)
    try:
        work = partial(make_shard, folder=folder, source=source)
        run_units(work, missing, workers, heard, name=shard_name)
    finally:
        sweep(folder)
    lines = mend_manifest(folder).values()
    return Produced(
        shards=len(lines),
        clips=sum(len(line["clips"]) for line in lines),
        seconds=sum(line["seconds"] for line in lines),
        size=sum(line["bytes"] for line in lines),
        made=len(missing),
    )


def begin_job(source: ClipSource, folder: Path) -> None:
    """Check that clips can be made, and that the folder is new or holds clips of this very source."""
    settings = source.describe()
    text = json.dumps({"format": FORMAT, **settings}, sort_keys=True)
    job = {"job": hashlib.sha256(text.encode()).hexdigest()[:16], "format": FORMAT, "source": settings}
    record = folder / JOB
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        if not record.exists():
            write_whole(record, json.dumps(job, indent=2) + "\n")
        found = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: {error}; give a folder that can be written for --out") from error
    if found["job"] != job["job"]:
        changed = [key for key, value in settings.items() if found["source"].get(key) != value] or ["format"]
        raise UserError(
            f"{folder}: holds shards made with another {changed[0]}; give another --out, or delete the folder"
        )


def make_shard(index: int, report: Report, *, folder: Path, source: ClipSource) -> bool:
    """Make one shard; False if another process is making it.

    Raises:
        UserError: it cannot be written.
    """
    final = folder / shard_name(index)
    writer = ShardWriter.claim(final)
    if writer is None:
        return final.exists()
    made = 0.0
    with writer:
        for number in range(index * DIALOGUES, (index + 1) * DIALOGUES):
            for side, clip in zip(SIDES, source.make(number), strict=True):
                key = f"{number:08d}{side}"
                writer.add(key, clip_files(clip))
                made += len(clip.frames) / FPS
                report(made)
        writer.finish()
    return True


def clip_files(clip: SynthClip) -> dict[str, bytes]:
    """The files of one clip by suffix."""
    frames, height, width, _ = clip.frames.shape
    about: dict[str, Any] = {
        **clip.meta,
        "frames": frames,
        "fps": FPS,
        "size": [height, width],
        "audio_rate": SAMPLE_RATE,
        "landmark_step": packing.LANDMARK_STEP,
        "format": FORMAT,
        "versions": {name: version(name) for name in ("streamavatar", "av", "numpy")},
        "licence": LICENCE,
    }
    return {
        "mp4": packing.encode_video(clip.frames),
        "agent.opus": packing.encode_lane(clip.agent),
        "user.opus": packing.encode_lane(clip.user),
        "truth.npz": packing.encode_truth(clip.truth),
        "json": (json.dumps(about, sort_keys=True) + "\n").encode(),
    }
