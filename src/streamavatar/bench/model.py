"""Measured speed of a model on this machine: the whole path, from audio to encoded video."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from streamavatar import bundled
from streamavatar.avatar import Avatar
from streamavatar.engine import run_lanes
from streamavatar.engine.telemetry import peak_memory
from streamavatar.media import VideoWriter, read_audio
from streamavatar.provenance import commit, machine


def bench(avatar: Avatar, seconds: float, repeats: int = 3) -> dict[str, Any]:
    """Two measurements: throughput (chunks overlap, H.264 and AAC included) and latency (one chunk at a time).

    Args:
        avatar: loaded model.
        seconds: of video per repeat.
        repeats: of which medians are reported.
    """
    lanes = {
        name: read_audio(path, 16000).samples
        for name, path in zip(("agent", "user"), bundled.conversation(), strict=True)
    }
    longest = max(map(len, lanes.values()))
    lanes = {name: np.resize(np.pad(x, (0, longest - len(x))), int(seconds * 16000)) for name, x in lanes.items()}
    rtf = [_throughput(avatar, lanes, seconds) for _ in range(repeats)]
    chunk = _latency(avatar, lanes, seconds)
    return {
        "model": avatar.config.name,
        "precision": avatar.precision,
        "size": f"{avatar.config.geometry.width}x{avatar.config.geometry.height}",
        "video_seconds": seconds,
        "rtf": float(np.median(rtf)),
        "rtf_runs": rtf,
        **chunk,
        "peak_memory_bytes": peak_memory(),
        "machine": machine(),
        "commit": commit(),
        "config": asdict(avatar.config),
    }


def _throughput(avatar: Avatar, lanes: dict[str, np.ndarray], seconds: float) -> float:
    """Wall seconds per second of encoded video."""
    size = avatar.config.geometry
    with tempfile.TemporaryDirectory() as folder:
        begin = perf_counter()
        session = avatar.session()
        with VideoWriter(Path(folder) / "bench.mp4", size.height, size.width, audio_rate=16000) as writer:
            for output in run_lanes(session, lanes, seconds):
                writer.write(output.frames, output.audio)
        return (perf_counter() - begin) / seconds


def _latency(avatar: Avatar, lanes: dict[str, np.ndarray], seconds: float) -> dict[str, Any]:
    """Seconds from a chunk's audio to its frames, with nothing else in the pipeline, and where they went."""
    session = avatar.session()
    step = avatar.config.geometry.chunk_frames * session.tick_samples("agent")
    for begin in range(0, int(seconds * 16000), step):
        part = {name: x[begin : begin + step] for name, x in lanes.items()}
        for _ in session.push(**part):
            pass
    return {
        "first_frame_seconds": session.telemetry.first_frame,
        "chunk_seconds": session.telemetry.summary(),
    }
