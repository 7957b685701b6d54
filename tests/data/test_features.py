"""Features for training are those of run time, also where they depend on the stretch of sound that is heard."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from streamavatar.config import Wav2Vec2Sizes
from streamavatar.data.latents import feature_frames
from streamavatar.data.prepare import _features
from streamavatar.models.audio import AFTER, BEFORE, latent_window
from streamavatar.models.avatar import AvatarModel

SIZES = Wav2Vec2Sizes(layers=2, width=12, heads=2, ffn=16, conv_widths=(8,) * 7, position_groups=4, context=9)
Model = Callable[..., AvatarModel]


def lanes_of(model: AvatarModel, frames: int) -> list[Tensor]:
    samples = (model.audio.history + feature_frames(frames)) * model.audio.encoder.frame_samples
    return [0.2 * torch.randn(1, samples, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]


@pytest.mark.parametrize("frames", [1 + 3 * 12, 1 + 12 + 8])
def test_every_frame_has_the_feature_of_the_chunk_that_shows_it(make_model: Model, frames: int) -> None:
    pytest.importorskip("transformers")
    audio = {"wav2vec2": SIZES, "feature_dim": 24, "separate_lanes": False}
    model = make_model(audio=audio).eval().requires_grad_(False)
    lanes, rows = lanes_of(model, frames), feature_frames(frames)
    size, geometry = model.audio.encoder.frame_samples, model.config.geometry
    talk, listen = _features(model, lanes, rows)
    assert talk.shape == listen.shape == (1, rows, 24)
    for chunk in range(1, (frames - 1) // 12 + 1):
        first = latent_window(geometry.chunk_span(chunk)[0]).start + BEFORE  # as the engine's: a row
        heard = slice(first * size, (first + model.audio.history + 12 + BEFORE + AFTER) * size)
        own = slice(first + BEFORE, first + BEFORE + 12)
        for made, run_time in zip((talk, listen), model.audio.features(*(x[:, heard] for x in lanes)), strict=True):
            torch.testing.assert_close(made[:, own], run_time[:, BEFORE : BEFORE + 12], atol=1e-6, rtol=0)
    whole, _ = model.audio.features(*lanes)
    assert float((whole - talk).abs().max()) > 1e-3  # one run over the clip hears what comes later


def test_a_small_encoder_hears_the_same_however_it_is_asked(make_model: Model) -> None:
    model = make_model().eval().requires_grad_(False)
    lanes = lanes_of(model, 13)
    for made, whole in zip(_features(model, lanes, feature_frames(13)), model.audio.features(*lanes), strict=True):
        assert torch.equal(made, whole)
