"""The codec of the default model: latents that say how the reference picture moves.

A latent has four groups of channels, each a linear map in closed form (principal components):

- appearance: the reference picture, small; the same in every latent of a clip. It tells the transformer who it moves.
- pose: how the head moves as a whole (`models.codec.pose`); the same in every cell.
- flow: where the pixels of the four frames, had the head not moved, come from in the reference picture; on a coarse
  grid.
- rest: what moving the picture cannot explain (teeth, lids, shade), at low resolution, where the unmoved head has it.

Flow is alike for all people, so a small transformer can learn it from few of them, and what is sharp comes from the
picture itself. The decoder adds a streaming convolutional branch, which sees the latent before and the moved features
of the reference: it refines the flow, fades what is covered and paints what is new. At its start it does nothing.

Encoding a clip needs its motion (`data.flow` estimates it); a reference picture alone needs none, and that is
all that run time encodes. The reference latent has appearance, and zeros for the rest.

Latents may be of a window alone (`FlowCodecConfig.window`), where faces are. Training sees nothing else; at run time
the rest of a whole picture stands still, but for what the motion at the window's borders takes along.

Where all pictures have the face at the same place (`FlowCodecConfig.face`), an unmoved head has its mouth in the same
cells. Each cell then has components of its own for flow and rest, a mouth's for the mouth; what is around the face
moves with it, and is not coded at all.
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
from streamavatar.models.codec.pose import NUMBERS, face, field, steadied

FLOW_CELLS = 2.0
"""Displacement in cells of the flow's grid that the flow head's unit stands for."""
RIM = 10
"""Pixels inside a window over which new paint fades in, so that no border shows."""


@dataclass(frozen=True)
class Motion:
    """How a clip's frames move, see `data.flow`.

    Attributes:
        pose: the head's affine maps in cells of the flow's grid, [B, 1 + 4 n, 2, 3]; zero for codecs without pose.
        flow: where each frame's pixels, had the head not moved, come from in frame 0, in cells of the flow's grid,
            [B, 2, 1 + 4 n, H/p, W/p].
    """

    pose: Tensor
    flow: Tensor


@dataclass(frozen=True)
class FlowState:
    """What a decoder needs of the past.

    Attributes:
        previous: the latent before, [B, C, h, w].
        reference: the reference latent, [B, C, h, w].
        picture: the reference picture, [B, 3, H, W] in -1..1.
        features: its window as the branch sees it, [B, width, H/p, W/p].
    """

    previous: Tensor
    reference: Tensor
    picture: Tensor
    features: Tensor


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

    def forward(self, motion: Tensor, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """To flow in cells [N, 4, 2, H/p, W/p], gain in 0..2 [N, 4, 1, H, W] and paint [N, 4, 3, H, W], float32.

        Args:
            motion: latents, [N, inputs, h, w].
            features: of the reference picture, moved, [N, width, H/p, W/p].
        """
        x = self.enter(motion.to(self.enter.weight.dtype))
        for stage, up in zip(self.stages, self.ups, strict=False):
            x = functional.pixel_shuffle(up(stage(x)), 2)
        x = self.stages[-1](x + features.to(x.dtype))
        paint = functional.pixel_shuffle(self.leave(x).float(), self.patch).unflatten(1, (self.frames, 4))
        flow = FLOW_CELLS * self.flow(x).float().unflatten(1, (self.frames, 2))
        return flow, 2 * torch.sigmoid(paint[:, :, 3:]), paint[:, :, :3]


class FlowCodec(nn.Module):
    """See the module's docstring.

    Args:
        config: channels of the groups, widths of the decoder.
        geometry: strides and channels.
    """

    components = ("flow_map", "rest_map")
    """Of some millions of numbers: model folders have them in float16."""
    look_mean: Tensor
    look_map: Tensor
    pose_map: Tensor
    flow_map: Tensor
    rest_map: Tensor
    scale: Tensor
    latent_spread: Tensor

    def __init__(self, config: FlowCodecConfig, geometry: Geometry) -> None:
        super().__init__()
        self.config, self.geometry = config, geometry
        self.patch, self.part = config.patch(geometry), config.part(geometry)
        self.looks = config.appearance
        rest = geometry.latent_channels - self.looks - config.pose - config.flow
        self.groups = (self.looks, config.pose, config.flow, rest)
        small, time = config.cell(geometry) // config.pool, geometry.temporal_stride
        grid = config.cell(geometry) // self.patch
        sizes = {"look": 3 * small**2, "pose": NUMBERS * time, "flow": 2 * time * grid**2, "rest": 3 * time * small**2}
        self.places = (geometry.latent_height, geometry.latent_width) if config.face else (1, 1)
        for (name, size), count in zip(sizes.items(), self.groups, strict=True):
            start = torch.empty(count, size)
            if count:
                nn.init.orthogonal_(start)
            self.register_buffer(f"{name}_map", start if name in ("look", "pose") else start.repeat(*self.places, 1, 1))
        self.register_buffer("look_mean", torch.zeros(3 * small**2))
        self.register_buffer("scale", torch.ones(geometry.latent_channels, *self.places))
        self.register_buffer("latent_spread", torch.ones(geometry.latent_channels))
        self.detail = FlowBranch(config, geometry, 2 * sum(self.groups[1:]) + self.looks)

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
        return _cells(_latents(self._on_face(flow), self.geometry.temporal_stride), self.geometry.latent_height)

    def rests_of(self, frames: Tensor) -> Tensor:
        """Differences [B, 3, 4 n, H, W] to blocks [B, n, h, w, 3 * 4 * cell * cell]."""
        small = self._on_face(self._small(frames))
        return _cells(_latents(small, self.geometry.temporal_stride), self.geometry.latent_height)

    def _on_face(self, values: Tensor) -> Tensor:
        """Values [..., H, W] of unmoved heads, where they are coded."""
        if not self.config.face:
            return values
        height, width = values.shape[-2:]
        return values * face(height, width, values.device)

    def _analysed(self, blocks: Tensor, components: Tensor) -> Tensor:
        """Blocks [B, n, h, w, size] to coefficients [B, n, h, w, count]."""
        return torch.einsum("bnyxs,yxcs->bnyxc", blocks, components.expand(*blocks.shape[2:4], -1, -1))

    def _made(self, code: Tensor, components: Tensor) -> Tensor:
        """Coefficients [N, count, h, w] to blocks [N, h, w, size]."""
        return torch.einsum("ncyx,yxcs->nyxs", code, components.expand(*code.shape[2:], -1, -1))

    def _flow(self, code: Tensor) -> Tensor:
        """Coefficients [N, flows, h, w] to flow [N, 4, 2, H/p, W/p], in cells of its grid."""
        return (
            _whole(self._made(code, self.flow_map), 2 * self.geometry.temporal_stride)
            .unflatten(1, (2, -1))
            .transpose(1, 2)
        )

    def _rest(self, code: Tensor) -> Tensor:
        """Coefficients [N, rests, h, w] to pictures [N, 4, 3, H, W]."""
        small = _whole(self._made(code, self.rest_map), 3 * self.geometry.temporal_stride)
        large = (
            functional.interpolate(small, scale_factor=self.config.pool, mode="bilinear")
            if self.config.pool > 1
            else small
        )
        return large.unflatten(1, (3, -1)).transpose(1, 2)

    def _pixels(self, flow: Tensor) -> Tensor:
        """Flow in cells [N, F, 2, H/p, W/p] to flow in pixels [N, F, 2, H, W]."""
        pixels = functional.interpolate(self.patch * flow.flatten(0, 1), scale_factor=self.patch, mode="bilinear")
        return pixels.unflatten(0, flow.shape[:2])

    def cut(self, pictures: Tensor) -> Tensor:
        """The window of pictures [..., H, W]; what has its size is one already."""
        rows, columns = self.part
        if pictures.shape[-2:] == (rows.stop - rows.start, columns.stop - columns.start):
            return pictures
        return pictures[..., rows, columns]

    # public ----------------------------------------------------------------------------------------

    def encode(self, frames: Tensor, motion: Motion | None = None) -> Tensor:
        """Frames [B, 3, 1 + 4 n, H, W] in -1..1 to latents [B, C, 1 + n, h, w]; frame 0 is the reference picture.

        Args:
            frames: windows, or whole pictures.
            motion: of the frames' windows; not needed for a single frame.

        Raises:
            ValueError: a clip without motion, or of a length that is no whole number of latents.
        """
        geometry = self.geometry
        later = geometry.latents_of(frames.shape[2]) - 1
        frames = self.cut(frames)
        look = (self.looks_of(frames[:, :, 0]) - self.look_mean) @ self.look_map.t()
        still = functional.pad(look, (0, geometry.latent_channels - self.looks))[:, None]
        if not later:
            return self._scaled(still)
        if motion is None:
            raise ValueError("a clip is encoded with its motion")
        pose = (self.poses_of(motion.pose[:, 1:]) @ self.pose_map.t())[:, :, None, None]
        flow = self._analysed(self.flows_of(motion.flow[:, :, 1:]), self.flow_map)
        rest = self._analysed(self.unexplained(frames, motion), self.rest_map)
        cells = flow.shape[:-1]
        look, pose = (x.expand(*cells, -1) for x in (look[:, None], pose))
        return self._scaled(torch.cat((still, torch.cat((look, pose, flow, rest), -1)), 1))

    def poses_of(self, pose: Tensor) -> Tensor:
        """Affine maps [B, 4 n, 2, 3] of the frames after the reference to rows [B, n, 4 * 6]."""
        return pose.unflatten(1, (-1, self.geometry.temporal_stride)).flatten(2)

    def steady(self, frames: Tensor, pose: Tensor) -> Tensor:
        """Windows [B, 3, F, H, W] as they would be had the head not moved by the maps [B, F, 2, 3]."""
        batch, count = pose.shape[:2]
        still = steadied(frames.transpose(1, 2).flatten(0, 1), self._head(pose).flatten(0, 1))
        return still.unflatten(0, (batch, count)).transpose(1, 2)

    def _head(self, pose: Tensor) -> Tensor:
        """Affine maps [N, F, 2, 3] to flow in pixels [N, F, 2, H, W]."""
        rows, columns = self.part
        return self._pixels(
            field(pose, (rows.stop - rows.start) // self.patch, (columns.stop - columns.start) // self.patch)
        )

    def unexplained(self, frames: Tensor, motion: Motion) -> Tensor:
        """What the latents' flow leaves of windows after the reference, as blocks; arguments as :meth:`encode`."""
        code = self._analysed(self.flows_of(motion.flow[:, :, 1:]), self.flow_map).flatten(0, 1).movedim(-1, 1)
        moves = self._flow(code).unflatten(0, (frames.shape[0], -1)).flatten(1, 2)
        later = frames[:, :, 1:]
        if self.config.pose:
            later = self.steady(later, motion.pose[:, 1:])
        return self.rests_of(later - warp(frames[:, :, 0], self._pixels(moves)).transpose(1, 2))

    def _scaled(self, code: Tensor) -> Tensor:
        return (code / self.scale.movedim(0, -1)).permute(0, 4, 1, 2, 3).contiguous()

    def open(self, picture: Tensor) -> tuple[Tensor, FlowState]:
        """Reference picture [B, 3, H, W] in -1..1 to its latent [B, C, 1, h, w] and the state to decode from."""
        latent = self.encode(picture[:, :, None])
        reference = latent[:, :, 0]
        return latent, FlowState(reference, reference, picture, self.detail.look(self.cut(picture)))

    def decode(self, latents: Tensor, state: FlowState) -> tuple[Tensor, FlowState]:
        """Latents [B, C, T, h, w] to frames [B, 3, 4 T, H, W] in -1..1 and the state to go on with.

        Frames are as the reference picture is: whole pictures, or windows.
        """
        latents = latents.float()
        batch, count = latents.shape[0], latents.shape[2]
        before = torch.cat((state.previous[:, :, None].float(), latents[:, :, :-1]), dim=2)
        look = state.reference[:, : self.looks, None].float().expand(-1, -1, count, -1, -1)
        motion = torch.cat((latents[:, self.looks :], before[:, self.looks :], look), dim=1)
        pose, flow, rest = self._linear(latents)
        features, picture = (x.repeat_interleave(count, dim=0) for x in (state.features, state.picture))
        seen = warp(features.float(), flow.mean(1, keepdim=True))[:, 0]
        change, gain, paint = self.detail(motion.transpose(1, 2).flatten(0, 1), seen)
        frames = self._shown(picture, pose, flow + change, gain, gain * rest + paint)
        frames = frames.unflatten(0, (batch, count)).flatten(1, 2).transpose(1, 2)
        return frames.clamp(-1, 1), replace(state, previous=latents[:, :, -1])

    def _shown(self, picture: Tensor, pose: Tensor | None, flow: Tensor, gain: Tensor, paint: Tensor) -> Tensor:
        """Frames [N, F, 3, H, W] of pictures [N, 3, H, W] that are moved, times a gain, and painted on.

        Args:
            pose: flow of the head, in pixels [N, F, 2, H, W].
            flow: where the unmoved head's pixels come from, in cells [N, F, 2, H/p, W/p].
            gain, paint: of the unmoved head, [N, F, 1 or 3, H, W].
        """
        flow = self._pixels(flow)
        if pose is not None:
            layers = torch.cat((flow, gain, paint), dim=2).flatten(0, 1)
            layers = warp(layers, pose.flatten(0, 1)[:, None])[:, 0].unflatten(0, flow.shape[:2])
            flow, gain, paint = layers.split((2, 1, 3), dim=2)
            flow = pose + flow
        if picture.shape[-2:] != flow.shape[-2:]:
            flow, gain, paint = self._around(flow), 1 + self._around(gain - 1, RIM), self._around(paint, RIM)
        return gain * warp(picture, flow, "bicubic") + paint

    def _around(self, values: Tensor, rim: int = 0) -> Tensor:
        """A window's values [N, F, C, H, W] in a whole picture, where they fade away: outside, or within a rim."""
        height, width = self.geometry.height, self.geometry.width
        rows, columns = self.part
        pads = (columns.start, width - columns.stop, rows.start, height - rows.stop)
        spread = functional.pad(values.flatten(1, 2), pads, mode="replicate").unflatten(1, values.shape[1:3])
        down, right = (_fade(part, size, rim).to(values) for part, size in ((rows, height), (columns, width)))
        return spread * (down[:, None] * right)

    def _linear(self, latents: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """What latents [B, C, T, h, w] say by the maps alone: the head's flow in pixels [B * T, 4, 2, H, W], flow
        [B * T, 4, 2, H/p, W/p] and rest [B * T, 4, 3, H, W].
        """
        with torch.autocast(latents.device.type, enabled=False):
            code = (latents * self.scale[:, None]).transpose(1, 2).flatten(0, 1)
            _, pose, flow, rest = code.split(self.groups, dim=1)
            head = None
            if self.config.pose:
                maps = pose.mean((-2, -1)) @ self.pose_map
                head = self._head(maps.unflatten(1, (self.geometry.temporal_stride, 2, 3)))
            return head, self._flow(flow), self._rest(rest)

    @torch.no_grad()
    def without_branch(self, latents: Tensor, picture: Tensor) -> Tensor:
        """What the maps alone make of latents [B, C, T, h, w] and the window: frames [B, 3, 4 T, H, W]."""
        pose, flow, rest = self._linear(latents)
        frames = self._shown(
            picture.repeat_interleave(latents.shape[2], dim=0), pose, flow, torch.ones_like(rest[:, :, :1]), rest
        )
        return frames.unflatten(0, latents.shape[:1] + latents.shape[2:3]).flatten(1, 2).transpose(1, 2)


def _fade(part: slice, size: int, rim: int) -> Tensor:
    """1 in a part of an axis of `size` pixels, smoothly to 0 at the picture's ends; or within `rim` pixels inside."""
    pixel = torch.arange(size) + 0.5
    low, high = (rim, rim) if rim else (part.start, size - part.stop)
    begin, end = (part.start, part.stop) if rim else (0, size)
    share = torch.minimum((pixel - begin) / max(low, 1e-6), (end - pixel) / max(high, 1e-6)).clamp(0, 1)
    return share * share * (3 - 2 * share)


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
