"""The seam for attention: one function, so that faster kernels can be chosen here and nowhere else.

On a GPU of compute capability 9 or more FlashAttention 3 is taken where it is installed, else cuDNN's kernel; both use
Hopper's own instructions. From 8 on it is PyTorch's FlashAttention 2. What the chosen kernel cannot do (a mask,
float32) falls through to the next; :func:`using` overrides the choice.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

Kernel = Literal["fa3", "cudnn", "flash", "plain"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)
"""fa3: the flash_attn_interface package. cudnn, flash: PyTorch's. plain: whatever PyTorch prefers."""

_REST = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_ORDER = {
    "cudnn": [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, *_REST],
    "flash": [SDPBackend.FLASH_ATTENTION, *_REST],
}
_override: Kernel | None = None


def choose(capability: tuple[int, int], has_fa3: bool) -> Kernel:
    """The kernel for a GPU."""
    if capability >= (9, 0):
        # FlashAttention 3 is written for Hopper alone.
        return "fa3" if has_fa3 and capability[0] == 9 else "cudnn"
    return "flash" if capability >= (8, 0) else "plain"


@contextmanager
def using(kernel: Kernel | None) -> Iterator[None]:
    """Take this kernel on GPUs ("flash" also on the meta device), for all threads; None: what the capability says."""
    global _override
    before, _override = _override, kernel
    try:
        yield
    finally:
        _override = before


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention.

    Args:
        q: [B, heads, N, head_dim].
        k, v: [B, heads, M, head_dim].
        mask: optional [N, M] (or broadcastable) boolean, True where a query may look.

    Returns:
        [B, heads, N, head_dim].
    """
    if q.device.type == "meta" and _override == "flash":  # sizes and work as on a GPU, where scores are never stored
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
    kernel = kernel_for(q.device) if q.device.type == "cuda" else "plain"
    if kernel == "fa3" and (mask is not None or q.dtype == torch.float32):
        kernel = "cudnn"
    if kernel == "fa3":
        return _flash3(q, k, v)
    if kernel == "plain":
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    with sdpa_kernel(_ORDER[kernel], set_priority=True):
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def kernel_for(device: torch.device) -> Kernel:
    """The kernel that :func:`attention` takes on a GPU."""
    return _override or _chosen(device)


@lru_cache(maxsize=16)
def _chosen(device: torch.device) -> Kernel:
    return choose(
        torch.cuda.get_device_capability(device), importlib.util.find_spec("flash_attn_interface") is not None
    )


@lru_cache(maxsize=1)
def _flash3_function() -> Callable[..., Tensor | tuple[Tensor, ...]]:
    return importlib.import_module("flash_attn_interface").flash_attn_func


def _flash3(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """FlashAttention 3 has heads after tokens; some of its releases also return the log-sums."""
    out = _flash3_function()(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return (out if isinstance(out, Tensor) else out[0]).transpose(1, 2)
