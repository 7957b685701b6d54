"""The light codec of TAEHV's shape: names and shapes of taew2_2.pth, equal to a frame-by-frame twin, streaming."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from streamavatar.config import TaehvConfig
from streamavatar.errors import UserError
from streamavatar.models.codec.taehv import Taehv

SMALL = TaehvConfig(latent_channels=6, encoder_width=8, decoder_widths=(12, 10, 8, 6))
HEIGHT, WIDTH = 32, 48
LATENTS = 5


def drawn(codec: Taehv, seed: int = 0) -> dict[str, Tensor]:
    """Weights that keep the size of what passes through."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, generator=generator) * (0.1 if value.ndim == 1 else value[0].numel() ** -0.5)
        for name, value in codec.state_dict().items()
    }


def small(dtype: torch.dtype = torch.float32) -> Taehv:
    codec = Taehv(SMALL)
    weights = drawn(codec)
    weights["decoder.22.bias"] = weights["decoder.22.bias"] + 0.5  # pictures are 0..1 inside
    codec.load(weights)
    return codec.to(dtype).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def codec() -> Taehv:
    return small()


@pytest.fixture(scope="module")
def exact() -> Taehv:
    """In float64: the rounding of float32 depends on how many frames a convolution is given."""
    return small(torch.float64)


def clip(seed: int = 0, batch: int = 1, latents: int = LATENTS) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, 4 * latents - 3, HEIGHT, WIDTH, generator=generator) * 2 - 1


def some_latents(seed: int = 1, batch: int = 1, count: int = LATENTS) -> Tensor:
    return torch.randn(batch, 6, count, 2, 3, generator=torch.Generator().manual_seed(seed))


# names ---------------------------------------------------------------------------------------------


def memory(index: int, width: int) -> dict[str, tuple[int, ...]]:
    table: dict[str, tuple[int, ...]] = {}
    for layer, inputs in ((0, 2 * width), (2, width), (4, width)):
        table[f"{index}.conv.{layer}.weight"] = (width, inputs, 3, 3)
        table[f"{index}.conv.{layer}.bias"] = (width,)
    return table


def taew2_2() -> dict[str, tuple[int, ...]]:
    """Names and shapes of taew2_2.pth, counted off taehv.py's `TAEHV(patch_size=2, latent_channels=48)`."""
    encoder = {"0.weight": (64, 12, 3, 3), "0.bias": (64,), "17.weight": (48, 64, 3, 3), "17.bias": (48,)}
    encoder |= {"2.conv.weight": (64, 128, 1, 1), "7.conv.weight": (64, 128, 1, 1), "12.conv.weight": (64, 64, 1, 1)}
    encoder |= {f"{index}.weight": (64, 64, 3, 3) for index in (3, 8, 13)}
    for index in (4, 5, 6, 9, 10, 11, 14, 15, 16):
        encoder |= memory(index, 64)
    decoder = {"1.weight": (256, 48, 3, 3), "1.bias": (256,), "22.weight": (12, 64, 3, 3), "22.bias": (12,)}
    decoder |= {
        "7.conv.weight": (256, 256, 1, 1),
        "13.conv.weight": (256, 128, 1, 1),
        "19.conv.weight": (128, 64, 1, 1),
    }
    decoder |= {"8.weight": (128, 256, 3, 3), "14.weight": (64, 128, 3, 3), "20.weight": (64, 64, 3, 3)}
    for index, width in ((3, 256), (4, 256), (5, 256), (9, 128), (10, 128), (11, 128), (15, 64), (16, 64), (17, 64)):
        decoder |= memory(index, width)
    both = (("encoder", encoder), ("decoder", decoder))
    return {f"{side}.{name}": shape for side, table in both for name, shape in table.items()}


def test_names_and_shapes() -> None:
    with torch.device("meta"):
        codec = Taehv(TaehvConfig())
    assert {name: tuple(value.shape) for name, value in codec.state_dict().items()} == taew2_2()
    assert (codec.config.temporal_stride, codec.config.spatial_stride) == (4, 16)


