"""Score identity Distillation: the student's loss and the fake score's (paper, 2.7).

With x the student's rollout, f the real score's estimate of x0 (guided) and g the fake score's, both from the same
noised x, the student minimises

    L = mean[ (f - g) * ((f - x) - alpha * (f - g)) / stopgrad(mean |x - f|) ]

which is SiD's (1 - alpha) |f - g|^2 + (f - g)(g - x), normalised per sample. Gradients flow through the noised x into
both scores, so neither may be computed without gradient; what this leaves in the fake score's parameters has to be
zeroed before its own step. The reference latent is given, not made: it counts neither in the loss nor in the norm.
"""

from __future__ import annotations

import torch
from torch import Tensor

from streamavatar.schedule import velocity_from_sample


def guided(conditional: Tensor, unconditional: Tensor, weight: float) -> Tensor:
    """The paper's guidance: c + w (c - u); w = 3 is classifier-free guidance of 4."""
    return conditional + weight * (conditional - unconditional)


def sid_loss(x: Tensor, real: Tensor, fake: Tensor, *, alpha: float = 1.0) -> Tensor:
    """The student's loss, in float64.

    Args:
        x: the student's rollout, [B, C, T, H, W], the reference first.
        real, fake: estimates of x0 from the same noised x, with gradient to x.
        alpha: weight of the squared difference; 1 leaves the cross term alone.

    Returns:
        A scalar; samples whose term is not finite count as 0.
    """
    x, real, fake = (v[:, :, 1:].double() for v in (x, real, fake))
    difference = real - fake
    norm = (x - real).detach().abs().mean(dim=(1, 2, 3, 4), keepdim=True)
    terms = difference * ((real - x) - alpha * difference) / norm
    return torch.nan_to_num(terms, nan=0.0, posinf=0.0, neginf=0.0).mean()


def dmd_loss(x: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """Distribution Matching Distillation's gradient as a loss, for ablation: no gradient through the scores.

    Args and shapes as :func:`sid_loss`.
    """
    x, real, fake = (v[:, :, 1:].double() for v in (x, real.detach(), fake.detach()))
    norm = (x - real).detach().abs().mean(dim=(1, 2, 3, 4), keepdim=True)
    direction = torch.nan_to_num((fake - real) / norm)
    return 0.5 * (x - (x - direction).detach()).square().mean()


def critic_loss(estimate: Tensor, noised: Tensor, x: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Flow matching of the fake score on the student's rollout: mean |v - (noise - x)|^2 over made latents.

    Args:
        estimate: the fake score's x0, [B, C, T, H, W].
        noised: its input.
        x: the rollout, without gradient.
        noise: that was added.
        sigma: noise levels [B, T]; the first column, the reference's, is 0.
    """
    velocity = velocity_from_sample(noised, estimate, sigma)
    return (velocity - (noise - x))[:, :, 1:].float().square().mean()
