"""The head's own motion: found from flow, taken away, and given back by the codec."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from streamavatar.config import FlowCodecConfig
from streamavatar.data.flow import motion_of
from streamavatar.data.prepare import Footage
from streamavatar.geometry import Geometry
from streamavatar.models.codec.flow import FlowCodec, Motion
from streamavatar.models.codec.light import warp
from streamavatar.models.codec.pose import field, fit_pose, steadied
from streamavatar.training.methods.codec import fit_flow, to_unit

SIZE, LATENTS, PATCH = 96, 4, 4
GEOMETRY = Geometry(height=SIZE, width=SIZE, spatial_stride=16, patch=1, latent_channels=40)
SIZES = {"appearance": 6, "flow": 10, "widths": (12, 8, 8), "blocks": 1}


def poses(frames: int) -> Tensor:
    """A head that turns, nods and comes nearer, from rest on: [F, 2, 3] in cells."""
    t = torch.arange(frames) / 6
    wave = torch.stack([torch.sin(t * (1 + 0.2 * k)) for k in range(6)], dim=1).unflatten(1, (2, 3))
    return wave * torch.tensor((0.08, 0.08, 0.6))


def pixels(pose: Tensor) -> Tensor:
    cells = field(pose, SIZE // PATCH, SIZE // PATCH)
    return functional.interpolate(PATCH * cells, scale_factor=PATCH, mode="bilinear")


def texture(seed: int) -> Tensor:
    coarse = torch.rand(1, 3, 14, 14, generator=torch.Generator().manual_seed(seed))
    return 255 * functional.interpolate(coarse, (SIZE, SIZE), mode="bicubic").clamp(0, 1)


def nodding(seed: int) -> np.ndarray:
    """A texture that moves as a head does and in no other way, uint8 [F, H, W, 3]."""
    moved = warp(texture(seed), pixels(poses(1 + 4 * LATENTS))[None])[0]
    return moved.round().byte().permute(0, 2, 3, 1).numpy()


def test_the_head_is_found_whatever_the_mouth_does() -> None:
    pose = poses(9)
    flow = field(pose, 24, 24).transpose(0, 1).contiguous()
    torch.testing.assert_close(fit_pose(flow), pose, atol=1e-3, rtol=0)
    flow[:, :, 13:20, 8:16] += 3  # below the nose
    torch.testing.assert_close(fit_pose(flow), pose, atol=1e-3, rtol=0)
    flow[:, :, 6:8, 8:11] += 1  # an eye: far from the rest, so it hardly counts
    assert (fit_pose(flow) - pose).abs().max() < 0.15


def test_the_head_moves_and_its_surroundings_do_not() -> None:
    moves = field(poses(9), 24, 24)[5]
    assert moves[:, 10, 12].abs().max() > 0.1
    assert moves[:, :, [0, -1]].abs().max() < 0.05
    assert moves[:, -1].abs().max() < 0.05


def test_a_steadied_head_does_not_move() -> None:
    frames = torch.from_numpy(nodding(0)).permute(0, 3, 1, 2).float()
    still = steadied(frames, pixels(poses(len(frames))))
    inner = (..., slice(12, 84), slice(12, 84))
    moved, left = ((x - frames[:1])[inner].abs().mean() for x in (frames, still))
    assert moved > 10
    assert left < 0.1 * moved


def test_what_a_head_does_is_in_the_channels_of_the_pose_alone() -> None:
    clips = np.stack([nodding(seed) for seed in range(4)])
    mouths = torch.zeros(4, 1 + LATENTS, 6, 6)
    energy = {}
    for pose in (0, 12):
        torch.manual_seed(0)
        codec = FlowCodec(FlowCodecConfig(pose=pose, **SIZES), GEOMETRY).requires_grad_(False)
        motions = [motion_of(clip, codec) for clip in clips]
        motion = Motion(*(torch.cat([getattr(m, name) for m in motions]) for name in ("pose", "flow")))
        fit_flow(codec, Footage(clips, mouths, motion), latents=LATENTS)
        frames = nodding(9)
        clip = to_unit(frames)[None]
        latents = codec.encode(clip, motion_of(frames, codec))
        shown, _ = codec.decode(latents[:, :, 1:], codec.open(clip[:, :, 0])[1])
        assert (shown - clip[:, :, 1:]).square().mean() < 0.05 * (clip[:, :, :1] - clip[:, :, 1:]).square().mean()
        _, head, flow, _ = (latents * codec.scale[:, None]).split(codec.groups, dim=1)
        energy[pose] = flow.square().sum()
        torch.testing.assert_close(head, head[..., :1, :1].expand_as(head))
        assert head[:, :, 1:].any() == bool(pose)
    assert energy[12] < 0.1 * energy[0]
