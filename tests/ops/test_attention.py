"""The attention seam against its definition."""

from __future__ import annotations

import pytest
import torch

from streamavatar.ops.attention import attention


@pytest.mark.parametrize("masked", [False, True])
def test_equals_softmax_of_products(masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, generator=generator) for n in (4, 6, 6))
    mask = torch.rand(4, 6, generator=generator) < 0.6 if masked else None
    logits = q.double() @ k.double().mT / 8**0.5
    if mask is not None:
        mask[:, 0] = True
        logits = logits.masked_fill(~mask, -torch.inf)
    torch.testing.assert_close(attention(q, k, v, mask).double(), logits.softmax(-1) @ v.double(), atol=1e-6, rtol=0)


def test_the_order_of_keys_does_not_matter() -> None:
    q, k, v = (torch.randn(1, 2, n, 8, generator=torch.Generator().manual_seed(n)) for n in (4, 6, 7))
    v = v[:, :, :6]
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(attention(q, k[:, :, order], v[:, :, order]), attention(q, k, v), atol=1e-6, rtol=0)
