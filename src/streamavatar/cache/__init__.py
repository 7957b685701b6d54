"""Key/value caches behind one protocol: `RingCache` for run time, `TapeCache` for training.

A cache is asked for a `View` of one pass of one chunk; the transformer hands every layer's keys and values to the
view and gets back what to attend to. After the chunk's last pass the view is committed and becomes context.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from streamavatar.cache.ring import RingCache
from streamavatar.cache.tape import TapeCache
from streamavatar.ops.rope import Rope

__all__ = ["KVCache", "RingCache", "TapeCache", "View"]


class View(Protocol):
    """One pass of one chunk."""

    @property
    def times(self) -> tuple[int, ...]:
        """Temporal positions of the chunk's own queries and keys."""

    needs_raw: bool
    """Whether `attend` keeps keys from before RoPE; if not, it may be given any in their place."""

    def table(self, device: torch.device) -> Rope:
        """The angles of the chunk's own tokens."""

    def attend(self, layer: int, k: Tensor, k_rotated: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (rotated) and values that this pass attends to in `layer`, its own included.

        Args:
            layer: 0-based.
            k: this pass's keys before RoPE, [B, heads, N, head_dim].
            k_rotated: the same after RoPE at `times`.
            v: values, [B, heads, N, head_dim].
        """

    def commit(self) -> None:
        """Keep this pass's keys and values as the context that later chunks see."""

    def discard(self) -> None:
        """Forget this pass's keys and values: a later pass is the context."""


class KVCache(Protocol):
    """The context of one sequence."""

    def view(self, chunk: int) -> View:
        """Open a pass of `chunk`; chunks are made in order 0 (the reference), 1, 2, ..."""
