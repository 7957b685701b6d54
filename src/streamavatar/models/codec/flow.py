"""The codec of the default model: latents that say how the reference picture moves.

A latent has three groups of channels. The first two are linear maps of space-time blocks in closed form (principal
components), the third is learnt together with the decoder:

- appearance: the reference picture, small; the same in every latent of a clip. It tells the transformer who it moves.
- flow: where the pixels of the four frames come from in the reference picture, on a coarse grid.
- rest: what moving the picture cannot explain (teeth, lids, shade). For linear maps an open mouth is something else at
  every place that it can have on the latents' grid.

Flow is alike for all people, so a small transformer can learn it from few of them, and what is sharp comes from the
picture itself. The decoder adds a streaming convolutional branch, which sees the latent before and the moved features
of the reference: it refines the flow, fades what is covered and paints what is new. At its start it does nothing.

Encoding a clip needs its optical flow (`data.flow` estimates it); a reference picture alone needs none, and that is
all that run time encodes. The reference latent has appearance, and zeros for the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from streamavatar.config import FlowCodecConfig
from streamavatar.geometry import Geometry
from streamavatar.models.codec.light import ResidualBlock, warp

FLOW_CELLS = 2.0
"""Displacement in cells of the flow's grid that the flow head's unit stands for."""


@dataclass(frozen=True)
class FlowState:
    """What a decoder needs of the past.

    Attributes:
        previous: the latent before, [B, C, h, w].
        reference: the reference latent, [B, C, h, w].
        picture: the reference picture, [B, 3, H, W] in -1..1.
        features: the reference picture as the branch sees it, [B, width, H/p, W/p].
    """

    previous: Tensor
    reference: Tensor
    picture: Tensor
    features: Tensor


@dataclass(frozen=True)
class Crop:
    """A part of the pictures, in cells of the flow's grid: training decodes small parts, which is where its time goes.

    Attributes:
        corner: right and down, [B, 2].
        size: of the part, each way.
    """

    corner: Tensor
    size: int

    def repeated(self, count: int) -> Crop:
        return replace(self, corner=self.corner.repeat_interleave(count, dim=0))

    def of(self, x: Tensor, scale: int = 1) -> Tensor:
        """The part of [B, ..., H, W], whose pixels are `scale` to a cell each way."""
        size = scale * self.size
        parts = [
            row[..., down : down + size, right : right + size]
            for row, (right, down) in zip(x, (scale * self.corner).tolist(), strict=True)
        ]
        return torch.stack(parts)


class FlowBranch(nn.Module):
    """Latents and moved features to a better flow, a gain and new paint, for four frames.

    Starts on the latents' grid with the first of the configured widths and doubles the resolution with every further
    one; `patch` is the pixels per cell of the flow's grid, along each side.
    """

    def __init__(self, config: FlowCodecConfig, geometry: Geometry, inputs: int) -> None:
        super().__init__()
        widths = config.widths
        self.frames, self.patch = geometry.temporal_stride, config.patch(geometry)
        self.enter = nn.Conv2d(inputs, widths[0], 3, padding=1)
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

    def forward(self, motion: Tensor, features: Tensor, crop: Crop | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """To flow in cells [N, 4, 2, H/p, W/p], gain in 0..2 [N, 4, 1, H, W] and paint [N, 4, 3, H, W], float32.

        Args:
            motion: latents, [N, inputs, h, w].
            features: of the reference picture, moved, [N, width, H/p, W/p].
            crop: the part to make; `features` are of this part.
        """
        x = self.enter(motion.to(self.enter.weight.dtype))
        for stage, up in zip(self.stages, self.ups, strict=False):
            x = functional.pixel_shuffle(up(stage(x)), 2)
        if crop is not None:
            x = crop.of(x)
        x = self.stages[-1](x + features.to(x.dtype))
        paint = functional.pixel_shuffle(self.leave(x).float(), self.patch).unflatten(1, (self.frames, 4))
        flow = FLOW_CELLS * self.flow(x).float().unflatten(1, (self.frames, 2))
        return flow, 2 * torch.sigmoid(paint[:, :, 3:]), paint[:, :, :3]


class RestEncoder(nn.Module):
    """What moving the picture leaves of four frames, and these frames, to the latents' other channels.

    The branch upside down, from its second finest grid on, on pictures shrunk by `pool`.
    """

    def __init__(self, config: FlowCodecConfig, geometry: Geometry, outputs: int) -> None:
        super().__init__()
        widths = config.widths[-2::-1]
        self.cell = 2 * config.patch(geometry) // config.pool
        self.enter = nn.Conv2d(2 * 3 * geometry.temporal_stride * self.cell**2, widths[0], 3, padding=1)
        self.stages = nn.ModuleList(nn.Sequential(*(ResidualBlock(w) for _ in range(config.blocks))) for w in widths)
        self.downs = nn.ModuleList(nn.Conv2d(4 * w, v, 1) for w, v in pairwise(widths))
        self.leave = nn.Conv2d(widths[-1], outputs, 3, padding=1)

    def forward(self, left: Tensor, frames: Tensor) -> Tensor:
        """Both [N, 4 * 3, H/pool, W/pool] to [N, outputs, h, w]."""
        x = self.enter(functional.pixel_unshuffle(torch.cat((left, frames), dim=1), self.cell))
        for stage, down in zip(self.stages, self.downs, strict=False):
            x = down(functional.pixel_unshuffle(stage(x), 2))
        return self.leave(self.stages[-1](x)).float()


class FlowCodec(nn.Module):
    """See the module's docstring.

    Args:
        config: channels of the groups, widths of the decoder.
        geometry: strides and channels.
    """

    look_mean: Tensor
    look_map: Tensor
    flow_map: Tensor
    scale: Tensor
    spread: Tensor

    def __init__(self, config: FlowCodecConfig, geometry: Geometry) -> None:
        super().__init__()
        self.config, self.geometry = config, geometry
        self.patch = config.patch(geometry)
        self.looks, self.flows = config.appearance, config.flow
        rest = geometry.latent_channels - self.looks - self.flows
        small, time = geometry.spatial_stride // config.pool, geometry.temporal_stride
        grid = geometry.spatial_stride // self.patch
        sizes = {"look": (self.looks, 3 * small**2), "flow": (self.flows, 2 * time * grid**2)}
        for name, size in sizes.items():
            self.register_buffer(f"{name}_map", nn.init.orthogonal_(torch.empty(size)))
        self.register_buffer("look_mean", torch.zeros(3 * small**2))
        self.register_buffer("scale", torch.ones(geometry.latent_channels))
        self.register_buffer("spread", torch.ones(geometry.latent_channels))
        self.rest = RestEncoder(config, geometry, rest)
        self.detail = FlowBranch(config, geometry, 2 * (self.flows + rest) + self.looks)

    # blocks ----------------------------------------------------------------------------------------

    def _small(self, frames: Tensor) -> Tensor:
        """[..., H, W] averaged over `pool` pixels each way."""
        pooled = functional.avg_pool2d(frames.flatten(0, -4), self.config.pool)
        return pooled.unflatten(0, frames.shape[:-3])

    def looks_of(self, pictures: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] to blocks [B, h, w, 3 * cell * cell]."""
        return _cells(self._small(pictures), self.geometry.latent_height)

    def flows_of(self, flow: Tensor) -> Tensor:
        """Flow [B, 2, 4 n, H/p, W/p] of the frames after the reference to blocks [B, n, h, w, 2 * 4 * cells]."""
        return _cells(_latents(flow, self.geometry.temporal_stride), self.geometry.latent_height)

    def _flow(self, code: Tensor) -> Tensor:
        """Coefficients [N, flows, h, w] to flow [N, 4, 2, H/p, W/p], in cells of its grid."""
        return (
            _whole(code.movedim(1, -1) @ self.flow_map, 2 * self.geometry.temporal_stride)
            .unflatten(1, (2, -1))
            .transpose(1, 2)
        )

    def _moves(self, code: Tensor) -> Tensor:
        """Coefficients [B, n, h, w, flows] to flow [B, 4 n, 2, H/p, W/p], in cells of its grid."""
        return self._flow(code.flatten(0, 1).movedim(-1, 1)).unflatten(0, code.shape[:2]).flatten(1, 2)

    def moved(self, picture: Tensor, flow: Tensor, crop: Crop | None = None) -> Tensor:
        """Pictures [N, 3, H, W] moved by flow in cells [N, F, 2, H/p, W/p], of a part if given: [N, F, 3, H, W]."""
        pixels = functional.interpolate(self.patch * flow.flatten(0, 1), scale_factor=self.patch, mode="bilinear")
        corner = None if crop is None else self.patch * crop.corner
        return warp(picture, pixels.unflatten(0, flow.shape[:2]), corner)

    # public ----------------------------------------------------------------------------------------

    def encode(self, frames: Tensor, flow: Tensor | None = None) -> Tensor:
        """Frames [B, 3, 1 + 4 n, H, W] in -1..1 to latents [B, C, 1 + n, h, w]; frame 0 is the reference picture.

        Args:
            flow: where each frame's pixels come from in frame 0, in cells of the flow's grid,
                [B, 2, 1 + 4 n, H/p, W/p]; not needed for a single frame.

        Raises:
            ValueError: a clip without flow, or of a length that is no whole number of latents.
        """
        geometry = self.geometry
        later = geometry.latents_of(frames.shape[2]) - 1
        look = (self.looks_of(frames[:, :, 0]) - self.look_mean) @ self.look_map.t()
        still = functional.pad(look, (0, geometry.latent_channels - self.looks))[:, None]
        if not later:
            return self._scaled(still)
        if flow is None:
            raise ValueError("a clip is encoded with its optical flow")
        code = self.flows_of(flow[:, :, 1:]) @ self.flow_map.t()
        rest = self.rests_of(frames[:, :, 0], frames[:, :, 1:], code).movedim(2, -1)
        return self._scaled(
            torch.cat((still, torch.cat((look[:, None].expand(-1, later, -1, -1, -1), code, rest), -1)), 1)
        )

    def rests_of(self, picture: Tensor, frames: Tensor, code: Tensor) -> Tensor:
        """Channels [B, n, rests, h, w] of what flow leaves of frames [B, 3, 4 n, H, W].

        Args:
            picture: the reference, [B, 3, H, W].
            code: coefficients of the flow, [B, n, h, w, flows].
        """
        batch, count = code.shape[:2]
        moves = self._moves(code)
        pixels = functional.interpolate(
            self.patch / self.config.pool * moves.flatten(0, 1),
            scale_factor=self.patch // self.config.pool,
            mode="bilinear",
        ).unflatten(0, (batch, -1))
        small = self._small(frames)
        left = small - warp(self._small(picture), pixels).transpose(1, 2)
        each = [_latents(x, self.geometry.temporal_stride).flatten(0, 1) for x in (left, small)]
        return self.rest(*each).unflatten(0, (batch, count))

    def _scaled(self, code: Tensor) -> Tensor:
        return (code / self.scale).permute(0, 4, 1, 2, 3).contiguous()

    def open(self, picture: Tensor) -> tuple[Tensor, FlowState]:
        """Reference picture [B, 3, H, W] in -1..1 to its latent [B, C, 1, h, w] and the state to decode from."""
        latent = self.encode(picture[:, :, None])
        reference = latent[:, :, 0]
        return latent, FlowState(reference, reference, picture, self.detail.look(picture))

    def decode(self, latents: Tensor, state: FlowState, crop: Crop | None = None) -> tuple[Tensor, FlowState]:
        """Latents [B, C, T, h, w] to frames [B, 3, 4 T, H, W] in -1..1 and the state to go on with.

        With `crop` only a part of the frames is made, as it is but for the branch's view beyond the part's borders.
        """
        latents = latents.float()
        batch, count = latents.shape[0], latents.shape[2]
        before = torch.cat((state.previous[:, :, None].float(), latents[:, :, :-1]), dim=2)
        look = state.reference[:, : self.looks, None].float().expand(-1, -1, count, -1, -1)
        motion = torch.cat((latents[:, self.looks :], before[:, self.looks :], look), dim=1)
        flow = self._flow_of(latents)
        features, picture = (x.repeat_interleave(count, dim=0) for x in (state.features, state.picture))
        if crop is not None:
            crop = crop.repeated(count)
            flow = crop.of(flow)
        seen = warp(features.float(), flow.mean(1, keepdim=True), None if crop is None else crop.corner)[:, 0]
        change, gain, paint = self.detail(motion.transpose(1, 2).flatten(0, 1), seen, crop)
        frames = gain * self.moved(picture, flow + change, crop) + paint
        frames = frames.unflatten(0, (batch, count)).flatten(1, 2).transpose(1, 2)
        return frames.clamp(-1, 1), replace(state, previous=latents[:, :, -1])

    def _flow_of(self, latents: Tensor) -> Tensor:
        """Latents [B, C, T, h, w] to flow [B * T, 4, 2, H/p, W/p], by the maps alone."""
        with torch.autocast(latents.device.type, enabled=False):
            code = (latents * self.scale[:, None, None, None]).transpose(1, 2).flatten(0, 1)
            return self._flow(code[:, self.looks : self.looks + self.flows])

    @torch.no_grad()
    def carried(self, picture: Tensor, flow: Tensor) -> Tensor:
        """The reference picture [B, 3, H, W] moved by flow as latents keep it, and nothing else.

        Args:
            flow: of the frames after the reference, see :meth:`encode`, [B, 2, 4 n, H/p, W/p].

        Returns:
            [B, 3, 4 n, H, W].
        """
        return self.moved(picture, self._moves(self.flows_of(flow) @ self.flow_map.t())).transpose(1, 2)


def _latents(x: Tensor, frames: int) -> Tensor:
    """[B, C, 4 n, H, W] to [B, n, C * 4, H, W]."""
    return x.unflatten(2, (-1, frames)).transpose(1, 2).flatten(2, 3)


def _cells(x: Tensor, rows: int) -> Tensor:
    """[..., C, H, W] to blocks [..., h, w, C * side * side], h = `rows`."""
    side = x.shape[-2] // rows
    return x.unflatten(-1, (-1, side)).unflatten(-3, (-1, side)).movedim((-4, -2), (-5, -4)).flatten(-3)


def _whole(blocks: Tensor, channels: int) -> Tensor:
    """Blocks [N, h, w, C * side * side] to [N, C, H, W]."""
    side = round((blocks.shape[-1] // channels) ** 0.5)
    return blocks.unflatten(-1, (channels, side, side)).permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
