"""Wan2.2's autoencoder: equal to diffusers', streaming equals whole, sessions do not mix, weights load by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from streamavatar.config import WanCodecConfig
from streamavatar.errors import UserError
from streamavatar.models.codec.names import from_wan, to_wan
from streamavatar.models.codec.wan import (
    UpBlock,
    WanCodec,
    WanState,
    _channels_last,
    _name_convolutions,
    average_down,
    duplicate_up,
)

FULL = WanCodecConfig()
SMALL = WanCodecConfig(z_dim=6, encoder_dim=8, decoder_dim=12, means=FULL.means[:6], stds=FULL.stds[:6])
LATENTS = 5
HEIGHT, WIDTH = 32, 48


def drawn(codec: WanCodec, seed: int = 0) -> dict[str, Tensor]:
    """Weights that keep the size of what passes through, no zeros and no ones among them."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, value in codec.state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith("gamma"):
            weights[name] = 1 + 0.1 * noise
        else:
            weights[name] = 0.1 * noise if value.ndim == 1 else noise / value[0].numel() ** 0.5
    return weights


def small(dtype: torch.dtype = torch.float32) -> WanCodec:
    codec = WanCodec(SMALL)
    codec.load(drawn(codec))
    return codec.to(dtype).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def codec() -> WanCodec:
    return small()


@pytest.fixture(scope="module")
def exact() -> WanCodec:
    """In float64: the rounding of float32 depends on how many frames a convolution is given."""
    return small(torch.float64)


def clip(seed: int = 0, batch: int = 1, latents: int = LATENTS) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, 4 * latents - 3, HEIGHT, WIDTH, generator=generator) * 2 - 1


def some_latents(seed: int = 1, batch: int = 1, count: int = LATENTS) -> Tensor:
    return torch.randn(batch, 6, count, 2, 3, generator=torch.Generator().manual_seed(seed))


plans = st.lists(st.integers(1, 3), min_size=1, max_size=4)


# diffusers -----------------------------------------------------------------------------------------


def reference(config: WanCodecConfig) -> Any:
    diffusers = pytest.importorskip("diffusers")
    return diffusers.AutoencoderKLWan(
        base_dim=config.encoder_dim,
        decoder_base_dim=config.decoder_dim,
        z_dim=config.z_dim,
        dim_mult=list(config.dim_mult),
        num_res_blocks=config.res_blocks,
        temperal_downsample=list(config.temporal_down),
        is_residual=True,
        in_channels=3 * config.patch**2,
        out_channels=3 * config.patch**2,
        patch_size=config.patch,
        latents_mean=list(config.means),
        latents_std=list(config.stds),
    )


@pytest.mark.parametrize("batch", [1, 2])
def test_equals_diffusers(codec: WanCodec, batch: int) -> None:
    theirs = reference(SMALL).eval().requires_grad_(False)
    theirs.load_state_dict(codec.state_dict())
    means, stds = (torch.tensor(v)[None, :, None, None, None] for v in (SMALL.means, SMALL.stds))
    frames = clip(batch=batch)
    raw = theirs.encode(frames).latent_dist.mean
    latents = codec.encode(frames)
    torch.testing.assert_close(latents, (raw - means) / stds, rtol=0, atol=1e-5)
    assert latents.std() > 0.1
    for z in (latents, some_latents(batch=batch)):
        shown = codec.decode_clip(z)
        torch.testing.assert_close(shown, theirs.decode(z * stds + means).sample, rtol=0, atol=1e-5)
        assert shown.std() > 0.1
        assert (shown.abs() < 1).float().mean() > 0.5  # or else clamping would hide everything


