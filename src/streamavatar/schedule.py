"""Flow matching in one place: noise levels, noising, and what a prediction means (paper, 1.1 and 2.6).

The path is x_s = (1 - s) x0 + s * noise with s (sigma) in [0, 1]; the velocity is noise - x0. The network sees
timesteps of 1000 * sigma. All functions are pure; `sigma` broadcasts over latents: it has shape [B, T] for
latents [B, C, T, H, W].
"""

from __future__ import annotations

import torch
from torch import Tensor

TIMESTEPS = 1000.0


def expand(sigma: Tensor) -> Tensor:
    """[B, T] to [B, 1, T, 1, 1], to broadcast over latents [B, C, T, H, W]."""
    return sigma[:, None, :, None, None]


def add_noise(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x_s = (1 - s) x0 + s * noise, for latents [B, C, T, H, W] and sigma [B, T]."""
    s = expand(sigma).to(x0.dtype)
    return (1 - s) * x0 + s * noise


def sample_from_velocity(x: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """x0 = x_s - s * v."""
    return x - expand(sigma).to(x.dtype) * velocity


def velocity_from_sample(x: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    """v = (x_s - x0) / s; undefined at s = 0, where the result is 0."""
    s = expand(sigma).to(x.dtype)
    return torch.where(s > 0, (x - x0) / s.clamp_min(1e-6), torch.zeros_like(x))


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """Move noise levels towards 1: s -> shift*s / (1 + (shift-1)*s), as Wan2.2 does (shift 5 at 720p)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def solver_sigmas(steps: int, shift: float) -> Tensor:
    """Falling noise levels of a multi-step solver, [steps + 1], from 1 to 0, evenly spaced before the shift."""
    if steps < 1:
        raise ValueError(f"schedule: a solver needs at least one step, got {steps}")
    return shift_sigma(torch.linspace(1.0, 0.0, steps + 1, device="cpu"), shift)
