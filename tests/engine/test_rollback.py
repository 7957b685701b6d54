"""A chunk taken back leaves no trace in half precision and with the bundled model either (see `test_step`)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from streamavatar import bundled
from streamavatar.avatar import Avatar
from streamavatar.engine import Pipeline, StepSession
from streamavatar.media import read_image
from streamavatar.models.audio import AFTER
from streamavatar.models.avatar import AvatarModel

CHUNK = 12


def speech(seed: int, ticks: int, tick: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.1, ticks * tick).astype(np.float32)


def audio(seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return speech(seed, CHUNK + AFTER, 960), speech(100 + seed, CHUNK, 640)


def check(model: AvatarModel, pipeline: Pipeline, picture: NDArray[np.uint8], dropped: dict[int, int]) -> None:
    """Drop `dropped[chunk]` tries of a chunk before it is made for good, and compare with a session that never did."""
    plain, session = (
        StepSession(model, pipeline, picture, agent_rate=24000, user_rate=16000, seed=5) for _ in range(2)
    )
    for chunk in range(1, 1 + max(dropped)):
        for attempt in range(dropped.get(chunk, 0)):
            session.step(*audio(1000 * chunk + attempt))
            session.rollback()
        np.testing.assert_array_equal(session.step(*audio(chunk)), plain.step(*audio(chunk)))


def test_in_half_precision(make_model: Callable[..., AvatarModel]) -> None:
    model = make_model().eval()
    model.transformer.bfloat16()
    model.codec.detail.bfloat16()
    picture = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    check(model, Pipeline(1), picture, {1: 1, 2: 3, 3: 1, 5: 1, 6: 2, 9: 1})


@pytest.mark.slow
def test_with_the_bundled_model() -> None:
    avatar = Avatar.load(threads=1)
    size = avatar.config.geometry
    picture = read_image(bundled.portrait(bundled.DEFAULT_AVATAR).path, size.height, size.width)
    check(avatar.model, avatar.pipeline, picture, {1: 1, 2: 1, 3: 2, 6: 1})
