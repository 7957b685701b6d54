"""A pass never asks the device for a number: on a GPU the host would wait there."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from streamavatar.models.avatar import AvatarModel
from streamavatar.models.transformer import Conditions
from streamavatar.ops.rope import _frequencies, rope
from streamavatar.rollout import Passes, make_chunk

Model = Callable[..., AvatarModel]


@pytest.fixture(autouse=True)
def own_tables() -> Iterator[None]:
    """Angles without values must not be found by others."""
    rope.cache_clear()
    yield
    rope.cache_clear()
    _frequencies.cache_clear()


def test_the_passes_of_a_chunk_need_no_values(make_model: Model, make_conditions: Callable[..., Conditions]) -> None:
    """Fake tensors have none, and say so when one is asked for."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        with pytest.raises(DataDependentOutputException):
            torch.ones(1).item()
        model = make_model(transformer={"text_dim": 6}, context={"cache_mode": "clean"})
        conditions = make_conditions(model, 3)
        cache = model.ring_cache()
        g = model.config.geometry

        def noise(chunk: int, step: int) -> Tensor:
            return torch.empty(1, g.latent_channels, 3, g.latent_height, g.latent_width)

        prepared = model.transformer.prepare(conditions)
        for chunk in (1, 7):  # a sink, and one that finds the sinks moved
            out = make_chunk(model.transformer, cache, chunk, prepared, noise, Passes.of(model.config))
        assert mode.is_our_fake(out)
