"""Ten minutes of video through the whole path with the bundled default: memory and time per chunk do not grow."""

from __future__ import annotations

import os
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest

from streamavatar import bundled
from streamavatar.avatar import Avatar
from streamavatar.media import VideoWriter, read_audio

MINUTES = 10


def resident() -> int:
    """Bytes of memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_ten_minutes_stay_flat(tmp_path: Path) -> None:
    avatar = Avatar.load()
    size = avatar.config.geometry
    agent, user = (read_audio(path, 16000).samples for path in bundled.conversation())
    length = min(len(agent), len(user)) // 640 * 640
    session = avatar.session()
    memory, seconds = [], []
    with VideoWriter(tmp_path / "long.mp4", size.height, size.width) as writer:
        while writer.frames_written < MINUTES * 60 * 25:
            begin, shown = perf_counter(), writer.frames_written
            for output in session.push(agent=agent[:length], user=user[:length]):
                writer.write(output.frames, output.audio)
            seconds.append((perf_counter() - begin) / max(1, writer.frames_written - shown))
            memory.append(resident())
    tenth = len(memory) // 10
    growth = np.median(memory[-tenth:]) - np.median(memory[tenth : 2 * tenth])
    # The muxer keeps an index of every packet, about 15 MB an hour; everything else is constant.
    assert growth < 16 * 2**20
    assert np.median(seconds[-tenth:]) < 1.5 * np.median(seconds[:tenth])
    assert np.isfinite(output.audio).all()
    assert 10 < output.frames.std() < 120  # still a picture, neither flat nor noise
