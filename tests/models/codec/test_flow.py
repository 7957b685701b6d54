"""The flow codec: closed-form maps move pictures, streaming equals whole, sessions do not mix."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from streamavatar.config import FlowCodecConfig, ModelConfig, TransformerConfig
from streamavatar.data.flow import flow_to_reference, motion_of
from streamavatar.data.prepare import Footage
from streamavatar.draws import Draws
from streamavatar.geometry import Geometry
from streamavatar.models.avatar import AvatarModel
from streamavatar.models.codec.flow import RIM, FlowCodec, Motion
from streamavatar.training.methods.codec import FlowDecoderMethod, fit_flow, to_unit

SIZE, LATENTS = 64, 6
ROUNDING = 2e-5  # of a flow, times the steepness of these textures
GEOMETRY = Geometry(height=SIZE, width=SIZE, latent_channels=24)
CONFIG = FlowCodecConfig(appearance=6, flow=10, widths=(12, 8, 8), blocks=1)


def swaying(seed: int) -> np.ndarray:
    """A textured picture that sways by some pixels, with a spot that opens and closes: uint8 [F, H, W, 3]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 18, 18, generator=generator)
    large = functional.interpolate(coarse, (96, 96), mode="bicubic").clamp(0, 1)[0]
    frames = []
    for t in range(1 + 4 * LATENTS):
        dx, dy = round(4 * np.sin(t / 4)), round(3 * np.sin(t / 5))
        frame = large[:, 16 + dy : 16 + dy + SIZE, 16 + dx : 16 + dx + SIZE].clone()
        half = abs(round(3 * np.sin(t / 2)))
        if half:
            frame[:, 40 - dy - half : 40 - dy + half, 26 - dx : 38 - dx] = 0.05
        frames.append(frame.permute(1, 2, 0))
    return (torch.stack(frames) * 255).byte().numpy()


@pytest.fixture(scope="module")
def footage() -> Footage:
    frames = np.stack([swaying(seed) for seed in range(8)])
    mouths = torch.zeros(8, 1 + LATENTS, 4, 4)
    mouths[:, :, 2, 1:3] = 0.5
    motions = [motion_of(clip, FlowCodec(CONFIG, GEOMETRY)) for clip in frames]
    return Footage(
        frames, mouths, Motion(*(torch.cat([getattr(m, name) for m in motions]) for name in ("pose", "flow")))
    )


@pytest.fixture(scope="module")
def fitted(footage: Footage) -> FlowCodec:
    torch.manual_seed(0)
    codec = FlowCodec(CONFIG, GEOMETRY)
    fit_flow(codec, footage, latents=LATENTS)
    return codec.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def busy(fitted: FlowCodec) -> FlowCodec:
    """The same with a branch that does something."""
    codec = FlowCodec(CONFIG, GEOMETRY)
    codec.load_state_dict(fitted.state_dict())
    generator = torch.Generator().manual_seed(1)
    for head in (codec.detail.flow, codec.detail.leave):
        head.weight.data = 0.1 * torch.randn(head.weight.shape, generator=generator)
    return codec.eval().requires_grad_(False)


def encoded(codec: FlowCodec, frames: np.ndarray) -> tuple[Tensor, Tensor]:
    """A clip and its latents."""
    clip = to_unit(frames)[None]
    return clip, codec.encode(clip, motion_of(frames, codec))