def test_names_and_shapes_are_diffusers() -> None:
    with torch.device("meta"):
        ours, theirs = WanCodec(FULL), reference(FULL)
    shapes = [{name: tuple(value.shape) for name, value in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert sum(p.numel() for p in ours.parameters()) == 704_688_668


# Wan's names ---------------------------------------------------------------------------------------


def wan_table() -> dict[str, tuple[int, ...]]:
    """Names and shapes of Wan2.2_VAE.pth, after the nesting of modules in Wan2.2's wan/modules/vae2_2.py."""
    table: dict[str, tuple[int, ...]] = {}

    def conv(name: str, outputs: int, inputs: int, *kernel: int) -> None:
        table[f"{name}.weight"], table[f"{name}.bias"] = (outputs, inputs, *kernel), (outputs,)

    def residual(name: str, inputs: int, outputs: int) -> None:
        for norm, index, width in ((0, 2, inputs), (3, 6, outputs)):
            table[f"{name}.residual.{norm}.gamma"] = (width, 1, 1, 1)
            conv(f"{name}.residual.{index}", outputs, width, 3, 3, 3)
        if inputs != outputs:
            conv(f"{name}.shortcut", outputs, inputs, 1, 1, 1)

    def ends(side: str, first: tuple[int, int], middle: int, last: tuple[int, int]) -> None:
        conv(f"{side}.conv1", *first, 3, 3, 3)
        residual(f"{side}.middle.0", middle, middle)
        residual(f"{side}.middle.2", middle, middle)
        table[f"{side}.middle.1.norm.gamma"] = (middle, 1, 1)
        conv(f"{side}.middle.1.to_qkv", 3 * middle, middle, 1, 1)
        conv(f"{side}.middle.1.proj", middle, middle, 1, 1)
        table[f"{side}.head.0.gamma"] = (last[1], 1, 1, 1)
        conv(f"{side}.head.2", *last, 3, 3, 3)

    conv("conv1", 96, 96, 1, 1, 1)
    conv("conv2", 48, 48, 1, 1, 1)
    ends("encoder", (160, 12), 640, (96, 640))
    ends("decoder", (1024, 48), 1024, (12, 256))
    down = ((160, 160, False), (160, 320, True), (320, 640, True), (640, 640, None))
    up = ((1024, 1024, True), (1024, 1024, True), (1024, 512, False), (512, 256, None))
    for side, way, blocks, levels in (("encoder", "down", 2, down), ("decoder", "up", 3, up)):
        for level, (inputs, outputs, temporal) in enumerate(levels):
            name = f"{side}.{way}samples.{level}.{way}samples"
            for index in range(blocks):
                residual(f"{name}.{index}", outputs if index else inputs, outputs)
            if temporal is not None:
                conv(f"{name}.{blocks}.resample.1", outputs, outputs, 3, 3)
            if temporal:
                conv(f"{name}.{blocks}.time_conv", outputs * (1 if way == "down" else 2), outputs, 3, 1, 1)
    return table


def test_wan_names() -> None:
    with torch.device("meta"):
        ours = WanCodec(FULL).state_dict()
    assert {name: tuple(value.shape) for name, value in to_wan(ours, 2).items()} == wan_table()
    there_and_back = from_wan(to_wan(ours, 2), ours, 2)
    assert list(there_and_back) == list(ours)
    assert all(there_and_back[name] is ours[name] for name in ours)


def test_loads_either_names(codec: WanCodec) -> None:
    other = WanCodec(SMALL)
    other.load(to_wan(codec.state_dict(), 2))
    for name, value in other.state_dict().items():
        assert torch.equal(value, codec.state_dict()[name]), name


@pytest.mark.parametrize("wan", [False, True])
def test_load_says_what_is_wrong(codec: WanCodec, wan: bool) -> None:
    def tried(weights: dict[str, Tensor]) -> str:
        with pytest.raises(UserError) as error:
            WanCodec(SMALL).load(to_wan(weights, 2) if wan else weights, "vae.pth")
        return str(error.value)

    good = codec.state_dict()
    message = tried({**good, "decoder.conv_in.weight": torch.zeros(48, 5, 3, 3, 3)})
    assert message.startswith("vae.pth: decoder.conv_in.weight has shape (48, 5, 3, 3, 3)")
    assert "(48, 6, 3, 3, 3)" in message
    fewer = {name: value for name, value in good.items() if name != "quant_conv.bias"}
    assert "is missing 1 tensor: quant_conv.bias" in tried(fewer)
    assert "has unexpected 1 tensor: extra" in tried({**good, "extra": torch.zeros(1)})


def test_config_is_checked() -> None:
    with pytest.raises(ValueError, match="as many means"):
        WanCodecConfig(z_dim=4)
    with pytest.raises(ValueError, match="need 2 temporal_down"):
        WanCodecConfig(dim_mult=(1, 2, 4))
    assert (FULL.temporal_stride, FULL.spatial_stride) == (4, 16)


# streaming -----------------------------------------------------------------------------------------


def decoded(codec: WanCodec, z: Tensor, state: WanState, plan: list[int]) -> tuple[Tensor, WanState]:
    frames = []
    for part in z.split(plan, dim=2):
        out, state = codec.decode(part, state)
        frames.append(out)
    return torch.cat(frames, dim=2), state


@settings(max_examples=6)
@given(plan=plans, seed=st.integers(0, 100))
def test_any_plan_decodes_the_same(exact: WanCodec, plan: list[int], seed: int) -> None:
    latent, state = exact.open(clip(seed)[:, :, 0])
    z = some_latents(seed, count=sum(plan))
    frames, _ = decoded(exact, z, state, plan)
    whole = exact.decode_clip(torch.cat((latent, z), dim=2), at_once=100)
    assert frames.shape[2] == 4 * sum(plan)
    torch.testing.assert_close(frames, whole[:, :, 1:], rtol=0, atol=1e-6)


@settings(max_examples=5)
@given(plan=plans)
def test_any_plan_encodes_the_same(exact: WanCodec, plan: list[int]) -> None:
    frames = clip(latents=1 + sum(plan))
    latent, state = exact.encode_start(frames[:, :, :1])
    latents = [latent]
    for part in frames[:, :, 1:].split([4 * n for n in plan], dim=2):
        latent, state = exact.encode_more(part, state)
        latents.append(latent)
    torch.testing.assert_close(torch.cat(latents, dim=2), exact.encode(frames, at_once=100), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_sessions_do_not_mix(dtype: torch.dtype, bound: float) -> None:
    codec = small(dtype)
    states = [codec.open(clip(seed)[:, :, 0])[1] for seed in (1, 2)]
    latents = [some_latents(seed) for seed in (3, 4)]
    alone = [decoded(codec, z, state, [LATENTS])[0] for z, state in zip(latents, states, strict=True)]
    shown: list[list[Tensor]] = [[], []]
    for first in range(LATENTS):
        for session in (0, 1):
            out, states[session] = codec.decode(latents[session][:, :, first : first + 1], states[session])
            shown[session].append(out)
    for frames, expected in zip(shown, alone, strict=True):
        torch.testing.assert_close(torch.cat(frames, dim=2), expected, rtol=0, atol=bound)


def test_state_is_a_value(codec: WanCodec) -> None:
    """A pass leaves the state it was given alone; states hold no more than they show and do not grow."""
    _, state = codec.open(clip()[:, :, 0])
    before = {name: value.clone() for name, value in state.layers.items()}
    first, later = codec.decode(some_latents(), state)
    again, _ = codec.decode(some_latents(), state)
    assert torch.equal(first, again)
    assert all(torch.equal(value, before[name]) for name, value in state.layers.items())
    assert {n: v.shape for n, v in later.layers.items()} == {n: v.shape for n, v in state.layers.items()}
    assert all(v.untyped_storage().nbytes() == v.numel() * 4 for v in later.layers.values())
    assert set(state.layers) == {
        name.removesuffix(".weight")
        for name, value in codec.state_dict().items()
        if name.startswith("decoder.") and value.ndim == 5 and value.shape[2] == 3
    }


def test_shapes_and_ranges(codec: WanCodec) -> None:
    latent, state = codec.open(clip(batch=2)[:, :, 0])
    assert latent.shape == (2, 6, 1, 2, 3)
    frames, _ = codec.decode(100 * some_latents(batch=2, count=3), state)
    assert frames.shape == (2, 3, 12, HEIGHT, WIDTH)
    assert frames.abs().max() == 1
    assert codec.decode_start(latent)[0].shape == (2, 3, 1, HEIGHT, WIDTH)
    for wrong in (clip()[:, :, :2], clip()[:, :, :1, :20]):
        with pytest.raises(ValueError, match="one frame"):
            codec.encode_start(wrong)
    with pytest.raises(ValueError, match="multiples of 4"):
        codec.encode(clip()[:, :, :4])
    with pytest.raises(ValueError, match="one latent"):
        codec.decode_start(some_latents(count=2))


# the rest ------------------------------------------------------------------------------------------


def test_bfloat16(codec: WanCodec) -> None:
    rough = small(torch.bfloat16)
    frames = clip()
    latents = codec.encode(frames)
    coarse = rough.encode(frames)
    assert coarse.dtype == torch.float32
    assert (coarse - latents).square().mean().sqrt() < 0.03 * latents.std()
    fine, shown = codec.decode_clip(latents), rough.decode_clip(latents)
    assert shown.dtype == torch.float32
    assert (shown - fine).square().mean().sqrt() < 0.03 * fine.std()
    _, state = rough.open(frames[:, :, 0])
    assert {value.dtype for value in state.layers.values()} == {torch.bfloat16}
    frames, _ = rough.decode(latents[:, :, 1:], state)
    assert (frames - fine[:, :, 1:]).square().mean().sqrt() < 0.03 * fine.std()


def test_memory_format_does_not_matter(codec: WanCodec) -> None:
    other = small().channels_last()
    assert other.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last_3d)
    frames, z = clip(batch=2), some_latents(batch=2)
    last = torch.channels_last_3d
    encoded = other.encode(frames.contiguous(memory_format=last))
    torch.testing.assert_close(encoded, codec.encode(frames), rtol=0, atol=1e-5)
    shown = other.decode_clip(z.contiguous(memory_format=last), at_once=2)
    torch.testing.assert_close(shown, codec.decode_clip(z, at_once=2), rtol=0, atol=1e-5)


def test_shortcuts_undo_each_other() -> None:
    x = torch.randn(1, 4, 3, 2, 5, generator=torch.Generator().manual_seed(0))
    up = duplicate_up(x, 2, 2, 2)
    assert up.shape == (1, 2, 6, 4, 10)
    torch.testing.assert_close(average_down(up, 4, 2, 2), x)


def test_gradients_reach_latents_and_weights() -> None:
    codec = small().requires_grad_(True)
    z = some_latents(count=3).requires_grad_()
    codec.decode_clip(z).square().mean().backward()
    assert z.grad is not None
    assert (z.grad.abs().amax(dim=(0, 1, 3, 4)) > 0).all()
    assert all(p.grad is not None for p in codec.decoder.parameters())


def test_statistics_survive_inference_mode(codec: WanCodec) -> None:
    """What is kept per device was made under inference mode here, and must still take part in gradients."""
    from streamavatar.models.codec.wan import _per_channel

    _per_channel.cache_clear()
    with torch.inference_mode():
        codec.decode_start(some_latents(count=1))
    z = some_latents(count=1).requires_grad_()
    codec.decode_start(z)[0].sum().backward()
    assert z.grad is not None


def test_norms_write_where_convolutions_read(exact: WanCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no gradient is wanted, nothing is joined to its history but before the first convolution and those of time;
    where one is, the result is the same. In float64, whose rounding leaves no room for a difference."""
    joined: list[int] = []
    cat = torch.cat

    def counted(tensors: list[Tensor], dim: int = 0) -> Tensor:
        joined.append(dim)
        return cat(tensors, dim)

    z = some_latents(count=4).double()
    _, state = exact.decode_start(z[:, :, :1])
    monkeypatch.setattr(torch, "cat", counted)
    plain, history = exact.decode(z[:, :, 1:], state)
    assert joined == [2] * (1 + sum(exact.config.temporal_down))
    joined.clear()
    differentiable, other = exact.decode(z[:, :, 1:].requires_grad_(), state)
    assert differentiable.requires_grad
    assert len(joined) > 10
    torch.testing.assert_close(differentiable, plain, atol=1e-6, rtol=0)  # frames are float32 whatever computes them
    assert {value.dtype for value in history.layers.values()} == {torch.float64}
    for name, value in history.layers.items():
        torch.testing.assert_close(other.layers[name], value, atol=1e-10, rtol=0)


def test_the_memory_format_is_kept_on_the_way() -> None:
    """Channels-last pictures stay so through every change of resolution: nothing is laid out anew for a convolution."""
    x = torch.randn(1, 8, 2, 3, 4).to(memory_format=torch.channels_last_3d)
    for channels, time in ((8, 2), (4, 1)):
        up = duplicate_up(x, channels, time, 2)
        assert up.is_contiguous(memory_format=torch.channels_last_3d)
        assert torch.equal(up, duplicate_up(x.contiguous(), channels, time, 2))
    level = UpBlock(8, 8, 1, 2, 2, reads=8).requires_grad_(False)
    _name_convolutions(level)
    _channels_last(level)
    _, past = level(x[:, :, :1], {})
    y, _ = level(x, past)
    assert y.is_contiguous(memory_format=torch.channels_last_3d)
