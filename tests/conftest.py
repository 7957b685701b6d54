"""Small models whose weights are all drawn: fresh ones start with zeros that would hide half of the network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

from streamavatar.config import AudioConfig, CodecConfig, ContextConfig, ModelConfig, TransformerConfig
from streamavatar.geometry import Geometry
from streamavatar.models.avatar import AvatarModel
from streamavatar.models.transformer import Conditions
from streamavatar.rollout import Noise
from streamavatar.seeds import seed_for

settings.register_profile("busy", deadline=None)  # the first call of a kernel is slow, and so is a shared machine
settings.load_profile("busy")

SMALL = ModelConfig(
    name="small",
    geometry=Geometry(height=64, width=96, latent_channels=8),  # not square: 2 x 3 tokens
    transformer=TransformerConfig(dim=32, ffn_dim=48, heads=2, layers=2, latent_channels=8, freq_dim=16, audio_dim=12),
    audio=AudioConfig(mels=16, width=12, depth=2, feature_dim=10, tokens=3, hidden=16, dim=12),
    codec=CodecConfig(widths=(12, 8, 8), blocks=1),
)


@torch.no_grad()
def redraw(module: nn.Module, seed: int = 0) -> None:
    """Give every parameter a normal value: matrices scaled by their inputs, vectors a tenth off their start."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.copy_(noise / parameter[0].numel() ** 0.5)
        else:
            parameter.add_(0.1 * noise)


@pytest.fixture
def small() -> ModelConfig:
    """A valid configuration of about 40,000 weights."""
    return SMALL


@pytest.fixture(scope="session")
def make_model() -> Callable[..., AvatarModel]:
    """make_model(transformer={...}, context={...}, audio={...}, **fields) -> a small model, every weight drawn."""

    def make(seed: int = 0, **changes: Any) -> AvatarModel:
        parts = {
            name: replace(getattr(SMALL, name), **change) if isinstance(change, dict) else change
            for name, change in changes.items()
        }
        torch.manual_seed(seed)
        model = AvatarModel(replace(SMALL, **parts))
        redraw(model, seed)
        return model

    return make


@pytest.fixture
def make_conditions() -> Callable[..., Conditions]:
    """make_conditions(model, latents, batch=1) -> random conditions of a clip, the reference first."""

    def make(model: AvatarModel, latents: int, batch: int = 1, seed: int = 1) -> Conditions:
        generator = torch.Generator().manual_seed(seed)
        audio, geometry = model.config.audio, model.config.geometry
        talk, listen = (torch.randn(batch, latents, audio.tokens, audio.dim, generator=generator) for _ in range(2))
        size = (geometry.latent_channels, 1, geometry.latent_height, geometry.latent_width)
        text_dim = model.config.transformer.text_dim
        text = torch.randn(batch, 5, text_dim, generator=generator) if text_dim else None
        return Conditions(talk, listen, torch.randn(batch, *size, generator=generator), text)

    return make


@pytest.fixture
def make_clip() -> Callable[..., Tensor]:
    """make_clip(model, latents, batch=1) -> random latents [B, C, T, h, w]."""

    def make(model: AvatarModel, latents: int, batch: int = 1, seed: int = 2) -> Tensor:
        geometry = model.config.geometry
        size = (batch, geometry.latent_channels, latents, geometry.latent_height, geometry.latent_width)
        return torch.randn(size, generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture
def make_noise() -> Callable[..., Noise]:
    """make_noise(model, batch=1) -> noise that depends on seed, chunk and pass alone."""

    def make(model: AvatarModel, batch: int = 1, seed: int = 3) -> Noise:
        geometry = model.config.geometry
        size = (
            batch,
            geometry.latent_channels,
            geometry.chunk_latents,
            geometry.latent_height,
            geometry.latent_width,
        )

        def noise(chunk: int, step: int) -> Tensor:
            return torch.randn(size, generator=torch.Generator().manual_seed(seed_for(seed, "noise", chunk, step)))

        return noise

    return make


CONTEXTS = {
    "default": ContextConfig(),
    "reading B": ContextConfig(cap=10, cap_on="start", ring_includes_current=False),
    "reference sink": ContextConfig(sink="reference"),
    "no sink": ContextConfig(sink="none"),
    "plain RoPE": ContextConfig(rapr=False),
    "odd ring": ContextConfig(ring_latents=9, cap=13),
}


@pytest.fixture(params=CONTEXTS.values(), ids=CONTEXTS.keys())
def context(request: pytest.FixtureRequest) -> ContextConfig:
    """Every kind of context."""
    return request.param
