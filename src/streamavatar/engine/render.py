"""Offline rendering through the live path: lanes are pushed as a live source would push them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from streamavatar.engine.lane import Samples
from streamavatar.engine.session import LANES, Output, Session


def run_lanes(session: Session, lanes: dict[str, Samples], seconds: float, piece: float = 1.0) -> Iterator[Output]:
    """Everything a fresh session shows in `seconds`; lanes are cut or filled with silence to that length.

    Args:
        session: opened with both lanes.
        lanes: samples at the session's rates, by lane; a lane left out is silent.
        seconds: length of the video, rounded up to whole frames.
        piece: seconds of audio that are pushed at a time.
    """
    fps = session.model.config.geometry.fps
    ticks = max(1, math.ceil(seconds * fps - 1e-6))
    step = max(1, round(piece * fps))
    for begin in range(0, ticks, step):
        end = min(begin + step, ticks)
        parts = {}
        for name in LANES:
            size = session.tick_samples(name)
            part = np.zeros((end - begin) * size, np.float32)
            known = lanes.get(name, part)[begin * size : end * size]
            part[: len(known)] = known
            parts[name] = part
        yield from session.push(**parts)
    yield from session.finish()
