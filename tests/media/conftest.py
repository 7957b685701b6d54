"""Real files for the media tests, made with PyAV."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

Encode = Callable[..., Path]


@pytest.fixture
def encode(tmp_path: Path) -> Encode:
    """encode(name, codec, samples [C, S] in -1..1, rate, **container options) -> the file."""

    def make(name: str, codec: str, samples: NDArray[np.float64], rate: int, **options: str) -> Path:
        path = tmp_path / name
        channels = np.atleast_2d(samples)
        layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(channels)]
        with av.open(str(path), "w", options=options) as container:
            stream = container.add_stream(codec, rate=rate, layout=layout)
            for start in range(0, channels.shape[1], 1024):
                piece = np.ascontiguousarray(channels[:, start : start + 1024])
                frame = av.AudioFrame.from_ndarray(piece, format="dblp", layout=layout)
                frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return make


@pytest.fixture(scope="session")
def assets() -> Path:
    """Recordings and portraits that lie beside the repository, not in it."""
    folder = Path(__file__).parents[3] / "shared" / "assets"
    if not folder.is_dir():
        pytest.skip(f"no test assets at {folder}")
    return folder
