"""Triton kernels, run by Triton's interpreter, against their twins; `test_fused` starts this in a process of its own,
since the interpreter must be asked for before Triton is first imported."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from streamavatar.ops import fused, kernels
from streamavatar.ops.rope import rope

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def off(got: Tensor, expected: Tensor) -> float:
    """Distance relative to the length."""
    return float((got.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("dim", "latents"), [(48, 3), (64, 1), (96, 2)])
def test_norm_modulate(dtype: torch.dtype, dim: int, latents: int) -> None:
    x = drawn(2, latents * 5, dim, dtype=dtype) * 3 + 1
    shift, scale, _ = drawn(2, latents, 3, dim, seed=1, dtype=dtype).unbind(2)  # not contiguous, as in a block
    got = kernels.norm_modulate(x, shift, scale, 1e-6)
    assert got.dtype == dtype
    exact = fused.norm_modulate_twin(x.double(), shift.double(), scale.double(), 1e-6)
    assert off(got, exact) < TOLERANCE[dtype]
    assert off(got, fused.norm_modulate_twin(x, shift, scale, 1e-6)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_gated(dtype: torch.dtype) -> None:
    x, update = (drawn(2, 15, 48, seed=s, dtype=dtype) for s in (0, 1))
    gate = drawn(2, 3, 6, 48, seed=2, dtype=dtype)[:, :, 4]
    assert off(kernels.gated(x, update, gate), fused.gated_twin(x, update, gate)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("heads", "head_dim"), [(3, 16), (2, 32), (1, 6)])
def test_norm_rope(dtype: torch.dtype, heads: int, head_dim: int) -> None:
    table = rope((7, 8), (2, 3), head_dim, 10000.0)
    x, weight = drawn(2, 12, heads * head_dim, dtype=dtype) * 2, 1 + 0.1 * drawn(heads * head_dim, seed=1, dtype=dtype)
    got = kernels.norm_rope(x, weight, table, heads, 1e-6)
    assert got.shape == (2, heads, 12, head_dim)
    assert off(got, fused.norm_rope_twin(x, weight, table, heads, 1e-6)) < TOLERANCE[dtype]


def test_kernels_refuse_gradients() -> None:
    x = drawn(1, 4, 16).requires_grad_()
    with pytest.raises(RuntimeError, match="no backward"):
        kernels.gated(x, x, drawn(1, 2, 16))
    with torch.no_grad():
        assert kernels.gated(x, x, drawn(1, 2, 16)).isfinite().all()
