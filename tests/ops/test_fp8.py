"""Eight-bit linear layers: what quantisation loses, and that layers come back as they were."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from streamavatar.ops.fp8 import (
    Fp8Linear,
    fp8_linears,
    fp8_possible,
    quantise,
    quantise_twin,
    scaled_linear,
    scaled_linear_twin,
)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_quantised_values_are_near_whatever_the_row_s_size() -> None:
    x = drawn(64, 256) * torch.logspace(-6, 6, 64)[:, None]
    values, scale = quantise(x)
    assert values.dtype == torch.float8_e4m3fn
    back = values.float() * scale
    # Three bits of mantissa: within a sixteenth of the value, or of the smallest normal number at that scale.
    assert bool(((back - x).abs() <= x.abs() / 16 + scale * 2**-6 / 16).all())
    assert bool((back.abs().amax(-1) / x.abs().amax(-1) - 1).abs().max() < 1e-3)


def test_rows_of_zeros_stay_zeros() -> None:
    values, scale = quantise(torch.zeros(2, 16))
    assert not (values.float() * scale).any()
    assert bool(scale.isfinite().all())


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_near_the_one_it_stands_for(bias: bool) -> None:
    linear, x = nn.Linear(256, 64, bias=bias).requires_grad_(False), drawn(2, 5, 256)
    got = Fp8Linear(linear)(x)
    assert got.dtype == x.dtype
    assert float((got - linear(x)).norm() / linear(x).norm()) < 0.05


def test_layers_come_back() -> None:
    network = nn.Sequential(nn.Linear(32, 48), nn.Sequential(nn.Linear(48, 32)), nn.Linear(32, 5))
    before, x = list(network.modules()), drawn(3, 32)
    plain = network(x)
    with fp8_linears(network):
        assert [isinstance(m, Fp8Linear) for m in (network[0], network[1][0], network[2])] == [True, True, False]
        assert not torch.equal(network(x), plain)
    assert list(network.modules()) == before


@pytest.mark.gpu
def test_products_on_a_gpu_equal_the_twin() -> None:
    if not fp8_possible(torch.device("cuda")):
        pytest.skip("this GPU has no 8-bit products")
    rows, columns = (drawn(n, 256, seed=n).cuda() for n in (96, 64))
    with torch.no_grad():  # by the kernel
        x, weight = quantise(rows), quantise(columns)
    for (values, scale), given in ((x, rows), (weight, columns)):
        theirs, their_scale = quantise_twin(given)
        torch.testing.assert_close(scale, their_scale)
        same = values.float() == theirs.float()
        assert float(same.float().mean()) > 0.99  # a division rounded otherwise may fall on the other side
    bias = drawn(64).cuda().bfloat16()
    got, expected = scaled_linear(*x, *weight, bias), scaled_linear_twin(*x, *weight, bias)
    assert float((got - expected).float().norm() / expected.float().norm()) < 1e-2