def test_flow_says_where_pixels_come_from() -> None:
    frames = swaying(3)
    flow = flow_to_reference(frames, 4)
    assert flow.shape == (2, len(frames), SIZE // 4, SIZE // 4)
    assert not flow[:, 0].any()
    t = 6  # round(4 sin 1.5), round(3 sin 1.2): the picture has moved left and up, so pixels come from right and below
    middle = flow[:, t, 4:8, 4:12].flatten(1).median(dim=1).values
    torch.testing.assert_close(4 * middle, torch.tensor([4.0, 3.0]), atol=0.3, rtol=0)


def test_the_maps_alone_follow_an_unseen_clip(fitted: FlowCodec) -> None:
    clip, latents = encoded(fitted, swaying(20))
    _, state = fitted.open(clip[:, :, 0])
    made, _ = fitted.decode(latents[:, :, 1:], state)
    error = (made - clip[:, :, 1:]).square().mean()
    still = (clip[:, :, :1] - clip[:, :, 1:]).square().mean()
    assert error < 0.15 * still
    without = latents.clone()
    without[:, fitted.looks + CONFIG.flow :] = 0
    assert error < 0.9 * (fitted.decode(without[:, :, 1:], state)[0] - clip[:, :, 1:]).square().mean()


def test_fine_detail_that_moves_by_half_a_pixel_stays(fitted: FlowCodec) -> None:
    stripes = 0.8 * torch.cos(torch.arange(SIZE) * torch.pi / 2).expand(1, 3, 5, SIZE, -1)  # four pixels a stripe
    flow = torch.zeros(1, 2, 5, SIZE // fitted.patch, SIZE // fitted.patch)
    flow[:, 0, 1:] = 0.5 / fitted.patch
    z = fitted.encode(stripes, Motion(torch.zeros(1, 5, 2, 3), flow))
    z[:, -fitted.groups[-1] :] = 0  # no rest: what is seen comes from the picture
    moved = fitted.without_branch(z[:, :, 1:], stripes[:, :, 0])[..., 16:-16, 16:-16]
    wanted = 0.8 * torch.cos((torch.arange(SIZE) + 0.5) * torch.pi / 2)[16:-16]
    kept = (moved * wanted).sum() / (wanted.square().sum() * moved.numel() / len(wanted))
    assert kept > 0.85  # bilinear sampling: 0.7


def test_a_reference_has_appearance_alone_and_shows_itself(fitted: FlowCodec) -> None:
    clip, latents = encoded(fitted, swaying(21))
    reference, state = fitted.open(clip[:, :, 0])
    assert torch.equal(reference, latents[:, :, :1])
    assert not reference[:, fitted.looks :].any()
    torch.testing.assert_close(
        latents[:, : fitted.looks], reference[:, : fitted.looks].expand(-1, -1, 1 + LATENTS, -1, -1)
    )
    still, _ = fitted.decode(reference, state)
    torch.testing.assert_close(still, clip[:, :, :1].expand(-1, -1, 4, -1, -1), atol=1e-5, rtol=0)


def test_channels_are_of_one_order(fitted: FlowCodec, footage: Footage) -> None:
    latents = torch.cat([encoded(fitted, clip)[1] for clip in footage.frames])
    groups = latents.square().mean((0, 2, 3, 4)).sqrt().split((6, 10, 8))
    assert all(0.3 < float(group.square().mean().sqrt()) < 1.5 for group in groups)


def test_a_clip_needs_its_flow(fitted: FlowCodec) -> None:
    with pytest.raises(ValueError, match="its motion"):
        fitted.encode(torch.zeros(1, 3, 5, SIZE, SIZE))


@pytest.mark.parametrize("plan", [[1] * LATENTS, [3, 3], [2, 1, 3]])
def test_any_chunk_plan_equals_the_whole(busy: FlowCodec, plan: list[int]) -> None:
    clip, latents = encoded(busy, swaying(22))
    _, state = busy.open(clip[:, :, 0])
    whole, _ = busy.decode(latents[:, :, 1:], state)
    parts = []
    for part in latents[:, :, 1:].split(plan, dim=2):
        made, state = busy.decode(part, state)
        parts.append(made)
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, atol=ROUNDING, rtol=0)


def test_sessions_side_by_side_equal_single_ones(busy: FlowCodec) -> None:
    clips, latents = (torch.cat(x) for x in zip(*(encoded(busy, swaying(s)) for s in (23, 24)), strict=True))
    both, _ = busy.decode(latents[:, :, 1:], busy.open(clips[:, :, 0])[1])
    for row in range(2):
        one = slice(row, row + 1)
        alone, _ = busy.decode(latents[one, :, 1:], busy.open(clips[one, :, 0])[1])
        torch.testing.assert_close(alone, both[one], atol=ROUNDING, rtol=0)


WIDE = Geometry(height=128, width=128, spatial_stride=32, latent_channels=24)


@pytest.fixture(scope="module")
def windowed(busy: FlowCodec) -> FlowCodec:
    """The same in a window of larger pictures: 16 pixels from the left, 8 from above."""
    codec = FlowCodec(replace(CONFIG, window=(16, 8, SIZE, SIZE)), WIDE)
    codec.load_state_dict(busy.state_dict())
    return codec.eval().requires_grad_(False)


def test_a_window_is_decoded_in_its_place(windowed: FlowCodec) -> None:
    """Whole pictures show in the window what the window alone shows, and stand still at their borders."""
    frames = swaying(25).repeat(2, axis=1).repeat(2, axis=2)
    clip = to_unit(frames)[None]
    motion = motion_of(frames[:, 8:72, 16:80], windowed)
    latents = windowed.encode(clip, motion)
    assert torch.equal(latents, windowed.encode(windowed.cut(clip), motion))
    assert latents.shape[-2:] == (4, 4)
    reference, state = windowed.open(clip[:, :, 0])
    assert torch.equal(reference, latents[:, :, :1])
    whole, _ = windowed.decode(latents[:, :, 1:], state)
    alone, _ = windowed.decode(latents[:, :, 1:], windowed.open(windowed.cut(clip[:, :, 0]))[1])
    assert whole.shape[-2:] == (128, 128)
    assert alone.shape[-2:] == (SIZE, SIZE)
    # Nothing of the window's outside is seen in its middle, since this clip moves by less than ten pixels.
    rim = (..., slice(RIM + 10, -RIM - 10), slice(RIM + 10, -RIM - 10))
    torch.testing.assert_close(windowed.cut(whole)[rim], alone[rim], atol=ROUNDING, rtol=0)
    moved = (whole - clip[:, :, :1]).abs().amax((0, 1, 2))
    assert moved[20:40, 30:70].mean() > 0.1
    edges = torch.cat((moved[0], moved[-1], moved[:, 0], moved[:, -1]))
    assert edges.max() < 0.1 * moved.max()
    assert moved[8:72, 12].max() > 0  # beside the window, what moves takes its surroundings along


def test_cells_of_a_face_have_components_of_their_own(fitted: FlowCodec, footage: Footage) -> None:
    """With as many channels, more is seen where the same thing always happens, and nothing around the face."""
    codec = FlowCodec(replace(CONFIG, face=(SIZE // 2, SIZE // 2)), GEOMETRY)
    assert codec.rest_map.shape[:2] == codec.scale.shape[1:] == (4, 4)
    fit_flow(codec, footage, latents=LATENTS)
    assert not torch.allclose(codec.rest_map[1, 1], codec.rest_map[2, 1], atol=0.1)
    torch.testing.assert_close(  # rows of all cells are orthonormal
        codec.rest_map @ codec.rest_map.mT, torch.eye(8).expand(4, 4, 8, 8), atol=1e-4, rtol=0
    )
    mouth = (..., slice(36, 44), slice(26, 38))
    ours, shared = 0.0, 0.0
    for frames in map(swaying, range(20, 28)):
        errors = []
        for any_codec in (codec, fitted):
            clip, latents = encoded(any_codec, frames)
            made = any_codec.without_branch(latents[:, :, 1:], clip[:, :, 0])
            errors.append(float((made - clip[:, :, 1:])[mouth].square().mean()))
            if any_codec is codec:
                torch.testing.assert_close(
                    made[..., :2], clip[:, :, :1, :, :2].expand_as(made[..., :2]), atol=1e-4, rtol=0
                )
        ours, shared = ours + errors[0], shared + errors[1]
    assert ours < shared


def test_a_model_folder_keeps_the_components_in_half_precision(fitted: FlowCodec, tmp_path: Path) -> None:
    config = ModelConfig(
        geometry=GEOMETRY, transformer=TransformerConfig(dim=32, heads=2, layers=1, latent_channels=24), codec=CONFIG
    )
    model = AvatarModel(config)
    model.codec.load_state_dict(fitted.state_dict())
    model.save(tmp_path)
    stored, codec = load_file(tmp_path / "model.safetensors"), AvatarModel.load(tmp_path).codec
    assert isinstance(codec, FlowCodec)
    for name in ("flow_map", "rest_map"):
        assert stored[f"codec.{name}"].dtype == torch.float16
        assert torch.equal(getattr(codec, name), getattr(fitted, name).half().float())
    for name in ("look_map", "pose_map", "scale", "latent_spread"):
        assert torch.equal(getattr(codec, name), getattr(fitted, name))


@pytest.mark.parametrize(
    ("window", "fault"),
    [((80, 8, 64, 64), "beyond"), ((16, 8, 64, 48), "squares"), ((0, 0, 62, 62), "squares"), ((0, 0, 20), "left, top")],
)
def test_windows_that_do_not_fit_are_refused(window: tuple[int, ...], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        ModelConfig(
            geometry=WIDE,
            transformer=TransformerConfig(latent_channels=24),
            codec=replace(CONFIG, window=window),
        )


def test_the_branch_learns_what_the_maps_cannot(fitted: FlowCodec, footage: Footage) -> None:
    codec = FlowCodec(CONFIG, GEOMETRY)
    codec.load_state_dict(fitted.state_dict())
    method = FlowDecoderMethod(codec, footage, latents=2)
    optimizer = torch.optim.Adam(codec.detail.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = method.loss(0, 4, Draws.seeded(0))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.85 * losses[0]  # the maps have taken most of it already


def test_configurations_that_leave_no_room_are_refused() -> None:
    with pytest.raises(ValueError, match="leave no latent channel"):
        ModelConfig(
            geometry=GEOMETRY,
            transformer=TransformerConfig(latent_channels=24),
            codec=FlowCodecConfig(appearance=12, flow=12, widths=(8, 8)),
        )


def test_the_configuration_survives_its_file() -> None:
    config = ModelConfig(geometry=GEOMETRY, transformer=TransformerConfig(latent_channels=24), codec=CONFIG)
    assert ModelConfig.from_json(config.to_json()) == config
