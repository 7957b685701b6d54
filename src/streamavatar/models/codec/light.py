"""The light codec of the small models: f16 x t4, 48 channels, real time on a CPU.

The encoder is one linear map of space-time blocks (16x16 pixels, 4 frames) with a closed-form start: the principal
components of the training blocks. The decoder knows the reference picture: a streaming convolutional branch, which sees
the latent before as well, turns latents into a flow that moves the reference picture, a mask that says where this is
good enough, and a correction; where it is not (an opening mouth, a hand that comes in), the transposed linear map
shows what the latents say. So texture comes from the picture and the latents can spend themselves on motion.

For larger pictures the linear map sees them shrunk (`CodecConfig.pool`): what it encodes is motion, and what is sharp
comes from the reference picture.

The reference latent stands for one frame (repeated four times on the way in), every later one for four. Latents are
scaled per channel by the spread of the *motion* (difference to a clip's first latent), not of whole pictures: what the
transformer has to make is motion, and it should be of the size of the noise.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from streamavatar.config import CodecConfig
from streamavatar.geometry import Geometry


@dataclass(frozen=True)
class DecoderState:
    """What a decoder needs of the past.

    Attributes:
        previous: the latent before, [B, C, h, w].
        reference: the reference latent, [B, C, h, w].
        picture: the reference picture, [B, 3, H, W] in -1..1.
        features: the reference picture as the branch sees it, [B, width, H/p, W/p], see `DetailBranch.patch`.
    """

    previous: Tensor
    reference: Tensor
    picture: Tensor
    features: Tensor


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(functional.relu(self.conv1(functional.relu(x))))


FLOW_PIXELS = 4.0
"""Displacement in pixels that the flow head's unit stands for."""


