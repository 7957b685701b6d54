"""Codec training: a closed-form linear part, then a convolutional decoder around it.

The linear part is the principal components of the motion of space-time blocks (appearance comes from the reference
picture), a third of them drawn from around mouths, where most of what matters happens in few pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from streamavatar.models.codec import LightCodec
from streamavatar.training.trainer import Method


def to_unit(frames: np.ndarray | Tensor) -> Tensor:
    """uint8 [..., F, H, W, 3] to float [..., 3, F, H, W] in -1..1."""
    x = torch.as_tensor(frames).float() / 127.5 - 1
    return x.movedim(-1, -4)


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

    def picks(mouth: Tensor, count: int = 800) -> Tensor:
        """Blocks of a clip: some anywhere, some that touch the mouth."""
        chosen = [torch.randint(mouth.numel(), (int(count * (1 - mouth_share)),), generator=generator)]
        at_mouth = (mouth.flatten() > 0).nonzero()[:, 0]
        if len(at_mouth):
            chosen.append(at_mouth[torch.randint(len(at_mouth), (int(count * mouth_share),), generator=generator)])
        return torch.cat(chosen)

    size = codec.mean.shape[0]
    count, mean = 0, torch.zeros(size, dtype=torch.float64)
    picture, motion = torch.zeros(size, size), torch.zeros(size, size)
    for clip, mouth in zip(clips, mouths, strict=True):
        blocks = codec.blocks(to_unit(clip)[None])
        moved = (blocks - blocks[:, :1]).flatten(0, 3)
        rows, change = blocks.flatten(0, 3)[picks(mouth)], moved[picks(mouth)]
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


class DecoderMethod(Method):
    """The decoder's convolutions, on short pieces of clips; the linear part stays as fitted.

    Args:
        codec: with its linear part fitted.
        clips: uint8 [N, F, H, W, 3]; may be a memory map.
        mouths: [N, T, h, w], see :func:`fit_linear`.
    """

    def __init__(self, codec: LightCodec, clips: np.ndarray, mouths: Tensor, latents: int = 3) -> None:
        codec.analysis.requires_grad_(False)
        codec.synthesis.requires_grad_(False)
        self.module: nn.Module = codec
        self.codec, self.clips, self.mouths, self.latents = codec, clips, mouths, latents

    def to(self, device: torch.device) -> None:
        super().to(device)
        self.mouths = self.mouths.to(device)

    def loss(self, step: int, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        geometry = self.codec.geometry
        span = self.latents * geometry.temporal_stride
        clip = torch.randint(len(self.clips), (batch,), generator=generator)
        latent = torch.randint(
            1, geometry.latents_of(self.clips.shape[1]) - self.latents + 1, (batch,), generator=generator
        )
        picks = list(zip(clip.tolist(), latent.tolist(), strict=True))
        first = [geometry.latent_frames(k)[0] for k in latent.tolist()]
        pictures = to_unit(np.stack([self.clips[c, :1] for c, _ in picks]))
        moving = to_unit(np.stack([self.clips[c, s - 1 : s + span] for (c, _), s in zip(picks, first, strict=True)]))
        mouth = torch.stack([self.mouths[c, k : k + self.latents] for c, k in picks])
        weight = 1 + 8 * functional.interpolate(mouth, scale_factor=geometry.spatial_stride)
        weight = weight.repeat_interleave(geometry.temporal_stride, dim=1)[:, None]
        # What is unlike the reference (a hand, an open mouth, a nod) has to be painted; it is little and counts more.
        changed = (moving[:, :, 1:] - pictures).abs().mean(dim=1, keepdim=True)
        weight = weight + 4 * (2 * changed).clamp_max(1)
        with torch.autocast(mouth.device.type, enabled=False):
            z = self.codec.encode(moving)[:, :, 1:]
            # The transformer's latents are not exact; the decoder learns to live with small errors.
            z = z + torch.randn(z.shape, generator=generator) * 0.2 * torch.rand(batch, 1, 1, 1, 1, generator=generator)
            _, state = self.codec.open(pictures[:, :, 0])
        out, _ = self.codec.decode(z, state)
        difference = out - moving[:, :, 1:]
        error = difference * weight
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        psnr = 10 * torch.log10(4 / difference.detach().square().mean())
        return {"loss": error.abs().mean() + 0.5 * edges, "psnr": psnr}
