"""ODE initialisation: regress the end of the teacher's trajectory from its noisy points (paper, 2.5)."""

from __future__ import annotations

import torch
from torch import Tensor


def pick_levels(trajectory: Tensor, sigmas: Tensor, index: Tensor, chunk_latents: int) -> tuple[Tensor, Tensor]:
    """Mixed-noise clips from trajectories.

    Args:
        trajectory: points of the solver, [B, N, C, T, H, W], N noise levels.
        sigmas: their levels, [N].
        index: which level each chunk takes, [B, chunks].
        chunk_latents: latents per chunk; latent 0 is the reference and is taken from level 0 by the caller.

    Returns:
        x [B, C, T, H, W] and sigma [B, T], with sigma 0 for the reference.
    """
    batch = trajectory.shape[0]
    per_latent = torch.cat((index[:, :1], index.repeat_interleave(chunk_latents, dim=1)), dim=1)
    rows = torch.arange(batch)[:, None]
    latents = torch.arange(per_latent.shape[1])[None]
    x = trajectory.permute(0, 1, 3, 2, 4, 5)[rows, per_latent, latents].transpose(1, 2)
    sigma = sigmas[per_latent].clone()
    sigma[:, 0] = 0
    return x, sigma
