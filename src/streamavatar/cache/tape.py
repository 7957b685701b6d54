"""Training's cache: immutable per layer and chunk, so that recomputation sees the tensors of the first run.

A view holds the context of the moment it was opened and records each layer once. Activation checkpointing calls the
layers again during the backward pass: they find the same context, and what they record the second time is ignored.
"""

from __future__ import annotations

import torch
from torch import Tensor

from streamavatar.ops.rope import Rope, apply_rope, rope
from streamavatar.positions import Positions

Entry = tuple[Tensor, Tensor]
"""Keys before RoPE and values of one chunk in one layer, [B, heads, N, head_dim] each."""


class TapeView:
    """One pass; see :class:`streamavatar.cache.View`."""

    def __init__(self, cache: TapeCache, chunk: int, context: dict[int, list[Entry]]) -> None:
        self.chunk = chunk
        self._cache = cache
        self.times = cache.positions.query(chunk)
        self.recorded: dict[int, Entry] = {}
        self._discarded = False
        self._order = cache.positions.window(chunk).chunks
        self._context = context
        self._tables = {c: cache.table(cache.positions.keys(chunk, c)) for c in self._order}

    needs_raw = True

    def table(self, device: torch.device) -> Rope:
        return self._cache.table(self.times).to(device)

    def attend(self, layer: int, k: Tensor, k_rotated: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if not self._discarded:
            self.recorded.setdefault(layer, (k, v))
        keys, values = [], []
        for chunk in self._order:
            if chunk == self.chunk:
                keys.append(k_rotated)
                values.append(v)
            else:
                raw, value = self._context[chunk][layer]
                table = self._tables[chunk]
                keys.append(apply_rope(raw, table.to(raw.device)))
                values.append(value)
        return torch.cat(keys, dim=2), torch.cat(values, dim=2)

    def commit(self) -> None:
        self._cache.keep(self)

    def discard(self) -> None:
        """The graph of a pass holds its view, and would hold these, too."""
        self._discarded = True
        self.recorded.clear()


class TapeCache:
    """Context as an append-only record of chunks; those out of the window are dropped.

    Args:
        positions: windows and positions.
        grid: rows and columns of tokens in a latent.
        head_dim, theta: of the rotary embedding.
        detach: whether gradients stop at chunk borders (student forcing) or flow through keys and values.
    """

    def __init__(
        self, positions: Positions, grid: tuple[int, int], head_dim: int, theta: float, *, detach: bool = True
    ) -> None:
        self.positions = positions
        self.detach = detach
        self._grid, self._head_dim, self._theta = grid, head_dim, theta
        self._chunks: dict[int, list[Entry]] = {}

    def table(self, times: tuple[int, ...]) -> Rope:
        return rope(times, self._grid, self._head_dim, self._theta)

    def view(self, chunk: int) -> TapeView:
        needed = self.positions.window(chunk).chunks
        context = {c: self._chunks[c] for c in needed if c != chunk}
        return TapeView(self, chunk, context)

    def keep(self, view: TapeView) -> None:
        """Record a finished chunk and drop those that no later chunk sees."""
        entries = [view.recorded[layer] for layer in sorted(view.recorded)]
        if self.detach:
            entries = [(k.detach(), v.detach()) for k, v in entries]
        chunks = {**self._chunks, view.chunk: entries}
        later = set(self.positions.window(view.chunk + 1).chunks) | set(range(self.positions.first_rolling))
        self._chunks = {c: entry for c, entry in chunks.items() if c in later}
