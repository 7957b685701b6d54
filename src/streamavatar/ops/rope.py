"""Real-valued rotary embedding over time, rows and columns (Wan2.2's split of the head dimension).

Angles are built in float64 from integer positions: in float32 they are off by about 1e-3 at chunk 10,000, and Wan's own
table of 1,024 rows ends after 164 s of video.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from streamavatar.ops.transfer import upload


class Rope(NamedTuple):
    """cos and sin of the angles, float32 [tokens, head_dim / 2]."""

    cos: Tensor
    sin: Tensor

    def to(self, device: torch.device) -> Rope:
        return Rope(upload(self.cos, device), upload(self.sin, device))


def axis_split(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head given to time, rows and columns; (44, 42, 42) for 128."""
    spatial = 2 * (head_dim // 6)
    return head_dim - 2 * spatial, spatial, spatial


@lru_cache(maxsize=16)
def _frequencies(channels: int, theta: float) -> Tensor:
    exponents = torch.arange(0, channels, 2, dtype=torch.float64, device="cpu") / channels
    return theta**-exponents


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # the cache outlives its caller: what run time asked for first must also serve training
def rope(times: tuple[int, ...], grid: tuple[int, int], head_dim: int, theta: float) -> Rope:
    """Angles of the tokens of latents at `times`, in token order (time, row, column), on the CPU."""
    rows, columns = grid
    split = axis_split(head_dim)
    axes: Sequence[Sequence[int]] = (times, range(rows), range(columns))
    angles = [
        torch.outer(torch.tensor(list(axis), dtype=torch.float64, device="cpu"), _frequencies(channels, theta))
        for axis, channels in zip(axes, split, strict=True)
    ]
    # Cosines of the few rows of each axis, not of all tokens: every chunk of every session asks for new ones.
    shape = (len(times), rows, columns)
    return Rope(*(_spread([turn(axis).float() for axis in angles], shape) for turn in (torch.cos, torch.sin)))


def _spread(axes: list[Tensor], shape: tuple[int, int, int]) -> Tensor:
    """Rows of time, row and column, side by side for every token."""
    time, row, column = axes
    parts = (time[:, None, None], row[None, :, None], column[None, None])
    return torch.cat([part.expand(*shape, -1) for part in parts], dim=-1).flatten(0, 2)


def apply_rope(x: Tensor, table: Rope) -> Tensor:
    """Rotate neighbouring channel pairs of x [B, heads, N, head_dim] by the angles of N tokens; float32 inside."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = table
    rotated = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return rotated.flatten(-2).to(x.dtype)
