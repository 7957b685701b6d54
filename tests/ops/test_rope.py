"""Rotary embedding against complex numbers in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from streamavatar.ops.rope import apply_rope, axis_split, rope

GRID = (2, 3)


def reference(x: Tensor, times: tuple[int, ...], grid: tuple[int, int], theta: float) -> Tensor:
    """Wan's own recipe: channel pairs as complex numbers, turned by powers of theta."""
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    token = 0
    out = torch.empty_like(pairs)
    for time in times:
        for row in range(grid[0]):
            for column in range(grid[1]):
                angles = [
                    position * theta ** (-torch.arange(0, channels, 2).double() / channels)
                    for position, channels in zip((time, row, column), axis_split(x.shape[-1]), strict=True)
                ]
                turn = torch.polar(torch.ones(x.shape[-1] // 2).double(), torch.cat(angles))
                out[..., token, :] = pairs[..., token, :] * turn
                token += 1
    return torch.view_as_real(out).flatten(-2)


@pytest.mark.parametrize(("head_dim", "split"), [(128, (44, 42, 42)), (64, (24, 20, 20)), (6, (2, 2, 2))])
def test_axis_split(head_dim: int, split: tuple[int, int, int]) -> None:
    assert axis_split(head_dim) == split


@pytest.mark.parametrize("head_dim", [6, 16, 64, 128])
@pytest.mark.parametrize("times", [(0,), (4, 5, 6), (0, 17, 3), (30_000, 30_001, 1_000_000)], ids=str)
def test_equals_complex_numbers(head_dim: int, times: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, len(times) * 6, head_dim, generator=torch.Generator().manual_seed(0))
    got = apply_rope(x, rope(times, GRID, head_dim, 10000.0))
    torch.testing.assert_close(got.double(), reference(x, times, GRID, 10000.0), atol=2e-6, rtol=0)


def test_the_origin_is_not_turned_and_lengths_are_kept() -> None:
    x = torch.randn(1, 1, 18, 16, generator=torch.Generator().manual_seed(0))
    turned = apply_rope(x, rope((0, 5, 9000), GRID, 16, 10000.0))
    assert torch.equal(turned[:, :, 0], x[:, :, 0])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


def test_logits_depend_on_differences_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 6, 64, generator=generator)

    def logits(query: int, key: int) -> Tensor:
        turned = (apply_rope(x, rope((t,), GRID, 64, 10000.0)) for x, t in ((q, query), (k, key)))
        return torch.matmul(*(x if i == 0 else x.mT for i, x in enumerate(turned))) / 8

    for far in (1, 100, 300_000):
        torch.testing.assert_close(logits(9 + far, 4 + far), logits(9, 4), atol=1e-5, rtol=0)


def test_low_precision_is_turned_in_float32() -> None:
    x = torch.randn(1, 1, 6, 16).bfloat16()
    table = rope((7,), GRID, 16, 10000.0)
    turned = apply_rope(x, table)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, apply_rope(x.float(), table).bfloat16())


def test_a_table_first_used_at_run_time_serves_training() -> None:
    with torch.inference_mode():
        rope((123_457,), GRID, 16, 10000.0)
    x = torch.randn(1, 1, 6, 16, requires_grad=True)
    apply_rope(x, rope((123_457,), GRID, 16, 10000.0)).sum().backward()
    assert x.grad is not None
