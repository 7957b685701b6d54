"""Feed a session as a live source would: 40 ms of both lanes at a time, at the pace of a clock.

    python examples/live_loop.py -o live.mp4
    python examples/live_loop.py --fast --seconds 4 --model runs/puppets/model -o live.mp4

The source is the bundled conversation. Frames go to a video file; where `writer.write` stands, a live program would
hand frames and audio to its screen or its network. At the end it says how long frames came after their audio.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from streamavatar import Avatar, bundled
from streamavatar.engine import Output
from streamavatar.media import VideoWriter, read_audio

RATE = 16000
PIECE = 0.04  # seconds: what a telephone or a browser delivers, more or less


def pieces(seconds: float, clock: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The conversation in pieces of both lanes, each when its last sample would have been spoken."""
    size, count = round(PIECE * RATE), round(seconds / PIECE)
    lanes = [np.zeros(count * size, np.float32) for _ in range(2)]
    for lane, path in zip(lanes, bundled.conversation(), strict=True):
        samples = read_audio(path, RATE).samples[: len(lane)]
        lane[: len(samples)] = samples
    begin = time.perf_counter()
    for index in range(count):
        if clock:
            time.sleep(max(0.0, begin + (index + 1) * PIECE - time.perf_counter()))
        part = slice(index * size, (index + 1) * size)
        yield lanes[0][part], lanes[1][part]


def show(writer: VideoWriter, outputs: Iterable[Output]) -> int:
    """Write what is ready; returns the number of chunks."""
    chunks = 0
    for output in outputs:
        writer.write(output.frames, output.audio)
        chunks += 1
    return chunks


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Feed a session with a live conversation, 40 ms at a time.")
    parser.add_argument("-o", "--output", type=Path, default=Path("live.mp4"))
    parser.add_argument("--avatar", default=bundled.DEFAULT_AVATAR, help="a bundled portrait or a picture")
    parser.add_argument("--model", type=Path, default=None, help="model folder; the bundled default if left out")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--fast", action="store_true", help="do not wait for the clock")
    options = parser.parse_args(arguments)

    avatar = Avatar.load(options.model)
    size = avatar.config.geometry
    session = avatar.session(options.avatar, agent_rate=RATE, user_rate=RATE)
    waits = []
    with VideoWriter(options.output, size.height, size.width, size.fps, RATE) as writer:
        for agent, user in pieces(options.seconds, clock=not options.fast):
            begin = time.perf_counter()
            if show(writer, session.push(agent=agent, user=user)):
                waits.append(time.perf_counter() - begin)
        show(writer, session.finish())
    print(f"{options.output}: {writer.frames_written} frames")
    if waits:
        worst, median = 1000 * max(waits), 1000 * float(np.median(waits))
        print(f"frames came {median:.0f} ms (median), {worst:.0f} ms (worst) after the last audio they need")


if __name__ == "__main__":
    main()