def test_load(codec: Taehv) -> None:
    good = codec.state_dict()
    with pytest.raises(UserError, match=r"decoder\.1\.weight has shape \(12, 5, 3, 3\).*\(12, 6, 3, 3\)"):
        Taehv(SMALL).load({**good, "decoder.1.weight": torch.zeros(12, 5, 3, 3)})
    with pytest.raises(UserError, match=r"is missing 1 tensor: encoder\.0\.bias"):
        Taehv(SMALL).load({name: value for name, value in good.items() if name != "encoder.0.bias"})
    # A checkpoint that grows time where we do not: its last frame's rows, as in the reference's patch_tgrow_layers.
    name, other = "decoder.7.conv.weight", Taehv(SMALL)
    other.load({**good, name: torch.cat((torch.zeros_like(good[name]), good[name]))})
    assert torch.equal(other.state_dict()[name], good[name])


def test_config_is_checked() -> None:
    with pytest.raises(ValueError, match="as often"):
        TaehvConfig(decoder_time=(True, True, True))


# a twin that goes frame by frame -------------------------------------------------------------------


def twin(weights: dict[str, Tensor], side: str, frames: list[Tensor]) -> list[Tensor]:
    """A whole side of the reference, layer after layer over lists of frames, told by the names of the weights."""
    w = {name.removeprefix(f"{side}."): value for name, value in weights.items() if name.startswith(side)}

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = w[f"{name}.weight"]
        return functional.conv2d(x, weight, w.get(f"{name}.bias"), stride, weight.shape[-1] // 2)

    def block(x: Tensor, past: Tensor, i: int) -> Tensor:
        h = conv(torch.cat((x, past), dim=1), f"{i}.conv.0").relu()
        return (conv(conv(h, f"{i}.conv.2").relu(), f"{i}.conv.4") + x).relu()

    def blocks(xs: list[Tensor], first: int) -> list[Tensor]:
        for i in range(first, first + 3):
            xs = [block(x, past, i) for x, past in zip(xs, [torch.zeros_like(xs[0]), *xs[:-1]], strict=True)]
        return xs

    if side == "encoder":
        xs = [conv(x, "0").relu() for x in frames]
        for i in (2, 7, 12):
            step = w[f"{i}.conv.weight"].shape[1] // w[f"{i}.conv.weight"].shape[0]
            xs = [conv(torch.cat(xs[t : t + step], dim=1), f"{i}.conv") for t in range(0, len(xs), step)]
            xs = blocks([conv(x, str(i + 1), stride=2) for x in xs], i + 2)
        return [conv(x, "17") for x in xs]
    xs = [conv(torch.tanh(x / 3) * 3, "1").relu() for x in frames]
    for i in (3, 9, 15):
        wide = [conv(functional.interpolate(x, scale_factor=2), f"{i + 4}.conv") for x in blocks(xs, i)]
        width = w[f"{i + 4}.conv.weight"].shape[1]
        xs = [conv(part, str(i + 5)) for x in wide for part in x.split(width, dim=1)]
    return [conv(x.relu(), "22") for x in xs]


@pytest.mark.parametrize("batch", [1, 2])
def test_equals_twin(codec: Taehv, batch: int) -> None:
    weights = dict(codec.state_dict())
    z = some_latents(batch=batch)
    raw = twin(weights, "decoder", list(z.unbind(2)))
    assert len(raw) == 4 * LATENTS
    expected = torch.stack([functional.pixel_shuffle(x, 2).clamp(0, 1) for x in raw[3:]], dim=2) * 2 - 1
    shown = codec.decode_clip(z)
    torch.testing.assert_close(shown, expected, rtol=0, atol=1e-5)
    assert shown.std() > 0.1
    assert (shown.abs() < 1).float().mean() > 0.5

    frames = clip(batch=batch)
    filled = [*frames.unbind(2), *([frames[:, :, -1]] * 3)]
    latents = twin(weights, "encoder", [functional.pixel_unshuffle((x + 1) / 2, 2) for x in filled])
    torch.testing.assert_close(codec.encode(frames), torch.stack(latents, dim=2), rtol=0, atol=1e-5)


# streaming -----------------------------------------------------------------------------------------


@settings(max_examples=10)
@given(plan=st.lists(st.integers(1, 4), min_size=1, max_size=5), seed=st.integers(0, 100))
def test_any_plan_decodes_the_same(exact: Taehv, plan: list[int], seed: int) -> None:
    latent, state = exact.open(clip(seed)[:, :, 0])
    z = some_latents(seed, count=sum(plan))
    frames = []
    for part in z.split(plan, dim=2):
        out, state = exact.decode(part, state)
        assert out.shape == (1, 3, 4 * part.shape[2], HEIGHT, WIDTH)
        frames.append(out)
    whole = exact.decode_clip(torch.cat((latent, z), dim=2))
    assert whole.shape[2] == 1 + 4 * sum(plan)
    torch.testing.assert_close(torch.cat(frames, dim=2), whole[:, :, 1:], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_sessions_do_not_mix(dtype: torch.dtype, bound: float) -> None:
    codec = small(dtype)
    states = [codec.open(clip(seed)[:, :, 0])[1] for seed in (1, 2)]
    latents = [some_latents(seed) for seed in (3, 4)]
    alone = [codec.decode(z, state)[0] for z, state in zip(latents, states, strict=True)]
    shown: list[list[Tensor]] = [[], []]
    for first in range(LATENTS):
        for session in (0, 1):
            out, states[session] = codec.decode(latents[session][:, :, first : first + 1], states[session])
            shown[session].append(out)
    for frames, expected in zip(shown, alone, strict=True):
        torch.testing.assert_close(torch.cat(frames, dim=2), expected, rtol=0, atol=bound)


def test_state_is_a_value(codec: Taehv) -> None:
    _, state = codec.decode_start(some_latents(count=1))
    before = {name: value.clone() for name, value in state.layers.items()}
    first, later = codec.decode(some_latents(), state)
    assert torch.equal(first, codec.decode(some_latents(), state)[0])
    assert all(torch.equal(value, before[name]) for name, value in state.layers.items())
    assert {n: v.shape for n, v in later.layers.items()} == {n: v.shape for n, v in state.layers.items()}
    assert all(v.untyped_storage().nbytes() == v.numel() * 4 for v in later.layers.values())
    assert set(state.layers) == {"3", "4", "5", "9", "10", "11", "15", "16", "17"}


def test_shapes_and_ranges(codec: Taehv) -> None:
    latent, state = codec.open(clip(batch=2)[:, :, 0])
    assert latent.shape == (2, 6, 1, 2, 3)
    assert torch.equal(codec.decode_start(latent)[0], codec.decode_clip(latent))
    frames, _ = codec.decode(100 * some_latents(batch=2, count=3), state)
    assert frames.shape == (2, 3, 12, HEIGHT, WIDTH)
    assert (frames.min() >= -1) & (frames.max() <= 1)
    for wrong in (clip()[:, :, :4], clip()[:, :, :1, :20]):
        with pytest.raises(ValueError, match="1 \\+ 4n frames"):
            codec.encode(wrong)
    with pytest.raises(ValueError, match="one latent"):
        codec.decode_start(some_latents(count=2))


def test_bfloat16(codec: Taehv) -> None:
    rough = small(torch.bfloat16)
    latents = codec.encode(clip())
    coarse = rough.encode(clip())
    assert coarse.dtype == torch.float32
    assert (coarse - latents).square().mean().sqrt() < 0.03 * latents.std()
    fine, shown = codec.decode_clip(some_latents()), rough.decode_clip(some_latents())
    assert shown.dtype == torch.float32
    assert (shown - fine).square().mean().sqrt() < 0.03 * fine.std()
