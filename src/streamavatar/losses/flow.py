"""Flow matching as regression of the clean sample (paper, 1.6; equal to the velocity loss times sigma squared)."""

from __future__ import annotations

from torch import Tensor


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


def importance(x0: Tensor, keep: Tensor, weight: Tensor | None = None) -> Tensor:
    """What all latents count together, by which :func:`sample_loss` divides; parts of a batch are averaged by it."""
    return _share(keep, weight).expand_as(x0[:, 0]).sum().clamp_min(1e-6)


def _share(keep: Tensor, weight: Tensor | None) -> Tensor:
    return keep[:, :, None, None] if weight is None else keep[:, :, None, None] * weight
