"""Distilling a pruned decoder: Wan's full decoder shows what latents look like, the pruned one learns to show the same.

Both decode the same latents from a clip's first on, so the pruned decoder learns with the history it will have. What
people look at (faces, hands) counts more where it is marked, and what the eye is quick to see counts beside the mean:
edges at several scales, and flicker, the error's change from frame to frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from streamavatar.draws import Draws
from streamavatar.models.codec.wan import WanDecoder, WanState
from streamavatar.training.trainer import Method


@dataclass(frozen=True)
class DecoderLossConfig:
    """Weights of the parts of the loss.

    Attributes:
        marked: how much more a marked pixel counts than another.
        edges, flicker: beside the mean error.
        scales: of the edges, each half the size of the one before.
        latents: how many latents a sample trains on; those of the clip before them only make the history.
    """

    marked: float = 4.0
    edges: float = 0.5
    flicker: float = 0.5
    scales: int = 3
    latents: int = 3


def cover(boxes: Sequence[tuple[float, float, float, float]], height: int, width: int) -> Tensor:
    """How much of each latent cell is within any of some boxes.

    Args:
        boxes: left, top, right, bottom as shares of the picture, 0..1.
        height, width: cells.

    Returns:
        [height, width] in 0..1.
    """
    out = torch.zeros(height, width)
    for left, top, right, bottom in boxes:
        rows, columns = (
            (torch.clamp(high * n - torch.arange(n), 0, 1) - torch.clamp(low * n - torch.arange(n), 0, 1)).clamp_min(0)
            for low, high, n in ((top, bottom, height), (left, right, width))
        )
        out = torch.maximum(out, rows[:, None] * columns)
    return out


def _history(decoder: WanDecoder, latents: Tensor) -> WanState:
    """A decoder's state after a clip's first latents."""
    _, state = decoder.decode_start(latents[:, :, :1])
    for latent in range(1, latents.shape[2]):
        _, state = decoder.decode(latents[:, :, latent : latent + 1], state)
    return state


class PrunedDecoderMethod(Method):
    """See the module's docstring.

    Args:
        full: the decoder to learn from; it is not changed.
        pruned: the decoder that learns, see `models.codec.prune`.
        latents: of clips, the first of each a clip's first latent, [N, C, T, h, w].
        marked: share of each cell that faces and hands cover, [N, T, h, w]; see :func:`cover`.
        config: weights of the loss.
    """

    def __init__(
        self,
        full: WanDecoder,
        pruned: WanDecoder,
        latents: Tensor,
        marked: Tensor | None = None,
        config: DecoderLossConfig | None = None,
    ) -> None:
        self.config = config or DecoderLossConfig()
        if latents.shape[2] < 1 + self.config.latents:
            raise ValueError(f"clips need at least {1 + self.config.latents} latents, not {latents.shape[2]}")
        self.full, self.pruned, self.latents = full.requires_grad_(False), pruned, latents
        self.module: nn.Module = pruned
        self.frozen: tuple[nn.Module, ...] = (full,)
        self.marked = torch.zeros(len(latents), *latents.shape[2:]) if marked is None else marked
        self.stride = full.config.spatial_stride

    def loss(self, step: int, batch: int, draws: Draws) -> dict[str, Tensor]:
        count, length = self.config.latents, self.latents.shape[2]
        device = self.full.post_quant_conv.weight.device
        clips = draws.randint(0, len(self.latents), batch).cpu()
        first = 1 + draws.shared_int(length - count)
        z = self.latents[clips, :, : first + count].to(device).float()
        with torch.no_grad():
            target, _ = self.full.decode(z[:, :, first:], _history(self.full, z[:, :, :first]))
            history = _history(self.pruned, z[:, :, :first])
        made, _ = self.pruned.decode(z[:, :, first:], history)
        share = self.marked[clips, first : first + count].to(device).float()
        weight = 1 + self.config.marked * functional.interpolate(share, scale_factor=self.stride)
        weight = weight.repeat_interleave(self.full.config.temporal_stride, dim=1)[:, None]
        return self._compare(made - target, weight)

    def _compare(self, error: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """The parts of the loss of an error [B, 3, F, H, W], pixels weighted by [B, 1, F, H, W]."""
        weighted = error * weight
        mean = weighted.abs().mean()
        edges, flat = error.new_zeros(()), weighted.transpose(1, 2).flatten(0, 1)
        for scale in range(self.config.scales):
            flat = functional.avg_pool2d(flat, 2) if scale else flat
            edges = edges + (flat.diff(dim=-1).abs().mean() + flat.diff(dim=-2).abs().mean()) / self.config.scales
        flicker = weighted.diff(dim=2).abs().mean()
        psnr = 10 * torch.log10(4 / error.detach().square().mean().clamp_min(1e-12))
        loss = mean + self.config.edges * edges + self.config.flicker * flicker
        return {"loss": loss, "mean": mean, "edges": edges, "flicker": flicker, "psnr": psnr}
