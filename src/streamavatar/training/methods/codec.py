"""Codec training: closed-form linear maps, then a convolutional decoder around them.

The maps are principal components of space-time blocks: of the motion of pixels (`fit_linear`), or of optical flow and
of what it leaves unexplained (`fit_flow`). A third of the blocks are drawn from around mouths, where most of what
matters happens in few pixels.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from streamavatar.data.prepare import Footage
from streamavatar.draws import Draws
from streamavatar.models.codec.flow import FlowCodec, Motion
from streamavatar.models.codec.light import LightCodec
from streamavatar.training.trainer import Method

MOUTH, LEFT = 8, 4
"""How much more a pixel counts that the mouth covers, and at most one that is hard."""
OFFERED = 3
"""Pieces of a clip from which the hardest is taken."""


def to_unit(frames: np.ndarray | Tensor) -> Tensor:
    """uint8 [..., F, H, W, 3] to float [..., 3, F, H, W] in -1..1."""
    x = torch.as_tensor(frames).float() / 127.5 - 1
    return x.movedim(-1, -4)


def _picks(mouth: Tensor, count: int, mouth_share: float, generator: torch.Generator) -> Tensor:
    """Numbers of blocks of a clip: some anywhere, some that touch the mouth."""
    chosen = [torch.randint(mouth.numel(), (int(count * (1 - mouth_share)),), generator=generator)]
    at_mouth = (mouth.flatten() > 0).nonzero()[:, 0]
    if len(at_mouth):
        chosen.append(at_mouth[torch.randint(len(at_mouth), (int(count * mouth_share),), generator=generator)])
    return torch.cat(chosen)


def fit(codec: LightCodec | FlowCodec, footage: Footage, *, seed: int = 0) -> None:
    """Fit the maps that a codec has, in place."""
    if isinstance(codec, FlowCodec):
        fit_flow(codec, footage, seed=seed)
    else:
        fit_linear(codec, footage.frames, footage.mouths, seed=seed)


@torch.no_grad()
def fit_linear(
    codec: LightCodec,
    clips: np.ndarray,
    mouths: Tensor,
    *,
    mouth_share: float = 0.35,
    still_share: float = 0.03,
    seed: int = 0,
) -> None:
    """Fit the linear part and the latents' scale.

    Args:
        codec: changed in place.
        clips: uint8 [N, F, H, W, 3].
        mouths: share of each latent cell that the mouth covers, [N, T, h, w].
        mouth_share: share of the blocks that touch the mouth.
        still_share: weight of whole pictures beside that of motion (the difference to a clip's first latent).
    """
    generator = torch.Generator().manual_seed(seed)

    size = codec.mean.shape[0]
    count, mean = 0, torch.zeros(size, dtype=torch.float64)
    picture, motion = torch.zeros(size, size), torch.zeros(size, size)
    for clip, mouth in zip(clips, mouths, strict=True):
        picks = partial(_picks, mouth, 800, mouth_share, generator)
        blocks = codec.blocks(to_unit(clip)[None])
        moved = (blocks - blocks[:, :1]).flatten(0, 3)
        rows, change = blocks.flatten(0, 3)[picks()], moved[picks()]
        count += len(rows)
        mean += rows.double().sum(0)
        picture += rows.t() @ rows
        motion += change.t() @ change
    mean = (mean / count).float()
    covariance = motion / count + still_share * (picture / count - torch.outer(mean, mean))
    _, vectors = torch.linalg.eigh(covariance)
    codec.fit_blocks(mean, vectors.flip(1)[:, : codec.analysis.shape[0]].t())
    fit_scale(codec, clips)


@torch.no_grad()
def fit_scale(codec: LightCodec, clips: np.ndarray) -> None:
    """Scale the latents: half-way (in the logarithm) between even channels and the spread of their motion."""
    codec.fit_scale(torch.zeros_like(codec.shift), torch.ones_like(codec.scale), torch.ones_like(codec.scale))
    latents = torch.cat([codec.encode(to_unit(clip)[None]) for clip in clips])
    shift, spread = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
    motion = (latents[:, :, 1:] - latents[:, :, :1]).square().mean((0, 2, 3, 4)).sqrt().clamp_min(1e-4)
    # Full whitening would spend the model on noise-like detail, none at all would hide the lips.
    overall = motion.square().mean().sqrt()
    codec.fit_scale(shift, (motion * overall).sqrt(), spread)


@torch.no_grad()
def fit_flow(
    codec: FlowCodec, footage: Footage, *, mouth_share: float = 0.35, latents: int = 12, seed: int = 0
) -> None:
    """Fit the maps of a flow codec, one group of channels after the other, and the latents' scale.

    Args:
        codec: changed in place.
        footage: clips with their motion.
        mouth_share: share of the blocks that touch the mouth.
        latents: how many of each clip's latents are looked at.
    """
    generator = torch.Generator().manual_seed(seed)
    looks = torch.cat([codec.looks_of(to_unit(clip[:1])[:, 0][None]).flatten(0, 2) for clip in footage.frames])
    codec.look_mean.copy_(looks.mean(0))
    codec.look_map.copy_(_components((looks - codec.look_mean).t() @ (looks - codec.look_mean), codec.looks))

    def some(clip: int) -> tuple[Tensor, Motion, Tensor]:
        """Pictures, motion and mouths of some latents of a clip, the reference first."""
        count = footage.mouths.shape[1]
        chosen = 1 + torch.randperm(count - 1, generator=generator)[:latents].sort().values
        frames = [0, *(f for k in chosen.tolist() for f in codec.geometry.latent_frames(k))]
        return to_unit(footage.frames[clip][frames])[None], _motion(footage, clip, frames), footage.mouths[clip][chosen]

    def products(blocks: Tensor, mouth: Tensor) -> Tensor:
        """Sums of products of blocks [1, n, h, w, size]: of every cell, or of some anywhere and at the mouth."""
        if codec.places == (1, 1):
            blocks = blocks.flatten(0, 3)[_picks(mouth, 400, mouth_share, generator)][:, None, None]
        else:
            blocks = blocks[0]
        return torch.einsum("nyxs,nyxt->yxst", blocks, blocks)

    poses = torch.zeros(codec.pose_map.shape[1], codec.pose_map.shape[1])
    flows, rests = (torch.zeros(*m.shape[:2], m.shape[-1], m.shape[-1]) for m in (codec.flow_map, codec.rest_map))
    for clip in range(len(footage.frames)):
        _, motion, mouth = some(clip)
        heads = codec.poses_of(motion.pose[:, 1:])[0]
        poses += heads.t() @ heads
        flows += products(codec.flows_of(motion.flow[:, :, 1:]), mouth)
    codec.pose_map.copy_(_components(poses, len(codec.pose_map)))
    codec.flow_map.copy_(_components(flows, codec.flow_map.shape[2]))
    for clip in range(len(footage.frames)):
        pictures, motion, mouth = some(clip)
        rests += products(codec.unexplained(pictures, motion), mouth)
    codec.rest_map.copy_(_components(rests, codec.rest_map.shape[2]))

    codec.scale.fill_(1)
    found = torch.cat([codec.encode(pictures, motion) for pictures, motion, _ in map(some, range(len(footage.frames)))])
    spread = found.square().mean((0, 2)).sqrt()
    if codec.places == (1, 1):
        spread = spread.square().mean((1, 2), keepdim=True).sqrt()
    # Appearance is given, never made. The others: half-way between even channels and their own spread, see `fit_scale`.
    look, *others = spread.clamp_min(1e-6).split(codec.groups)
    look = look.square().mean((1, 2), keepdim=True).sqrt().expand_as(look)
    codec.scale.copy_(torch.cat([look, *((group * group.square().mean().sqrt()).sqrt() for group in others)]))
    codec.latent_spread.copy_((spread / codec.scale).square().mean((1, 2)).sqrt().clamp_min(1e-3))


def _motion(footage: Footage, clip: int, frames: list[int] | slice) -> Motion:
    """Of some frames of a clip, a batch of one."""
    assert footage.motion is not None
    pose, flow = footage.motion.pose[clip, frames], footage.motion.flow[clip, :, frames]
    return Motion(pose.float()[None], flow.float()[None])


def _components(products: Tensor, count: int) -> Tensor:
    """The `count` largest principal components of sums of products [..., size, size], as rows [..., count, size]."""
    size = products.shape[-1]
    least = 1e-6 * products.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-6)
    # Cells where nothing happens have components too: any, but always the same.
    products = products + least[..., None, None] * torch.linspace(1, 2, size).diag()
    _, vectors = torch.linalg.eigh(products)
    return vectors.flip(-1)[..., :count].transpose(-2, -1)


def decoder_method(codec: LightCodec | FlowCodec, footage: Footage) -> Method:
    """How a codec's decoder is trained."""
    return FlowDecoderMethod(codec, footage) if isinstance(codec, FlowCodec) else DecoderMethod(codec, footage)


class DecoderMethod(Method):
    """The decoder's convolutions, on short pieces of clips; the linear maps stay as fitted.

    Args:
        codec: with its linear maps fitted.
        footage: clips.
        latents: length of the pieces.
    """

    def __init__(self, codec: LightCodec, footage: Footage, latents: int = 3) -> None:
        codec.requires_grad_(False)
        codec.detail.requires_grad_(True)
        self.module: nn.Module = codec
        self.codec, self.latents = codec, latents
        self.clips, self.mouths = footage.frames, footage.mouths

    def to(self, device: torch.device) -> None:
        super().to(device)
        self.mouths = self.mouths.to(device)

    def loss(self, step: int, batch: int, draws: Draws) -> dict[str, Tensor]:
        geometry = self.codec.geometry
        span = self.latents * geometry.temporal_stride
        clip = draws.randint(0, len(self.clips), batch)
        latent = draws.randint(1, geometry.latents_of(self.clips.shape[1]) - self.latents + 1, batch)
        picks = list(zip(clip.tolist(), latent.tolist(), strict=True))
        first = [geometry.latent_frames(k)[0] for k in latent.tolist()]
        pictures = to_unit(np.stack([self.clips[c, :1] for c, _ in picks]))
        moving = to_unit(np.stack([self.clips[c, s - 1 : s + span] for (c, _), s in zip(picks, first, strict=True)]))
        mouth = torch.stack([self.mouths[c, k : k + self.latents] for c, k in picks])
        weight = 1 + MOUTH * functional.interpolate(mouth, scale_factor=geometry.spatial_stride)
        weight = weight.repeat_interleave(geometry.temporal_stride, dim=1)[:, None]
        # What stands still is easy; what moves (lips, hands, lids) is little of the picture and counts more.
        moved = (moving[:, :, 1:] - pictures).abs().mean(dim=1, keepdim=True)
        weight = weight + LEFT * (2 * moved).clamp_max(1)
        with torch.autocast(mouth.device.type, enabled=False):
            z = _disturbed(self.codec.encode(moving)[:, :, 1:], draws)
            _, state = self.codec.open(pictures[:, :, 0])
        out, _ = self.codec.decode(z, state)
        return _compared(out - moving[:, :, 1:], weight)


class FlowDecoderMethod(Method):
    """The branch of a flow codec, on short pieces of clips; the maps stay as fitted.

    Of a few pieces of a clip the hardest is taken: mouths are wide open for a small part of the time.

    Args:
        codec: with its maps fitted.
        footage: clips with their motion.
        latents: length of the pieces.
    """

    def __init__(self, codec: FlowCodec, footage: Footage, latents: int = 3) -> None:
        codec.requires_grad_(False)
        codec.detail.requires_grad_(True)
        self.module: nn.Module = codec
        self.codec, self.latents, self.footage = codec, latents, footage
        self._seen: dict[int, tuple[Tensor, Tensor]] = {}

    def loss(self, step: int, batch: int, draws: Draws) -> dict[str, Tensor]:
        geometry, frames, count = self.codec.geometry, self.footage.frames, self.latents
        clip = draws.randint(0, len(frames), batch).tolist()
        seen = [self._latents_and_weight(c) for c in clip]
        offered = draws.randint(1, geometry.latents_of(frames.shape[1]) - count + 1, batch, OFFERED).tolist()
        hard = [[float(w[k - 1 : k - 1 + count].sum()) for k in ks] for (_, w), ks in zip(seen, offered, strict=True)]
        first = [ks[int(np.argmax(each))] for ks, each in zip(offered, hard, strict=True)]
        z = torch.stack([x[:, k - 1 : k + count].float() for (x, _), k in zip(seen, first, strict=True)])
        weight = torch.stack([w[k - 1 : k - 1 + count].float() for (_, w), k in zip(seen, first, strict=True)])
        spans = [slice(f := geometry.latent_frames(k)[0], f + count * geometry.temporal_stride) for k in first]
        pictures = to_unit(np.stack([frames[c, 0] for c in clip])[:, None])[:, :, 0].to(z.device)
        target = torch.stack([to_unit(frames[c, s]) for c, s in zip(clip, spans, strict=True)]).to(z.device)
        with torch.autocast(z.device.type, enabled=False):
            z = _disturbed(z, draws)
            _, state = self.codec.open(pictures)
        out, _ = self.codec.decode(z[:, :, 1:], replace(state, previous=z[:, :, 0]))
        weight = weight.repeat_interleave(geometry.temporal_stride, dim=1)
        return _compared(out - target, functional.interpolate(weight, scale_factor=self.codec.patch)[:, None])

    @torch.no_grad()
    def _latents_and_weight(self, clip: int) -> tuple[Tensor, Tensor]:
        """A clip's latents [C, T, h, w], and how much each cell of the flow's grid counts [T - 1, H/p, W/p]."""
        if clip not in self._seen:
            device = self.codec.scale.device
            frames = to_unit(self.footage.frames[clip])[None].to(device)
            with torch.autocast(device.type, enabled=False):
                motion = _motion(self.footage, clip, slice(None))
                z = self.codec.encode(frames, Motion(motion.pose.to(device), motion.flow.to(device)))
                easy = self.codec.without_branch(z[:, :, 1:], frames[:, :, 0])
            left = functional.avg_pool2d((frames[:, :, 1:] - easy).abs().mean(1), self.codec.patch)
            left = left[0].unflatten(0, (-1, self.codec.geometry.temporal_stride)).mean(1)
            mouth = self.footage.mouths[clip][1:].to(left)
            mouth = functional.interpolate(mouth[None], size=left.shape[-2:])[0]
            # What is easy leaves little; what is not (an open mouth, a lid, a hand) is little and counts more.
            weight = 1 + MOUTH * mouth + LEFT * (6 * left).clamp_max(1)
            self._seen[clip] = z[0].half(), weight.half()
        return self._seen[clip]


def _disturbed(z: Tensor, draws: Draws) -> Tensor:
    """Latents with small errors, as the transformer's have, so that the decoder learns to live with them."""
    return z + draws.randn(*z.shape) * 0.2 * draws.rand(len(z), 1, 1, 1, 1)


def _compared(difference: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """The loss of an error [B, 3, F, H, W] with the weights of its pixels [B, 1, F, H, W]."""
    error = difference * weight
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    psnr = 10 * torch.log10(4 / difference.detach().square().mean())
    return {"loss": error.abs().mean() + 0.5 * edges, "psnr": psnr}
