"""Sizes of pictures, latents, chunks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamavatar.geometry import Geometry

geometries = st.builds(
    Geometry,
    height=st.integers(1, 30).map(lambda n: 32 * n),
    width=st.integers(1, 30).map(lambda n: 32 * n),
    temporal_stride=st.integers(1, 8),
    chunk_latents=st.integers(1, 6),
)


def test_default_sizes() -> None:
    geometry = Geometry()
    assert geometry.grid == (4, 4)
    assert geometry.tokens_per_latent == 16
    assert (geometry.chunk_frames, geometry.chunk_seconds) == (12, 0.48)


def test_the_paper_s_size() -> None:
    geometry = Geometry(height=704, width=1280)
    assert (geometry.latent_height, geometry.latent_width) == (44, 80)
    assert geometry.grid == (22, 40)
    assert geometry.tokens_per_latent == 880


@given(geometries, st.integers(1, 200))
def test_frames_and_latents_are_inverse(geometry: Geometry, latents: int) -> None:
    assert geometry.latents_of(geometry.frames_of(latents)) == latents


@given(geometries, st.integers(1, 60))
def test_latents_tile_the_frames(geometry: Geometry, latents: int) -> None:
    frames = [frame for latent in range(latents) for frame in geometry.latent_frames(latent)]
    assert frames == list(range(geometry.frames_of(latents)))


@given(geometries, st.integers(0, 60))
def test_chunks_tile_the_latents(geometry: Geometry, chunks: int) -> None:
    latents = [latent for chunk in range(chunks + 1) for latent in geometry.chunk_span(chunk)]
    assert latents == list(range(1 + chunks * geometry.chunk_latents))


@given(geometries, st.integers(1, 60))
def test_frames_of_a_chunk_are_those_of_its_latents(geometry: Geometry, chunk: int) -> None:
    span = geometry.chunk_frame_span(chunk)
    assert list(span) == [f for latent in geometry.chunk_span(chunk) for f in geometry.latent_frames(latent)]
    assert len(span) == geometry.chunk_frames


@given(geometries, st.integers(0, 500))
def test_chunks_for_covers_the_frames_and_no_more(geometry: Geometry, frames: int) -> None:
    chunks = geometry.chunks_for(frames)
    assert (chunks - 1) * geometry.chunk_frames < frames <= chunks * geometry.chunk_frames


@pytest.mark.parametrize("frames", [0, 2, 12, -3])
def test_a_clip_has_1_plus_4n_frames(frames: int) -> None:
    with pytest.raises(ValueError, match=f"1 \\+ 4n frames, got {frames}"):
        Geometry().latents_of(frames)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"height": 100}, "multiples of 32, got 100x128"),
        ({"width": 0}, "width must be at least 1"),
        ({"chunk_latents": 0}, "chunk_latents must be at least 1"),
        ({"fps": -25}, "fps must be at least 1"),
    ],
)
def test_impossible_sizes_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Geometry(**values)


def test_no_negative_chunk_no_empty_clip() -> None:
    with pytest.raises(ValueError, match="count from 0"):
        Geometry().chunk_span(-1)
    with pytest.raises(ValueError, match="reference latent, got 0"):
        Geometry().frames_of(0)
