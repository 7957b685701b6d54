"""Flow matching: regression of the velocity (paper, 1.6), or of the clean sample, which is that times sigma squared."""

from __future__ import annotations

from torch import Tensor

SMALLEST = 1e-3
"""Noise levels below this count as this much, in float32 their velocities mean nothing."""


def sample_loss(estimate: Tensor, x0: Tensor, keep: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared error of x0 over the latents that were noisy.

    Args:
        estimate, x0: [B, C, T, H, W].
        keep: [B, T], 1 where a latent counts (noisy), 0 where it was given clean.
        weight: optional [B, T, H, W], for example larger around the mouth.

    Returns:
        A scalar; 0 if nothing counts.
    """
    error = (estimate - x0).float().square().mean(1)
    return (error * _share(keep, weight)).sum() / importance(x0, keep, weight)


def velocity_loss(estimate: Tensor, x0: Tensor, sigma: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared error of the velocity over the latents that were noisy, from an estimate of x0.

    The velocities of two samples that explain the same noisy one differ by the samples' difference over sigma.

    Args:
        estimate, x0: [B, C, T, H, W].
        sigma: noise levels [B, T]; 0 where a latent was given clean, which does not count.
        weight: see :func:`sample_loss`.
    """
    noisy = (sigma > 0).to(sigma.dtype)
    error = (estimate - x0).float().square().mean(1) / sigma.clamp_min(SMALLEST).square()[:, :, None, None]
    return (error * _share(noisy, weight)).sum() / importance(x0, noisy, weight)


def importance(x0: Tensor, keep: Tensor, weight: Tensor | None = None) -> Tensor:
    """What all latents count together, by which the losses divide; parts of a batch are averaged by it."""
    return _share(keep, weight).expand_as(x0[:, 0]).sum().clamp_min(1e-6)


def _share(keep: Tensor, weight: Tensor | None) -> Tensor:
    return keep[:, :, None, None] if weight is None else keep[:, :, None, None] * weight
