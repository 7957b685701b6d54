"""Training data without pictures or speech."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from streamavatar.config import ModelConfig
from streamavatar.data.latents import LatentSet, feature_frames


def random_clips(config: ModelConfig, count: int = 6, latents: int = 10) -> LatentSet:
    """Random clips that fit a model."""
    generator = torch.Generator().manual_seed(4)
    geometry, frames = config.geometry, config.geometry.frames_of(latents)
    cells = (geometry.latent_height, geometry.latent_width)
    rows = (count, feature_frames(frames), config.audio.feature_dim)
    return LatentSet(
        latents=torch.randn(count, geometry.latent_channels, latents, *cells, generator=generator).half(),
        talk=torch.randn(rows, generator=generator).half(),
        listen=torch.randn(rows, generator=generator).half(),
        mouth=torch.rand(count, latents, *cells, generator=generator).half(),
        opening=torch.rand(count, frames, generator=generator).half(),
        state=torch.zeros(count, frames, dtype=torch.int8),
    )


@pytest.fixture
def make_clips() -> Callable[..., LatentSet]:
    """make_clips(config, count, latents) -> random clips that fit a model."""
    return random_clips
