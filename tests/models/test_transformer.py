"""The transformer: what reaches what, what the output means, and names that Wan's weights will fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamavatar.models.avatar import AvatarModel
from streamavatar.models.transformer import Conditions, RMSNorm, Transformer, timestep_embedding
from streamavatar.schedule import add_noise

Model = Callable[..., AvatarModel]
MakeConditions = Callable[..., Conditions]
MakeClip = Callable[..., Tensor]

LATENTS = 7


def changed(a: Tensor, b: Tensor) -> list[bool]:
    """Which latents differ."""
    return [bool(x) for x in ((a - b).abs().amax((0, 1, 3, 4)) > 1e-6)]


def only(*latents: int) -> list[bool]:
    return [k in latents for k in range(LATENTS)]


def without_self_attention(model: AvatarModel) -> Transformer:
    """A network in which tokens meet nowhere but in the audio attention."""
    for block in model.transformer.blocks:
        nn.init.zeros_(block.self_attn.o.weight)
        nn.init.zeros_(block.self_attn.o.bias)
    return model.transformer.requires_grad_(False)


# audio ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lane", ["talk", "listen"])
def test_audio_is_frame_wise(
    lane: str, make_model: Model, make_conditions: MakeConditions, make_clip: MakeClip
) -> None:
    model = make_model()
    network, x, sigma = without_self_attention(model), make_clip(model, LATENTS), torch.full((1, LATENTS), 0.5)
    conditions = make_conditions(model, LATENTS)
    plain = network.sample(x, sigma, conditions)
    for latent in range(LATENTS):
        tokens = getattr(conditions, lane).clone()
        tokens[:, latent] += 1
        assert changed(plain, network.sample(x, sigma, replace(conditions, **{lane: tokens}))) == only(latent)


def test_lanes_have_weights_of_their_own(
    make_model: Model, make_conditions: MakeConditions, make_clip: MakeClip
) -> None:
    model = make_model()
    conditions, x, sigma = make_conditions(model, LATENTS), make_clip(model, LATENTS), torch.full((1, LATENTS), 0.5)
    swapped = replace(conditions, talk=conditions.listen, listen=conditions.talk)
    a, b = (model.transformer.sample(x, sigma, c) for c in (conditions, swapped))
    assert all(changed(a, b))


def test_fresh_audio_attention_is_silent(
    small: Any, make_model: Model, make_conditions: MakeConditions, make_clip: MakeClip
) -> None:
    """A model that gains the audio attention starts as the model that it was."""
    model = make_model()
    fresh = Transformer(small.transformer).requires_grad_(False)
    fresh.head.head.weight.normal_()
    conditions, x, sigma = make_conditions(model, LATENTS), make_clip(model, LATENTS), torch.full((1, LATENTS), 0.5)
    a, b = (fresh.sample(x, sigma, c) for c in (conditions, make_conditions(model, LATENTS, seed=9)))
    assert torch.equal(a, b)
    assert any(changed(a, x))


# text ----------------------------------------------------------------------------------------------


def test_text_reaches_everything(make_model: Model, make_conditions: MakeConditions, make_clip: MakeClip) -> None:
    model = make_model(transformer={"text_dim": 6})
    conditions, x, sigma = make_conditions(model, LATENTS), make_clip(model, LATENTS), torch.full((1, LATENTS), 0.5)
    assert conditions.text is not None
    plain = model.transformer.sample(x, sigma, conditions)
    assert all(changed(plain, model.transformer.sample(x, sigma, replace(conditions, text=conditions.text + 1))))
    assert all(changed(plain, model.transformer.sample(x, sigma, replace(conditions, text=None))))


def test_without_text_there_are_no_text_weights(make_model: Model) -> None:
    def named(**changes: Any) -> set[str]:
        names = dict(make_model(**changes).transformer.named_parameters())
        return {part for name in names for part in name.split(".") if part in ("cross_attn", "norm3", "text_embedding")}

    assert named() == set()
    assert named(transformer={"text_dim": 6}) == {"cross_attn", "norm3", "text_embedding"}


# time ----------------------------------------------------------------------------------------------


def test_timesteps_are_per_latent(make_model: Model, make_conditions: MakeConditions, make_clip: MakeClip) -> None:
    model = make_model()
    network, x, conditions = without_self_attention(model), make_clip(model, LATENTS), make_conditions(model, LATENTS)
    plain = network(x, torch.full((1, LATENTS), 500.0), conditions)
    for latent in range(LATENTS):
        timesteps = torch.full((1, LATENTS), 500.0)
        timesteps[:, latent] = 300
        assert changed(plain, network(x, timesteps, conditions)) == only(latent)


def test_timestep_embedding_is_wan_s() -> None:
    timesteps = torch.tensor([[0.0, 522.0, 1000.0]])
    got = timestep_embedding(timesteps, 256)
    assert got.dtype == torch.float32
    assert got.shape == (1, 3, 256)
    rates = 10000.0 ** (-torch.arange(128).double() / 128)
    angles = timesteps.double()[..., None] * rates
    torch.testing.assert_close(got.double(), torch.cat((angles.cos(), angles.sin()), -1), atol=1e-6, rtol=0)


def test_every_latent_sees_every_other(make_model: Model, make_conditions: MakeConditions, make_clip: MakeClip) -> None:
    """Without a view or a mask: the bidirectional teacher."""
    model = make_model()
    conditions, sigma = make_conditions(model, LATENTS), torch.full((1, LATENTS), 0.5)
    x = make_clip(model, LATENTS)
    plain = model.transformer(x, 1000 * sigma, conditions)
    for latent in (0, LATENTS - 1):
        other = x.clone()
        other[:, :, latent] += 1
        assert all(changed(plain, model.transformer(other, 1000 * sigma, conditions)))


def test_order_in_time_and_space_matters(
    make_model: Model, make_conditions: MakeConditions, make_clip: MakeClip
) -> None:
    model = make_model()
    x, sigma = make_clip(model, LATENTS), torch.full((1, LATENTS), 0.5)
    conditions = make_conditions(model, LATENTS)
    conditions = replace(
        conditions,
        talk=conditions.talk[:, :1].expand(-1, LATENTS, -1, -1),
        listen=conditions.talk[:, :1].expand(-1, LATENTS, -1, -1),
    )
    plain = model.transformer(x, 1000 * sigma, conditions)
    later = model.transformer(x.roll(1, 2), 1000 * sigma, conditions).roll(-1, 2)
    right = model.transformer(x.roll(2, 4), 1000 * sigma, conditions).roll(-2, 4)
    assert all(changed(plain, later))
    assert all(changed(plain, right))


# what the output means -----------------------------------------------------------------------------


def test_velocity_and_sample(make_model: Model, make_conditions: MakeConditions, make_clip: MakeClip) -> None:
    """The same network under two names: x - sigma * out, or out."""
    velocity, sample = make_model(), make_model(transformer={"prediction": "sample"})
    conditions, x = make_conditions(velocity, LATENTS), make_clip(velocity, LATENTS)
    sigma = torch.linspace(0, 1, LATENTS)[None]
    out = velocity.transformer(x, 1000 * sigma, conditions)
    assert torch.equal(out, sample.transformer(x, 1000 * sigma, conditions))
    assert torch.equal(sample.transformer.sample(x, sigma, conditions), out)
    torch.testing.assert_close(
        velocity.transformer.sample(x, sigma, conditions), x - sigma[:, None, :, None, None] * out
    )


def test_a_residual_model_makes_the_difference_to_the_reference(
    make_model: Model, make_conditions: MakeConditions, make_clip: MakeClip
) -> None:
    """Its network sees difference and noise alone, so the reference may be any."""
    model = make_model(transformer={"prediction": "sample", "residual": True})
    conditions, difference = make_conditions(model, LATENTS), make_clip(model, LATENTS)
    noise, sigma = make_clip(model, LATENTS, seed=8), torch.linspace(0, 1, LATENTS)[None]
    out = []
    for reference in (conditions.reference, torch.zeros_like(conditions.reference)):
        x = add_noise(reference + difference, noise, sigma)
        out.append(model.transformer.sample(x, sigma, replace(conditions, reference=reference)) - reference)
    torch.testing.assert_close(out[0], out[1], atol=1e-5, rtol=0)


def test_a_fresh_residual_model_stands_still(
    small: Any, make_model: Model, make_conditions: MakeConditions, make_clip: MakeClip
) -> None:
    fresh = Transformer(replace(small.transformer, prediction="sample", residual=True))
    model = make_model()
    conditions, x = make_conditions(model, LATENTS), make_clip(model, LATENTS)
    out = fresh.sample(x, torch.full((1, LATENTS), 0.7), conditions)
    assert torch.equal(out, conditions.reference.expand_as(x))


def test_reference_channels_show_the_reference_scaled(
    make_model: Model, make_conditions: MakeConditions, make_clip: MakeClip
) -> None:
    model = make_model(transformer={"reference_channels": 5})
    network = without_self_attention(model)
    conditions, x, sigma = make_conditions(model, LATENTS), make_clip(model, LATENTS), torch.full((1, LATENTS), 0.5)
    plain = network.sample(x, sigma, conditions)
    assert all(changed(plain, network.sample(x, sigma, replace(conditions, reference=conditions.reference + 1))))
    network.reference_scale.mul_(4)
    fourfold = replace(conditions, reference=4 * conditions.reference)
    torch.testing.assert_close(network.sample(x, sigma, fourfold), plain, atol=1e-5, rtol=0)
    assert "reference_scale" in network.state_dict()


def test_a_fresh_model_predicts_nothing(
    small: Any, make_model: Model, make_conditions: MakeConditions, make_clip: MakeClip
) -> None:
    model, fresh = make_model(), Transformer(small.transformer)
    out = fresh(make_clip(model, LATENTS), torch.full((1, LATENTS), 500.0), make_conditions(model, LATENTS))
    assert not out.any()


# weights as Wan has them ---------------------------------------------------------------------------


def test_patch_embedding_is_the_convolution(make_model: Model, make_clip: MakeClip) -> None:
    model = make_model()
    x = make_clip(model, LATENTS, batch=2)
    expected = model.transformer.patch_embedding(x).flatten(2).transpose(1, 2)
    torch.testing.assert_close(model.transformer._embed(x), expected, atol=1e-5, rtol=0)


def test_unpatchify_is_wan_s(make_model: Model) -> None:
    grid, tokens = (2, 3), torch.randn(2, LATENTS * 6, 8 * 4, generator=torch.Generator().manual_seed(0))
    rows = tokens.view(2, LATENTS, *grid, 1, 2, 2, 8)
    expected = torch.einsum("bfhwpqrc->bcfphqwr", rows).reshape(2, 8, LATENTS, 4, 6)
    assert torch.equal(make_model().transformer._unpatchify(tokens, LATENTS, grid), expected)


def test_names_are_wan_s(make_model: Model) -> None:
    names = set(make_model(transformer={"text_dim": 6}).transformer.state_dict())
    for part in ("q", "k", "v", "o", "norm_q", "norm_k"):
        for attention in ("self_attn", "cross_attn"):
            assert f"blocks.1.{attention}.{part}.weight" in names
    assert {
        "patch_embedding.weight",
        "text_embedding.2.bias",
        "time_embedding.0.weight",
        "time_projection.1.weight",
        "blocks.0.modulation",
        "blocks.0.norm3.weight",
        "blocks.0.ffn.2.weight",
        "head.head.weight",
        "head.modulation",
    } <= names


def test_rms_norm_in_the_input_s_precision() -> None:
    norm = RMSNorm(8, eps=1e-6)
    nn.init.normal_(norm.weight)
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    expected = x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected)
    assert norm(x.bfloat16()).dtype == torch.bfloat16


def test_conditions_of_some_latents(make_model: Model, make_conditions: MakeConditions) -> None:
    conditions = make_conditions(make_model(), LATENTS)
    part = conditions.latents(range(4, 7))
    assert torch.equal(part.talk, conditions.talk[:, 4:])
    assert torch.equal(part.listen, conditions.listen[:, 4:])
    assert part.reference is conditions.reference
