"""The attention seam against its definition."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor

from streamavatar.ops.attention import KERNELS, Kernel, _flash3, attention, choose, kernel_for, using


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


def test_the_kernel_follows_the_compute_capability() -> None:
    assert choose((7, 5), True) == "plain"
    assert choose((8, 0), True) == choose((8, 9), False) == "flash"
    assert choose((9, 0), False) == "cudnn"
    assert choose((9, 0), True) == "fa3"
    assert choose((10, 0), True) == "cudnn"


def test_the_choice_can_be_overridden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamavatar.ops.attention._chosen", lambda device: "cudnn")
    device = torch.device("cuda")
    with using("flash"):
        assert kernel_for(device) == "flash"
    assert kernel_for(device) == "cudnn"


def test_flash_attention_3_gets_its_own_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (torch.randn(1, 2, n, 8, generator=torch.Generator().manual_seed(n)) for n in (4, 6, 6))

    def theirs(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, None]:
        """Tokens before heads, as flash_attn_interface.flash_attn_func has it."""
        logits = torch.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5
        return torch.einsum("bhnm,bmhd->bnhd", logits.softmax(-1), v), None

    monkeypatch.setattr("streamavatar.ops.attention._flash3_function", lambda: theirs)
    torch.testing.assert_close(_flash3(q, k, v), attention(q, k, v), atol=1e-6, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_agree(kernel: Kernel) -> None:
    if kernel == "fa3" and importlib.util.find_spec("flash_attn_interface") is None:
        pytest.skip("flash_attn_interface is not installed")
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 4, n, 128, generator=g).cuda().bfloat16() for n in (96, 160, 160))
    exact = attention(q.float().cpu(), k.float().cpu(), v.float().cpu())
    with using(kernel):
        assert float((attention(q, k, v).float().cpu() - exact).norm() / exact.norm()) < 1e-2
