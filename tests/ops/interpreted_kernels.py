"""Triton kernels, run by Triton's interpreter, against their twins; `test_fused` starts this in a process of its own,
since the interpreter must be asked for before Triton is first imported."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from streamavatar.ops import fp8, fused, kernels
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


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("channels", [5, 64])
def test_norm_silu(dtype: torch.dtype, channels: int) -> None:
    """Into the later frames of a longer tensor, whose first ones stay."""
    x = drawn(2, channels, 3, 4, 7, dtype=dtype).to(memory_format=torch.channels_last_3d) * 3
    gamma = 1 + 0.1 * drawn(channels, 1, 1, 1, seed=1, dtype=dtype)
    joined = torch.full((2, channels, 5, 4, 7), 7.0, dtype=dtype).to(memory_format=torch.channels_last_3d)
    expected = fused.norm_silu_twin(x.double(), gamma.double(), torch.empty_like(x, dtype=torch.float64))
    out = joined[:, :, 2:]
    assert fused._pixel_rows(x)
    assert fused._pixel_rows(out)
    assert kernels.norm_silu(x, gamma, out) is out
    assert off(joined[:, :, 2:], expected) < TOLERANCE[dtype]
    assert bool((joined[:, :, :2] == 7).all())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_quantise(dtype: torch.dtype) -> None:
    x = drawn(6, 48, dtype=dtype) * torch.logspace(-3, 3, 6).to(dtype)[:, None]
    x[2] = 0
    values, scales = kernels.quantise(x, fp8.KIND)
    expected, their_scales = fp8.quantise_twin(x)
    assert values.dtype == fp8.KIND
    torch.testing.assert_close(scales, their_scales)
    # The interpreter, not the GPU, loses the carry where rounding reaches a power of two: 127 becomes 64 and not 128.
    mantissa = expected.float().frexp().mantissa.abs()
    assert torch.equal(values.float()[mantissa != 0.5], expected.float()[mantissa != 0.5])


def test_kernels_refuse_gradients() -> None:
    x = drawn(1, 4, 16).requires_grad_()
    with pytest.raises(RuntimeError, match="no backward"):
        kernels.gated(x, x, drawn(1, 2, 16))
    with torch.no_grad():
        assert kernels.gated(x, x, drawn(1, 2, 16)).isfinite().all()
