"""The seam for attention: one function, so that faster kernels can be chosen here and nowhere else."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention.

    Args:
        q: [B, heads, N, head_dim].
        k, v: [B, heads, M, head_dim].
        mask: optional [N, M] (or broadcastable) boolean, True where a query may look.

    Returns:
        [B, heads, N, head_dim].
    """
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
