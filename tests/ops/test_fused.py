"""Triton kernels against their twins, and which of the two is taken."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from streamavatar.ops import fused
from streamavatar.ops.rope import Rope, rope

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_kernels_equal_their_twins_in_the_interpreter() -> None:
    """On a CPU nothing else runs them."""
    file = Path(__file__).with_name("interpreted_kernels.py")
    command = [sys.executable, "-m", "pytest", "-q", str(file)]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def off(got: Tensor, expected: Tensor) -> float:
    """Distance relative to the length."""
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def test_the_choice_is_made_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels only where asked for, and then with the same arguments as the twin."""
    seen = []

    class Kernels:
        @staticmethod
        def gated(*args: Tensor) -> Tensor:
            seen.append(args)
            return args[0]

    monkeypatch.setattr(fused, "_kernels", Kernels)
    x, gate = drawn(1, 4, 8), drawn(1, 2, 8)
    assert torch.equal(fused.gated(x, x, gate), fused.gated_twin(x, x, gate))
    assert not seen
    monkeypatch.setattr(fused, "fast", lambda _: True)
    fused.gated(x, x, gate)
    assert [len(args) for args in seen] == [3]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_kernels_on_a_gpu(dtype: torch.dtype) -> None:
    table = rope((5, 6, 7), (4, 5), 128, 10000.0)
    table = Rope(table.cos.cuda(), table.sin.cuda())
    x, update = (drawn(1, 60, 3072, seed=s, dtype=dtype).cuda() for s in (0, 1))
    shift, scale, gate = drawn(1, 3, 3, 3072, seed=2, dtype=dtype).cuda().unbind(2)
    weight = 1 + 0.1 * drawn(3072, seed=3, dtype=dtype).cuda()
    with torch.no_grad():
        assert fused.fast(x)
        pairs = [
            (fused.norm_modulate(x, shift, scale, 1e-6), fused.norm_modulate_twin(x, shift, scale, 1e-6)),
            (fused.gated(x, update, gate), fused.gated_twin(x, update, gate)),
            (fused.norm_rope(x, weight, table, 24, 1e-6), fused.norm_rope_twin(x, weight, table, 24, 1e-6)),
        ]
        pixels = drawn(1, 96, 3, 8, 12, seed=4, dtype=dtype).cuda().to(memory_format=torch.channels_last_3d)
        gamma = 1 + 0.1 * drawn(96, 1, 1, 1, seed=5, dtype=dtype).cuda()
        joined = torch.zeros(1, 96, 5, 8, 12, dtype=dtype, device="cuda").to(memory_format=torch.channels_last_3d)
        written = fused.norm_silu(pixels, gamma, joined[:, :, 2:])
        assert written.data_ptr() == joined[:, :, 2:].data_ptr()
        pairs.append((written, fused.norm_silu_twin(pixels, gamma, torch.empty_like(pixels))))
    for got, expected in pairs:
        assert off(got, expected) < TOLERANCE[dtype]
