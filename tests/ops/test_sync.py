"""Nothing on the way from sound to pixels asks the device for a number: on a GPU the host would wait there.

`tests/engine/test_graphs.py` has the same for a real GPU, where copies that wait are noticed as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from streamavatar.bench.drawn import drawn_model, full_config, reduced
from streamavatar.models.audio import mel_filters
from streamavatar.models.avatar import AvatarModel
from streamavatar.models.codec.wan import _per_channel
from streamavatar.models.transformer import Conditions
from streamavatar.ops.rope import _frequencies, rope
from streamavatar.ops.transfer import rgb_frames
from streamavatar.rollout import Passes, make_chunk

Model = Callable[..., AvatarModel]


@pytest.fixture(autouse=True)
def own_tables() -> Iterator[None]:
    """Angles without values must not be found by others."""
    kept = (rope, _frequencies, mel_filters, _per_channel)
    for cache in kept:
        cache.cache_clear()
    yield
    for cache in kept:
        cache.cache_clear()


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


@pytest.mark.parametrize("decoder", ["small", "light", "full"])
def test_sound_and_pictures_need_no_values(make_model: Model, decoder: str) -> None:
    """The small models' encoder and codec, and wav2vec 2.0 with either decoder of Wan's latents."""
    if decoder == "small":
        model = make_model().eval().requires_grad_(False)
    else:
        pytest.importorskip("transformers")
        tiny = reduced(full_config(32, 32), layers=1, dim=128)
        model = drawn_model(tiny, decoder, torch.device("cpu"), torch.float32)  # type: ignore[arg-type]
    g = model.config.geometry
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.inference_mode():
        sound = torch.zeros(2, 1, (model.audio.history + 16) * model.audio.encoder.frame_samples)
        talk, listen = model.audio.tokens(*model.audio.features(*sound), -1, range(1, 4))
        assert mode.is_our_fake(talk)
        assert mode.is_our_fake(listen)
        latent, state = model.codec.open(torch.zeros(1, 3, g.height, g.width))
        for _ in range(2):
            pixels, state = model.codec.decode(latent.expand(-1, -1, 3, -1, -1), state)
        frames = rgb_frames(pixels)
        assert mode.is_our_fake(frames)
        assert frames.shape == (12, g.height, g.width, 3)
