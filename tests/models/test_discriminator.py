"""What each branch of the Consistency-Aware Discriminator can see."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from streamavatar.models.avatar import AvatarModel
from streamavatar.models.discriminator import Branches, Discriminator, default_taps
from streamavatar.models.transformer import Conditions

MakeModel = Callable[..., AvatarModel]


def build(make_model: MakeModel, branches: Branches = "full") -> tuple[Discriminator, Tensor, Tensor, Conditions]:
    backbone = make_model().transformer
    config = backbone.config
    torch.manual_seed(0)
    made = Discriminator(backbone, (0, 1), branches, width=32)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, config.latent_channels, 4, 4, 6, generator=generator)
    audio = torch.randn(2, 4, 3, config.audio_dim, generator=generator)
    sigma = torch.tensor([[0.0, 0.3, 0.3, 0.3]]).expand(2, -1)
    return made, x, sigma, Conditions(audio, audio, x[:, :, :1])


def test_shapes_of_the_branches(make_model: MakeModel) -> None:
    for branches in ("local", "pooled", "full"):
        discriminator, *inputs = build(make_model, branches)
        logits = discriminator(*inputs)
        assert logits.local.shape == (2, 3)
        assert (logits.overall is None) == (branches == "local")
        if logits.overall is not None:
            assert logits.overall.shape == (2,)


def test_the_global_branch_asks_with_the_reference_and_knows_the_order(make_model: MakeModel) -> None:
    discriminator, *_ = build(make_model)
    features = torch.randn(2, 4, 32)
    before = discriminator._summary(features)
    other = features.clone()
    other[:, 0] += 1
    assert not torch.allclose(discriminator._summary(other), before)
    assert not torch.allclose(discriminator._summary(features[:, [0, 2, 1, 3]]), before)
    discriminator.branches = "pooled"
    before = discriminator._summary(features)
    torch.testing.assert_close(discriminator._summary(other), before)
    torch.testing.assert_close(discriminator._summary(features[:, [0, 2, 1, 3]]), before)


def test_every_part_is_trained(make_model: MakeModel) -> None:
    discriminator, *inputs = build(make_model)
    logits = discriminator(*inputs)
    assert logits.overall is not None
    (logits.local.sum() + logits.overall.sum()).backward()
    idle = {name for name, p in discriminator.named_parameters() if p.grad is None}
    assert all(name.startswith("backbone.head") for name in idle)


def test_taps() -> None:
    assert default_taps(30) == (13, 21, 29)
    assert default_taps(6) == (2, 4, 5)
    assert default_taps(3) == (0, 1, 2)
    with pytest.raises(ValueError, match="three blocks"):
        default_taps(2)


@pytest.mark.parametrize("taps", [(), (5,), (1, 0), (1, 1)])
def test_bad_taps(make_model: MakeModel, taps: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="taps"):
        Discriminator(make_model().transformer, taps)