class DetailBranch(nn.Module):
    """Motion and reference to flow, mask and correction of four frames.

    Starts on the latents' grid with the first of the configured widths and doubles the resolution with every further
    one; `patch` is the pixels per cell at the end, along each side.
    """

    def __init__(self, config: CodecConfig, geometry: Geometry) -> None:
        super().__init__()
        widths = config.widths
        self.frames, self.patch = geometry.temporal_stride, geometry.spatial_stride // 2 ** (len(widths) - 1)
        self.enter = nn.Conv2d(3 * geometry.latent_channels, widths[0], 3, padding=1)
        self.stages = nn.ModuleList(nn.Sequential(*(ResidualBlock(w) for _ in range(config.blocks))) for w in widths)
        self.ups = nn.ModuleList(nn.Conv2d(w, v * 4, 1) for w, v in pairwise(widths))
        self.see = nn.Conv2d(3 * self.patch**2, widths[-1], 3, padding=1)
        self.flow = nn.Conv2d(widths[-1], 2 * self.frames, 3, padding=1)
        self.leave = nn.Conv2d(widths[-1], 4 * self.frames * self.patch**2, 3, padding=1)
        for head in (self.flow, self.leave):
            nn.init.zeros_(head.weight)
            assert head.bias is not None
            nn.init.zeros_(head.bias)

    def look(self, picture: Tensor) -> Tensor:
        """The reference picture [B, 3, H, W] as features [B, width, H/p, W/p]; once per session."""
        return self.see(functional.pixel_unshuffle(picture, self.patch).to(self.see.weight.dtype))

    def forward(self, motion: Tensor, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents and features to flow, mask and correction, float32.

        Args:
            motion: [N, 3 C, h, w].
            features: of the reference picture, [N, width, H/p, W/p].

        Returns:
            Flow in pixels [N, 4, 2, H, W] (x, y: where to look in the reference), mask in 0..1 [N, 4, 1, H, W] and
            correction [N, 4, 3, H, W].
        """
        x = self.enter(motion.to(self.enter.weight.dtype))
        for stage, up in zip(self.stages, self.ups, strict=False):
            x = functional.pixel_shuffle(up(stage(x)), 2)
        x = self.stages[-1](x + features)
        flow = functional.interpolate(FLOW_PIXELS * self.flow(x).float(), scale_factor=self.patch, mode="bilinear")
        paint = functional.pixel_shuffle(self.leave(x).float(), self.patch).unflatten(1, (self.frames, 4))
        return flow.unflatten(1, (self.frames, 2)), torch.sigmoid(paint[:, :, 3:]), paint[:, :, :3]


def warp(picture: Tensor, flow: Tensor, mode: Literal["bilinear", "bicubic"] = "bilinear") -> Tensor:
    """Move pictures: out(x, y) = picture(x + flow_x, y + flow_y), edges repeated.

    Args:
        picture: [N, C, H, W].
        flow: pixels, [N, F, 2, H, W].
        mode: what is between pixels; bilinear blurs what moves by half a pixel, bicubic hardly does and may overshoot.

    Returns:
        [N, F, C, H, W].
    """
    height, width = flow.shape[-2:]
    rows = torch.arange(height, device=flow.device, dtype=flow.dtype)[:, None]
    columns = torch.arange(width, device=flow.device, dtype=flow.dtype)[None]
    x = (2 * (flow[:, :, 0] + columns) + 1) / width - 1
    y = (2 * (flow[:, :, 1] + rows) + 1) / height - 1
    # Frames are stacked along the height of one sampling grid, so that the picture need not be copied per frame.
    grid = torch.stack((x, y), dim=-1).flatten(1, 2)
    moved = functional.grid_sample(picture, grid, mode=mode, padding_mode="border", align_corners=False)
    return moved.unflatten(2, (-1, height)).transpose(1, 2)


def _without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """No lower precision than asked for; devices that hold no numbers (meta) have none to switch off."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


class LightCodec(nn.Module):
    """See the module's docstring.

    Args:
        config: decoder widths.
        geometry: strides and channels.
    """

    def __init__(self, config: CodecConfig, geometry: Geometry) -> None:
        super().__init__()
        self.config, self.geometry = config, geometry
        self.cell = geometry.spatial_stride // config.pool
        """Side of a block, in pixels of the shrunk picture."""
        channels, block = geometry.latent_channels, 3 * geometry.temporal_stride * self.cell**2
        self.analysis = nn.Parameter(torch.randn(channels, block).div_(block**0.5))
        self.synthesis = nn.Parameter(self.analysis.detach().t().clone())
        self.register_buffer("mean", torch.zeros(block))
        self.register_buffer("shift", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("spread", torch.ones(channels))
        self.detail = DetailBranch(config, geometry)

    mean: Tensor
    shift: Tensor
    scale: Tensor
    spread: Tensor

    # blocks ----------------------------------------------------------------------------------------

    def blocks(self, frames: Tensor) -> Tensor:
        """Frames [B, 3, F, H, W] in -1..1 to blocks [B, T, h, w, 3 * 4 * cell * cell]; frame 0 fills one alone."""
        s, t, pool = self.cell, self.geometry.temporal_stride, self.config.pool
        if pool > 1:
            frames = functional.avg_pool3d(frames, (1, pool, pool))
        full = torch.cat((frames[:, :, :1].expand(-1, -1, t, -1, -1), frames[:, :, 1:]), dim=2)
        x = full.unflatten(4, (-1, s)).unflatten(3, (-1, s)).unflatten(2, (-1, t))
        return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)

    def _pictures(self, blocks: Tensor) -> Tensor:
        """Blocks [B, h, w, 3 * 4 * cell * cell] of one latent to frames [B, 4, 3, H, W]."""
        s, t, pool = self.cell, self.geometry.temporal_stride, self.config.pool
        x = blocks.unflatten(-1, (3, t, s, s)).permute(0, 4, 3, 1, 5, 2, 6).flatten(5).flatten(3, 4)
        if pool == 1:
            return x
        return functional.interpolate(x.flatten(0, 1), scale_factor=pool, mode="bilinear").unflatten(0, x.shape[:2])

    # public ----------------------------------------------------------------------------------------

    def encode(self, frames: Tensor) -> Tensor:
        """Frames [B, 3, 1 + 4n, H, W] in -1..1 to latents [B, C, 1 + n, h, w]."""
        self.geometry.latents_of(frames.shape[2])
        z = (self.blocks(frames) - self.mean) @ self.analysis.t()
        return ((z - self.shift) / self.scale).permute(0, 4, 1, 2, 3).contiguous()

    def open(self, picture: Tensor) -> tuple[Tensor, DecoderState]:
        """Reference picture [B, 3, H, W] in -1..1 to its latent [B, C, 1, h, w] and the state to decode from."""
        latent = self.encode(picture[:, :, None])
        reference = latent[:, :, 0]
        return latent, DecoderState(reference, reference, picture, self.detail.look(picture))

    def decode(self, latents: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Latents [B, C, T, h, w] to frames [B, 3, 4 T, H, W] in -1..1 and the state to go on with."""
        latents = latents.float()
        batch, count = latents.shape[0], latents.shape[2]
        before = torch.cat((state.previous[:, :, None], latents[:, :, :-1]), dim=2)
        reference = state.reference[:, :, None]
        identity = (reference * self.scale[:, None, None, None]) / self.spread[:, None, None, None]
        motion = torch.cat((latents - reference, before - reference, identity.expand_as(latents)), dim=1)
        linear = self._linear(latents.transpose(1, 2).flatten(0, 1))
        features, picture = (x.repeat_interleave(count, dim=0) for x in (state.features, state.picture))
        flow, mask, correction = self.detail(motion.transpose(1, 2).flatten(0, 1), features)
        frames = torch.lerp(linear, warp(picture, flow), mask) + correction
        frames = frames.unflatten(0, (batch, count)).flatten(1, 2).transpose(1, 2)
        return frames.clamp(-1, 1), replace(state, previous=latents[:, :, -1])

    def _linear(self, latents: Tensor) -> Tensor:
        """Latents [N, C, h, w] to frames [N, 4, 3, H, W] through the transposed linear map."""
        with _without_autocast(latents.device):  # eight bits of mantissa would show as bands
            z = latents.float().permute(0, 2, 3, 1) * self.scale + self.shift
            return self._pictures(z @ self.synthesis.t() + self.mean)

    # closed-form start ----------------------------------------------------------------------------

    @torch.no_grad()
    def fit_blocks(self, mean: Tensor, components: Tensor) -> None:
        """Set the linear part: `mean` [block], orthonormal `components` [C, block], largest first."""
        self.mean.copy_(mean)
        self.analysis.copy_(components)
        self.synthesis.copy_(components.t())

    @property
    def latent_spread(self) -> Tensor:
        """Root mean square of the latents' channels, [C]."""
        return self.spread / self.scale

    @torch.no_grad()
    def fit_scale(self, shift: Tensor, scale: Tensor, spread: Tensor) -> None:
        """Set per channel, [C] each: the latents' offset, the spread of motion, the spread over all pictures."""
        self.shift.copy_(shift)
        self.scale.copy_(scale)
        self.spread.copy_(spread)
