"""Relativistic adversarial losses with finite-difference R1 and R2 (paper, 3; R3GAN's form, APT's penalty).

Logits come in pairs: one per latent from the local branch [B, T - 1], one per clip from the global branch [B]. The real
and the fake clip of a pair share reference and audio. Exact gradient penalties need a second backward pass, which flash
attention and sharded parameters do not have; the finite difference lam * |D(x) - D(x + sd * n)|^2 does without.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from streamavatar.draws import Draws
from streamavatar.models.discriminator import Logits


def relativistic(winner: Logits, loser: Logits, global_weight: float = 1.0) -> Tensor:
    """Mean softplus(-(winner - loser)) over both branches.

    The discriminator minimises `relativistic(real, fake)`, the generator `relativistic(fake, real)`.
    """
    return _over_branches(winner, loser, lambda difference: functional.softplus(-difference).mean(), global_weight)


def penalty(logits: Logits, disturbed: Logits) -> Tensor:
    """Mean squared change of the logits under a small disturbance of the input: R1 on real clips, R2 on fake ones."""
    return _over_branches(logits, disturbed, lambda difference: difference.square().mean())


def _over_branches(a: Logits, b: Logits, term: Callable[[Tensor], Tensor], global_weight: float = 1.0) -> Tensor:
    """The sum of a term of the branches' differences a - b."""
    total = torch.zeros((), device=next(x for x in a if x is not None).device)
    for left, right, weight in ((a.local, b.local, 1.0), (a.overall, b.overall, global_weight)):
        if left is not None and right is not None:
            total = total + weight * term(left - right)
    return total


def disturb(x: Tensor, sd: float, draws: Draws) -> Tensor:
    """x with noise on all but the reference latent, [B, C, T, H, W]."""
    noise = sd * draws.randn(*x.shape).to(x)
    noise[:, :, 0] = 0
    return x + noise
