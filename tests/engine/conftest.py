"""A tiny avatar with random weights: the engine's promises do not depend on what the model has learnt."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from streamavatar.avatar import Avatar
from streamavatar.engine import Pipeline
from streamavatar.geometry import Geometry
from streamavatar.models.avatar import AvatarModel


@pytest.fixture(scope="session")
def pipeline() -> Pipeline:
    return Pipeline(1)


@pytest.fixture
def tiny(make_model: Callable[..., AvatarModel], pipeline: Pipeline) -> Avatar:
    model = make_model(
        geometry=Geometry(height=64, width=64, latent_channels=8),
        transformer={"prediction": "sample", "residual": True},
    )
    return Avatar(model.eval().requires_grad_(False), pipeline)


@pytest.fixture
def face() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)


@pytest.fixture
def voice() -> np.ndarray:
    """Two seconds and a bit of something loud at 16 kHz."""
    rng = np.random.default_rng(1)
    return (rng.standard_normal(16000 * 2 + 123) * 0.2).astype(np.float32)
