"""Linear layers in 8-bit floating point, an option: weights with a scale per output, inputs with a scale per token.

Products run at twice bfloat16's rate on Hopper, but inputs must be brought to eight bits first. Off unless the bench
shows that it pays (`streamavatar bench --config wan22_5b`); quality is to be looked at as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from streamavatar.ops.fused import fast

KIND = torch.float8_e4m3fn
LARGEST = torch.finfo(KIND).max


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [N, C] to eight bits [N, C] and float32 scales [N, 1]; their product is x again, nearly.

    One kernel on a GPU: in single operations this would cost what the faster product gains.
    """
    if fast(x) and fp8_possible(x.device):
        from streamavatar.ops import kernels  # needs Triton

        return kernels.quantise(x, KIND)
    return quantise_twin(x)


def quantise_twin(x: Tensor) -> tuple[Tensor, Tensor]:
    scale = x.abs().amax(dim=-1, keepdim=True).float().clamp_min(1e-12) / LARGEST
    return (x.float() / scale).clamp(-LARGEST, LARGEST).to(KIND), scale


def scaled_linear(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """Eight-bit x [N, C] and weight [M, C], each with its scales, to bfloat16 [N, M]."""
    if not x.is_cuda:
        return scaled_linear_twin(x, x_scale, weight, weight_scale, bias)
    return torch._scaled_mm(
        x,
        weight.t(),
        scale_a=x_scale,
        scale_b=weight_scale.t(),
        bias=bias,
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )


def scaled_linear_twin(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    product = functional.linear(x.float() * x_scale, weight.float() * weight_scale)
    return (product if bias is None else product + bias.float()).bfloat16()


class Fp8Linear(nn.Module):
    """Stands for a linear layer; inference alone."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        with torch.no_grad():
            self.weight, self.scale = quantise(linear.weight)
        self.bias = None if linear.bias is None else linear.bias.detach().bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        return scaled_linear(*quantise(rows), self.weight, self.scale, self.bias).to(x.dtype).view(*x.shape[:-1], -1)


def fp8_possible(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


@contextmanager
def fp8_linears(network: nn.Module) -> Iterator[None]:
    """Put eight-bit layers in the place of all linear ones below `network` whose sides are multiples of 16."""
    found = [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear) and not (child.in_features % 16 or child.out_features % 16)
    ]
    for parent, name, linear in found:
        setattr(parent, name, Fp8Linear(linear))
    try:
        yield
    finally:
        for parent, name, linear in found:
            setattr(parent, name, linear)
