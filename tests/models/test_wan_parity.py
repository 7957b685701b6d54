"""Our transformer is Wan2.2's: diffusers' WanTransformer3DModel with the same weights gives the same output.

The audio attention is fresh and therefore silent; text and a timestep per token (Wan2.2-TI2V) are on.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamavatar.config import TransformerConfig
from streamavatar.models.transformer import Conditions, Transformer, timestep_embedding
from streamavatar.models.weights import from_diffusers

diffusers = pytest.importorskip("diffusers")

CHANNELS, FFN, LAYERS, FREQUENCIES, TEXT, AUDIO = 8, 160, 3, 64, 20, 12

SIZES = {
    "one latent": (1, 1, 4, 4, 5),
    "batch, full text": (2, 4, 4, 6, 512),
    "batch, tall": (2, 7, 10, 6, 9),
    "long, wide": (1, 21, 8, 12, 30),
}
"""Batch, latents, rows, columns, text tokens."""


class WanTimes(nn.Module):
    """Wan's own sinusoids, in float64; diffusers' are float32 and off by 5e-5 at timestep 1000."""

    def forward(self, timesteps: Tensor) -> Tensor:
        half = FREQUENCIES // 2
        angles = timesteps.double()[:, None] * 10000 ** (-torch.arange(half).double() / half)
        return torch.cat((angles.cos(), angles.sin()), -1).float()


@torch.no_grad()
def draw(module: nn.Module) -> None:
    """Weights of which each one matters: gains off 1, biases off 0, modulation as large as a trained one."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "scale_shift_table" in name:
            parameter.copy_(0.3 * noise)
        elif parameter.ndim > 1:
            parameter.copy_(noise / parameter[0].numel() ** 0.5)
        else:
            parameter.add_(0.1 * noise)


def build(dim: int, heads: int, eps: float = 1e-6) -> tuple[Transformer, Any]:
    """Ours and theirs with the same weights."""
    theirs = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=heads,
        attention_head_dim=dim // heads,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=TEXT,
        freq_dim=FREQUENCIES,
        ffn_dim=FFN,
        num_layers=LAYERS,
        cross_attn_norm=True,
        eps=eps,
    ).eval()
    draw(theirs)
    config = TransformerConfig(
        dim=dim,
        ffn_dim=FFN,
        heads=heads,
        layers=LAYERS,
        latent_channels=CHANNELS,
        freq_dim=FREQUENCIES,
        text_dim=TEXT,
        audio_dim=AUDIO,
        eps=eps,
    )
    ours = Transformer(config).eval()
    state = {from_diffusers(name): value for name, value in theirs.state_dict().items()}
    assert None not in state
    result = ours.load_state_dict(state, strict=False)
    assert result.unexpected_keys == []
    assert all("audio" in name or "talk" in name or "listen" in name for name in result.missing_keys)
    return ours, theirs


def inputs(batch: int, latents: int, rows: int, columns: int, words: int) -> tuple[Tensor, Tensor, Conditions]:
    """Latents, timesteps per latent with a clean reference, and conditions with audio that must not matter."""
    generator = torch.Generator().manual_seed(1)

    def randn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    x = randn(batch, CHANNELS, latents, rows, columns)
    timesteps = 1000 * torch.rand(batch, latents, generator=generator)
    timesteps[:, 0] = 0
    talk, listen = randn(batch, latents, 3, AUDIO), randn(batch, latents, 3, AUDIO)
    return x, timesteps, Conditions(talk, listen, x[:, :, :1], randn(batch, words, TEXT))


@torch.no_grad()
def difference(ours: Transformer, theirs: Any, size: tuple[int, ...], timesteps: Tensor | None = None) -> float:
    """The largest difference of outputs whose spread is about 1."""
    x, drawn, conditions = inputs(*size)
    timesteps = drawn if timesteps is None else timesteps
    got = ours(x, timesteps, conditions)
    per_token = timesteps.repeat_interleave(size[2] * size[3] // 4, dim=1)
    want = theirs(x, per_token, conditions.text).sample
    assert 0.5 < float(want.std()) < 3
    return float((got - want).abs().max())


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize(("dim", "heads"), [(96, 4), (128, 4), (256, 2)])  # axes 8 8 8, 12 10 10, and Wan's 44 42 42
def test_same_output(dim: int, heads: int, size: tuple[int, ...]) -> None:
    ours, theirs = build(dim, heads)
    assert difference(ours, theirs, size) < 1e-4  # what diffusers' float32 sinusoids allow
    theirs.condition_embedder.timesteps_proj = WanTimes()
    assert difference(ours, theirs, size) < 1e-5


def test_same_output_where_diffusers_sinusoids_are_exact() -> None:
    ours, theirs = build(128, 4)
    size = SIZES["batch, tall"]
    assert difference(ours, theirs, size, torch.zeros(size[:2])) < 1e-5


def test_sinusoids_are_wan_s_and_diffusers_are_off() -> None:
    timesteps = torch.linspace(0, 1000, 97)
    exact = WanTimes()(timesteps)
    assert torch.equal(timestep_embedding(timesteps, FREQUENCIES), exact)
    theirs = build(96, 4)[1].condition_embedder.timesteps_proj(timesteps)
    assert 1e-5 < float((theirs - exact).abs().max()) < 1e-4


def test_eps_is_used_where_wan_uses_it() -> None:
    ours, theirs = build(96, 4, eps=0.1)
    theirs.condition_embedder.timesteps_proj = WanTimes()
    assert difference(ours, theirs, SIZES["batch, tall"]) < 1e-5


def test_differences_are_noticed() -> None:
    """The comparison has teeth: it sees a changed angle, a swapped norm and audio that speaks."""
    ours, theirs = build(96, 4)
    theirs.condition_embedder.timesteps_proj = WanTimes()
    size = SIZES["batch, tall"]
    with torch.no_grad():
        for tensor in (ours.blocks[1].norm3.weight, ours.blocks[2].self_attn.norm_k.weight, ours.head.modulation):
            kept = tensor.clone()
            tensor.mul_(1.01)
            assert difference(ours, theirs, size) > 1e-4
            tensor.copy_(kept)
        assert difference(ours, theirs, size) < 1e-5
        ours.blocks[0].talk_attn.o.weight.normal_(std=0.01)
        assert difference(ours, theirs, size) > 1e-4


def test_bfloat16_is_as_near_as_diffusers() -> None:
    """Against the float32 result; diffusers keeps time embedding, norms and modulation in float32."""
    ours, theirs = build(256, 2)
    theirs.condition_embedder.timesteps_proj = WanTimes()
    x, timesteps, conditions = inputs(*SIZES["batch, tall"])
    per_token = timesteps.repeat_interleave(15, dim=1)
    with torch.no_grad():
        exact = ours(x, timesteps, conditions)
        low = Conditions(
            *(v.bfloat16() for v in (conditions.talk, conditions.listen, conditions.reference, conditions.text))
        )
        got = ours.bfloat16()(x.bfloat16(), timesteps, low).float()
        theirs.bfloat16()
        for name, parameter in theirs.named_parameters():
            if any(part in name for part in theirs._keep_in_fp32_modules):
                parameter.data = parameter.data.float()
        want = theirs(x.bfloat16(), per_token, low.text).sample.float()

    def error(y: Tensor) -> float:
        return float((y - exact).square().mean().sqrt() / exact.std())

    assert error(got) < 1.5 * error(want) < 0.02
