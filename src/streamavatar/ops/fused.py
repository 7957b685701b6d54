"""Norms and products that are slow for what they do, as one Triton kernel each, beside their twins in plain torch.

A block moves its tokens through memory for every small operation, and on a GPU that is what these cost. The functions
without a prefix choose: the kernel on a GPU where Triton is installed and no gradient is wanted, else the twin.
Kernels compute in float32 and round once, at the end.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from streamavatar.ops.rope import Rope, apply_rope


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


_allowed = True


@contextmanager
def without_kernels() -> Iterator[None]:
    """Take the twins everywhere, for all threads."""
    global _allowed
    before, _allowed = _allowed, False
    try:
        yield
    finally:
        _allowed = before


def fast(x: Tensor) -> bool:
    """Whether tokens are taken by a kernel. Kernels have no backward pass."""
    return _allowed and x.is_cuda and _has_triton() and not torch.is_grad_enabled()


def _kernels() -> Any:
    from streamavatar.ops import kernels  # needs Triton

    return kernels


def _choose(kernel: str, twin: Callable[..., Tensor], x: Tensor, *rest: Any) -> Tensor:
    return getattr(_kernels(), kernel)(x, *rest) if fast(x) else twin(x, *rest)


# layer norm, scale and shift -----------------------------------------------------------------------


def norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """norm(x) (1 + scale) + shift with a shift and scale per latent: x [B, T*N, dim], the others [B, T, dim]."""
    return _choose("norm_modulate", norm_modulate_twin, x, shift, scale, eps)


def norm_modulate_twin(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    rows = functional.layer_norm(x, x.shape[-1:], eps=eps).unflatten(1, (shift.shape[1], -1))
    return torch.addcmul(shift[:, :, None], rows, 1 + scale[:, :, None]).flatten(1, 2)


# gated residual ------------------------------------------------------------------------------------


def gated(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """x + gate * update with one gate per latent: x and update [B, T*N, dim], gate [B, T, dim]."""
    return _choose("gated", gated_twin, x, update, gate)


def gated_twin(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    latents = (gate.shape[1], -1)
    return x + (update.unflatten(1, latents) * gate[:, :, None]).flatten(1, 2)


# RMS norm and rotation of queries and keys ---------------------------------------------------------


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm in the input's precision, so that PyTorch's fused kernel also serves float32 weights under autocast."""
    return functional.rms_norm(x, x.shape[-1:], weight.to(x.dtype), eps)


def norm_rope(x: Tensor, weight: Tensor, table: Rope, heads: int, eps: float) -> Tensor:
    """RMS norm over all heads together, then RoPE: x [B, N, dim], weight [dim] to [B, heads, N, head_dim]."""
    return _choose("norm_rope", norm_rope_twin, x, weight, table, heads, eps)


def norm_rope_twin(x: Tensor, weight: Tensor, table: Rope, heads: int, eps: float) -> Tensor:
    return apply_rope(rms_norm(x, weight, eps).unflatten(-1, (heads, -1)).transpose(-3, -2), table)


# norm of channels and SiLU, into their place ---------------------------------------------------------


def norm_silu(x: Tensor, gamma: Tensor, out: Tensor) -> Tensor:
    """silu(channels at unit root mean square, times gamma) into `out`; for inference.

    Args:
        x: [B, C, T, h, w].
        gamma: [C], or with dimensions of one behind.
        out: of x's shape and type; may be frames of a longer tensor, so that nothing is copied to get there.
    """
    if fast(x) and all(_pixel_rows(t) for t in (x, out)):
        return _kernels().norm_silu(x, gamma, out)
    return norm_silu_twin(x, gamma, out)


def _pixel_rows(x: Tensor) -> bool:
    """Whether the channels of a pixel lie side by side and the pixels of a batch's frames follow each other."""
    _, channels, _, height, width = x.shape
    return x.stride()[1:] == (1, height * width * channels, width * channels, channels)


def norm_silu_twin(x: Tensor, gamma: Tensor, out: Tensor) -> Tensor:
    normed = functional.normalize(x, dim=1) * (gamma.view(-1, 1, 1, 1) * x.shape[1] ** 0.5)
    return torch.ops.aten.silu.out(normed, out=out)
