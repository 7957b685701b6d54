"""The Triton kernels of `fused` and `fp8`; only imported where Triton is. A program handles one token, or a few pixels.

Every launch is made on the device of its tensors: Triton takes the current one, which is another where the decoder has
a GPU of its own.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from streamavatar.ops.rope import Rope


def _refuse_gradients(*tensors: Tensor) -> None:
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        raise RuntimeError("this kernel has no backward pass; use its twin where gradients are wanted")


def _settings(dim: int) -> dict[str, Any]:
    """A row is read at once; 16 bytes per thread and load where it is long enough."""
    block = triton.next_power_of_2(dim)
    return {"BLOCK": block, "num_warps": min(max(block // 512, 1), 8)}


@triton.jit
def _norm_modulate(x, shift, scale, out, tokens, eps, shift_row, scale_row, DIM: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    latent = row // tokens
    at = tl.arange(0, BLOCK)
    inside = at < DIM
    values = tl.load(x + row * DIM + at, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(values, 0) / DIM
    centred = tl.where(inside, values - mean, 0.0)
    normed = centred / tl.sqrt(tl.sum(centred * centred, 0) / DIM + eps)
    mul = 1.0 + tl.load(scale + latent * scale_row + at, mask=inside, other=0.0).to(tl.float32)
    add = tl.load(shift + latent * shift_row + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * DIM + at, (normed * mul + add).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gated(x, update, gate, out, tokens, gate_row, DIM: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < DIM
    base = tl.load(x + row * DIM + at, mask=inside, other=0.0).to(tl.float32)
    more = tl.load(update + row * DIM + at, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(gate + (row // tokens) * gate_row + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * DIM + at, (base + more * factor).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _norm_rope(x, weight, cos, sin, out, tokens, eps, DIM: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    token = row % tokens
    at = tl.arange(0, BLOCK)
    inside = at < DIM
    values = tl.load(x + row * DIM + at, mask=inside, other=0.0).to(tl.float32)
    length = tl.sqrt(tl.sum(values * values, 0) / DIM + eps)
    normed = values / length * tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    even, odd = tl.split(tl.reshape(normed, (BLOCK // 2, 2)))
    pair = tl.arange(0, BLOCK // 2)
    angle = token * HALF + pair % HALF
    known = pair < DIM // 2
    c = tl.load(cos + angle, mask=known, other=0.0)
    s = tl.load(sin + angle, mask=known, other=0.0)
    turned = tl.reshape(tl.join(even * c - odd * s, even * s + odd * c), (BLOCK,))
    tl.store(out + row * DIM + at, turned.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _norm_silu(  # type: ignore[no-untyped-def]
    x, gamma, out, rows, per_batch, out_batch, root, DIM: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    at = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (at < DIM)[None, :]
    values = tl.load(x + row[:, None] * DIM + at[None, :], mask=inside, other=0.0).to(tl.float32)
    factor = root / tl.maximum(tl.sqrt(tl.sum(values * values, 1)), 1e-12)
    gain = tl.load(gamma + at, mask=at < DIM, other=0.0).to(tl.float32)
    y = values * factor[:, None] * gain[None, :]
    place = (row // per_batch) * out_batch + (row % per_batch) * DIM
    tl.store(out + place[:, None] + at[None, :], (y * tl.sigmoid(y)).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _quantise(x, values, scales, largest, DIM: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < DIM
    given = tl.load(x + row * DIM + at, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(given), 0), 1e-12) / largest
    small = tl.minimum(tl.maximum(given / scale, -largest), largest)
    tl.store(values + row * DIM + at, small.to(values.dtype.element_ty), mask=inside)
    tl.store(scales + row, scale)


def _per_latent(x: Tensor) -> tuple[Tensor, int]:
    """Values [B, T, dim] and how far apart those of two neighbours lie, over the border of a batch as well."""
    if x.stride(2) != 1 or x.stride(0) != x.shape[1] * x.stride(1):
        x = x.contiguous()
    return x, x.stride(1)


def norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """See `fused.norm_modulate`."""
    _refuse_gradients(x, shift, scale)
    x = x.contiguous()
    out = torch.empty_like(x)
    dim, tokens = x.shape[2], x.shape[1] // shift.shape[1]
    (shift, shift_row), (scale, scale_row) = _per_latent(shift), _per_latent(scale)
    grid = (x.shape[0] * x.shape[1],)
    with torch.cuda.device_of(x):
        _norm_modulate[grid](x, shift, scale, out, tokens, eps, shift_row, scale_row, DIM=dim, **_settings(dim))
    return out


def gated(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """See `fused.gated`."""
    _refuse_gradients(x, update, gate)
    x, update = x.contiguous(), update.contiguous()
    out = torch.empty_like(x)
    dim, tokens = x.shape[2], x.shape[1] // gate.shape[1]
    gate, gate_row = _per_latent(gate)
    with torch.cuda.device_of(x):
        _gated[(x.shape[0] * x.shape[1],)](x, update, gate, out, tokens, gate_row, DIM=dim, **_settings(dim))
    return out


def norm_rope(x: Tensor, weight: Tensor, table: Rope, heads: int, eps: float) -> Tensor:
    """See `fused.norm_rope`; the result has its heads after its tokens in memory, as attention likes it."""
    _refuse_gradients(x, weight)
    x = x.contiguous()
    out = torch.empty_like(x)
    batch, tokens, dim = x.shape
    cos, sin = (part.contiguous() for part in table)
    with torch.cuda.device_of(x):
        _norm_rope[(batch * tokens,)](
            x, weight, cos, sin, out, tokens, eps, DIM=dim, HALF=dim // heads // 2, **_settings(dim)
        )
    return out.unflatten(-1, (heads, -1)).transpose(1, 2)


def norm_silu(x: Tensor, gamma: Tensor, out: Tensor) -> Tensor:
    """See `fused.norm_silu`; both channels-last, `out` frames in the middle of a longer tensor."""
    _refuse_gradients(x, gamma)
    batch, dim, *rest = x.shape
    per_batch, block = math.prod(rest), triton.next_power_of_2(dim)
    rows = max(1, 4096 // block)
    with torch.cuda.device_of(x):
        _norm_silu[(triton.cdiv(batch * per_batch, rows),)](
            x, gamma, out, batch * per_batch, per_batch, out.stride(0), dim**0.5, DIM=dim, BLOCK=block, ROWS=rows
        )
    return out


def quantise(x: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """See `fp8.quantise`."""
    _refuse_gradients(x)
    x = x.contiguous()
    values, scales = torch.empty_like(x, dtype=kind), torch.empty(len(x), 1, device=x.device)
    with torch.cuda.device_of(x):
        _quantise[(len(x),)](x, values, scales, torch.finfo(kind).max, DIM=x.shape[1], **_settings(x.shape[1]))
    return values, scales
