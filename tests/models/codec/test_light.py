"""The light codec: streaming equals whole, sessions do not mix, a still picture stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from streamavatar.config import CodecConfig, ModelConfig
from streamavatar.geometry import Geometry
from streamavatar.models.avatar import AvatarModel
from streamavatar.models.codec import DecoderState, LightCodec
from streamavatar.models.codec.light import warp

HEIGHT, WIDTH = 64, 96
LATENTS = 9


@pytest.fixture(scope="module")
def codec() -> LightCodec:
    """A codec whose decoder moves, masks and corrects, with statistics of its own."""
    torch.manual_seed(0)
    codec = LightCodec(
        CodecConfig(widths=(12, 8, 8), blocks=1), Geometry(height=HEIGHT, width=WIDTH, latent_channels=8)
    )
    generator = torch.Generator().manual_seed(1)
    for head in (codec.detail.flow, codec.detail.leave):
        head.weight.data = 0.1 * torch.randn(head.weight.shape, generator=generator)
    codec.synthesis.data *= 0.1
    codec.fit_scale(
        torch.randn(8, generator=generator),
        torch.rand(8, generator=generator) + 0.5,
        torch.rand(8, generator=generator) + 0.5,
    )
    return codec.eval().requires_grad_(False)


def picture(seed: int = 0, batch: int = 1) -> Tensor:
    """Smooth, as pictures are: on noise, the last bits of a flow would show."""
    coarse = torch.rand(batch, 3, 4, 6, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.8
    return torch.nn.functional.interpolate(coarse, (HEIGHT, WIDTH), mode="bicubic").clamp(-0.9, 0.9)


def latents(seed: int = 1, batch: int = 1, count: int = LATENTS) -> Tensor:
    return torch.randn(batch, 8, count, 4, 6, generator=torch.Generator().manual_seed(seed))


def in_pieces(codec: LightCodec, z: Tensor, state: DecoderState, plan: list[int]) -> Tensor:
    frames = []
    for part in z.split(plan, dim=2):
        out, state = codec.decode(part, state)
        frames.append(out)
    return torch.cat(frames, dim=2)


@st.composite
def plans(draw: st.DrawFn) -> list[int]:
    """LATENTS as a sum of positive chunks, in any order."""
    plan: list[int] = []
    while sum(plan) < LATENTS:
        plan.append(draw(st.integers(1, LATENTS - sum(plan))))
    return plan


@settings(max_examples=10)
@given(plan=plans())
def test_any_chunk_plan_equals_the_whole(codec: LightCodec, plan: list[int]) -> None:
    z = latents(batch=2)
    _, state = codec.open(picture(batch=2))
    whole, _ = codec.decode(z, state)
    assert whole.shape == (2, 3, 4 * LATENTS, HEIGHT, WIDTH)
    torch.testing.assert_close(in_pieces(codec, z, state, plan), whole, atol=2e-6, rtol=0)


def test_interleaved_sessions_equal_separate_ones(codec: LightCodec) -> None:
    clips = [latents(seed) for seed in (1, 2)]
    states = [codec.open(picture(seed))[1] for seed in (1, 2)]
    separate = [in_pieces(codec, z, state, [3, 3, 3]) for z, state in zip(clips, states, strict=True)]
    made: list[list[Tensor]] = [[], []]
    for start in range(0, LATENTS, 3):
        for session in (0, 1):
            out, states[session] = codec.decode(clips[session][:, :, start : start + 3], states[session])
            made[session].append(out)
    for session in (0, 1):
        assert torch.equal(torch.cat(made[session], dim=2), separate[session])
    assert not torch.equal(separate[0], separate[1])


def test_decode_leaves_its_state_alone(codec: LightCodec) -> None:
    _, state = codec.open(picture())
    before = state.previous.clone()
    first, after = codec.decode(latents(), state)
    assert torch.equal(state.previous, before)
    assert torch.equal(after.previous, latents()[:, :, -1])
    assert torch.equal(codec.decode(latents(), state)[0], first)


def test_the_latent_before_matters(codec: LightCodec) -> None:
    """Otherwise the tests of chunk plans would compare nothing."""
    _, state = codec.open(picture())
    z = latents(count=2)
    _, after = codec.decode(z[:, :, :1], state)
    assert not torch.equal(codec.decode(z[:, :, 1:], after)[0], codec.decode(z[:, :, 1:], state)[0])


def test_sessions_side_by_side_equal_single_ones(codec: LightCodec) -> None:
    _, state = codec.open(picture(batch=2))
    both, _ = codec.decode(latents(batch=2), state)
    for row in range(2):
        _, alone = codec.open(picture(batch=2)[row : row + 1])
        torch.testing.assert_close(
            codec.decode(latents(batch=2)[row : row + 1], alone)[0], both[row : row + 1], atol=2e-6, rtol=0
        )


# encoding ------------------------------------------------------------------------------------------


def test_encode_shapes_and_the_reference(codec: LightCodec) -> None:
    clip = torch.stack([picture(seed) for seed in range(9)], dim=2)
    z = codec.encode(clip)
    assert z.shape == (1, 8, 3, 4, 6)
    latent, state = codec.open(clip[:, :, 0])
    torch.testing.assert_close(latent, z[:, :, :1], atol=1e-5, rtol=0)
    assert torch.equal(state.reference, state.previous)


def test_a_latent_covers_its_own_four_frames(codec: LightCodec) -> None:
    clip = torch.stack([picture(seed) for seed in range(9)], dim=2)
    z = codec.encode(clip)
    for frame in range(9):
        other = clip.clone()
        other[:, :, frame] += 0.5
        changed = (codec.encode(other) - z).abs().amax((0, 1, 3, 4)) > 1e-4
        covering = next(k for k in range(3) if frame in codec.geometry.latent_frames(k))
        assert changed.tolist() == [k == covering for k in range(3)]


@pytest.mark.parametrize("frames", [2, 4, 8, 12])
def test_encode_refuses_other_numbers_of_frames(codec: LightCodec, frames: int) -> None:
    with pytest.raises(ValueError, match=f"1 \\+ 4n frames, got {frames}"):
        codec.encode(torch.zeros(1, 3, frames, HEIGHT, WIDTH))


def test_encode_refuses_parts_of_blocks(codec: LightCodec) -> None:
    with pytest.raises(RuntimeError):
        codec.encode(torch.zeros(1, 3, 1, HEIGHT + 8, WIDTH))


def test_an_orthonormal_linear_part_gives_back_what_it_spans(codec: LightCodec) -> None:
    """Encoding and the transposed map are inverse on the span of the components, whatever the scales."""
    fitted = LightCodec(codec.config, codec.geometry).requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    basis, _ = torch.linalg.qr(torch.randn(3 * 4 * 16 * 16, 8, generator=generator))
    fitted.fit_blocks(torch.randn(3 * 4 * 16 * 16, generator=generator) * 0.1, basis.t())
    fitted.fit_scale(torch.randn(8, generator=generator), torch.rand(8, generator=generator) + 0.5, torch.ones(8))
    fitted.detail.leave.bias[:] = torch.tensor([0.0, 0.0, 0.0, -30.0]).repeat_interleave(16).repeat(4)  # mask 0
    z = 0.3 * latents(count=3)
    _, state = fitted.open(picture())
    frames, _ = fitted.decode(z, state)
    assert frames.abs().max() < 1
    torch.testing.assert_close(fitted.encode(torch.cat((picture()[:, :, None], frames), dim=2))[:, :, 1:], z)


# the moving branch ---------------------------------------------------------------------------------


def test_a_still_picture_under_a_full_mask_stays(codec: LightCodec) -> None:
    still = LightCodec(codec.config, codec.geometry).requires_grad_(False)
    still.detail.leave.bias[:] = torch.tensor([0.0, 0.0, 0.0, 30.0]).repeat_interleave(16).repeat(4)
    latent, state = still.open(picture())
    frames, _ = still.decode(latent.expand(-1, -1, 3, -1, -1), state)
    torch.testing.assert_close(frames, picture()[:, :, None].expand(-1, -1, 12, -1, -1), atol=1e-5, rtol=0)


def test_no_flow_is_the_identity() -> None:
    moved = warp(picture(batch=2), torch.zeros(2, 4, 2, HEIGHT, WIDTH))
    torch.testing.assert_close(moved, picture(batch=2)[:, None].expand(-1, 4, -1, -1, -1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("right", "down"), [(3, 0), (0, 5), (-2, 4)])
def test_flow_says_where_to_look(right: int, down: int) -> None:
    flow = torch.zeros(1, 2, 2, HEIGHT, WIDTH)
    flow[:, 1, 0], flow[:, 1, 1] = right, down
    moved = warp(picture(), flow)
    torch.testing.assert_close(moved[:, 0], picture(), atol=1e-5, rtol=0)
    rows = (torch.arange(HEIGHT) + down).clamp(0, HEIGHT - 1)
    columns = (torch.arange(WIDTH) + right).clamp(0, WIDTH - 1)
    torch.testing.assert_close(moved[:, 1], picture()[:, :, rows][..., columns], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("mode", "low", "high"), [("bilinear", 0.69, 0.73), ("bicubic", 0.94, 1.0)])
def test_half_a_pixel_blurs_less_with_bicubic_sampling(
    mode: Literal["bilinear", "bicubic"], low: float, high: float
) -> None:
    stripes = torch.cos(torch.arange(WIDTH) * torch.pi / 2).expand(1, 1, HEIGHT, -1)  # four pixels a stripe
    flow = torch.zeros(1, 1, 2, HEIGHT, WIDTH)
    flow[:, :, 0] = 0.5
    inside = warp(stripes, flow, mode)[..., 4:-4]
    wanted = torch.cos((torch.arange(WIDTH) + 0.5) * torch.pi / 2)[4:-4]
    kept = (inside * wanted).sum() / (wanted.square().sum() * HEIGHT)  # from the middle between two pixels
    assert low < kept < high


def test_frames_stay_in_range(codec: LightCodec) -> None:
    _, state = codec.open(picture())
    frames, _ = codec.decode(100 * latents(), state)
    assert frames.abs().max() <= 1


def test_a_whole_model_decodes(make_model: Callable[..., AvatarModel], small: ModelConfig) -> None:
    model = make_model()
    latent, state = model.codec.open(picture())
    frames, _ = model.codec.decode(latent, state)
    assert frames.shape == (1, 3, 4, small.geometry.height, small.geometry.width)


def test_a_larger_picture_on_the_same_latent_grid() -> None:
    """Pooled encoder, one more decoder stage: latents of the half-sized clip, frames of the full size."""
    torch.manual_seed(0)
    small = Geometry(height=32, width=32, latent_channels=8)
    large = Geometry(height=64, width=64, spatial_stride=32, latent_channels=8)
    codec = LightCodec(CodecConfig(widths=(12, 8, 8, 4), blocks=1, pool=2), large)
    half = LightCodec(CodecConfig(widths=(12, 8, 8), blocks=1), small)
    half.load_state_dict({**half.state_dict(), **{k: v for k, v in codec.state_dict().items() if "detail" not in k}})
    clip = torch.rand(1, 3, 9, 64, 64) * 2 - 1
    latents = codec.encode(clip)
    torch.testing.assert_close(latents, half.encode(functional.avg_pool3d(clip, (1, 2, 2))))
    _, state = codec.open(clip[:, :, 0])
    frames, _ = codec.decode(latents[:, :, 1:], state)
    assert frames.shape == (1, 3, 8, 64, 64)
