"""A tiny avatar with random weights: the engine's promises do not depend on what the model has learnt."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from streamavatar.avatar import Avatar
from streamavatar.config import AudioConfig, CodecConfig, ModelConfig, TransformerConfig
from streamavatar.engine import Pipeline
from streamavatar.geometry import Geometry
from streamavatar.models.avatar import AvatarModel


@pytest.fixture(scope="session")
def tiny_model() -> AvatarModel:
    torch.manual_seed(3)
    config = ModelConfig(
        name="tiny",
        geometry=Geometry(height=64, width=64),
        transformer=TransformerConfig(
            dim=48, ffn_dim=64, heads=2, layers=2, audio_dim=32, prediction="sample", residual=True
        ),
        audio=AudioConfig(width=16, depth=2, feature_dim=16, hidden=16, dim=32),
        codec=CodecConfig(widths=(16, 16, 8), blocks=1),
    )
    model = AvatarModel(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and not name.startswith("codec.analysis"):
            torch.nn.init.normal_(parameter, std=0.15)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tiny(tiny_model: AvatarModel) -> Avatar:
    return Avatar(tiny_model, Pipeline(1))


@pytest.fixture(scope="session")
def face() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)


@pytest.fixture
def voice() -> np.ndarray:
    """Two seconds and a bit of something loud at 16 kHz."""
    rng = np.random.default_rng(1)
    return (rng.standard_normal(16000 * 2 + 123) * 0.2).astype(np.float32)
