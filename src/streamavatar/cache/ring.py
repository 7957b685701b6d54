"""Run time's cache: static slots, nothing rolled, cloned or concatenated.

Layout along the token axis: the reference (one latent), chunk 1 where it is a sink, then the ring's slots, one chunk
each. A pass writes the slot that its chunk will own; the next pass overwrites it and the last one stays. What a chunk
sees is always one contiguous slice, in slot order: order does not matter because nothing inside is masked.
Rolling keys are stored rotated at their own index; the few sink keys are rotated anew once per chunk from a raw copy
(the engine form of RAPR, see `positions`). The chunk's own angles lie in a static place too and are written once per
chunk: nothing that a pass reads or writes moves, so that a recorded pass can be replayed (`engine.graphs`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from streamavatar.ops.rope import Rope, apply_rope, rope
from streamavatar.positions import Positions


class RingView:
    """One pass; see :class:`streamavatar.cache.View`."""

    def __init__(self, cache: RingCache, chunk: int) -> None:
        self.chunk = chunk
        self.times = cache.positions.query(chunk)
        self._cache = cache
        self._own = cache.span(chunk)
        window = cache.positions.window(chunk).chunks
        spans = [cache.span(c) for c in window]
        self._start = min(s.start for s in spans)
        self._stop = max(s.stop for s in spans)
        self.needs_raw = cache.positions.is_sink(chunk)

    @property
    def place(self) -> tuple[int, int, int]:
        """Which part of the cache is written (from its first token on) and which read; two passes with the same place
        differ in nothing but numbers."""
        return self._own.start, self._start, self._stop

    def table(self, device: torch.device) -> Rope:
        tokens = self._own.stop - self._own.start
        return Rope(*(part[:tokens] for part in self._cache.table))

    def attend(self, layer: int, k: Tensor, k_rotated: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        cache, own = self._cache, self._own
        cache.keys[layer, :, :, own] = k_rotated
        cache.values[layer, :, :, own] = v
        if self.needs_raw:
            cache.raw_sinks[layer, :, :, own] = k
        window = slice(self._start, self._stop)
        return cache.keys[layer, :, :, window], cache.values[layer, :, :, window]

    def commit(self) -> None:
        """Nothing to do: the last pass already wrote the slot."""

    def discard(self) -> None:
        """Nothing to do: the next pass writes over it."""


class RingCache:
    """Key/value slots of one session, allocated once.

    Args:
        positions: windows and positions.
        grid: rows and columns of tokens in a latent.
        layers, heads, head_dim, theta: of the transformer.
        batch: sequences side by side.
        dtype, device: of the stored keys and values.
    """

    def __init__(
        self,
        positions: Positions,
        grid: tuple[int, int],
        *,
        layers: int,
        heads: int,
        head_dim: int,
        theta: float,
        batch: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.positions = positions
        self._tokens = grid[0] * grid[1]
        self._chunk_tokens = positions.geometry.chunk_latents * self._tokens
        self._rope_settings = (grid, head_dim, theta)
        self._pinned = self._tokens + (self._chunk_tokens if positions.first_rolling == 2 else 0)
        total = self._pinned + positions.slots * self._chunk_tokens
        shape = (layers, batch, heads, total, head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        sink_tokens = 0 if positions.context.sink == "none" else self._pinned
        self.raw_sinks = torch.zeros((layers, batch, heads, sink_tokens, head_dim), dtype=dtype, device=device)
        angles = (self._chunk_tokens, head_dim // 2)
        self.table = Rope(torch.zeros(angles, device=device), torch.zeros(angles, device=device))
        self._table_of = -1
        """The chunk whose angles are in the table now."""
        self._sinks_at = 0
        """The shift at which the sink keys are encoded now."""

    def span(self, chunk: int) -> slice:
        """Token slice of the slot that `chunk` owns."""
        if chunk == 0:
            return slice(0, self._tokens)
        if chunk < self.positions.first_rolling:
            return slice(self._tokens, self._tokens + self._chunk_tokens)
        start = self._pinned + self.positions.slot(chunk) * self._chunk_tokens
        return slice(start, start + self._chunk_tokens)

    def view(self, chunk: int) -> RingView:
        if chunk != self._table_of:
            for place, values in zip(self.table, self._angles(self.positions.query(chunk)), strict=True):
                place[: len(values)] = values
            self._table_of = chunk
        shift = self.positions.shift(chunk)
        if shift != self._sinks_at and self.raw_sinks.shape[3]:
            self._encode_sinks(chunk)
            self._sinks_at = shift
        return RingView(self, chunk)

    def full(self) -> range:
        """The chunks that are the first to write each slot of the ring while all slots are in sight."""
        first = self.positions.first_rolling + 2 * self.positions.slots
        return range(first, first + self.positions.slots)

    def _angles(self, times: tuple[int, ...]) -> Rope:
        return rope(times, *self._rope_settings).to(self.keys.device)

    def _encode_sinks(self, chunk: int) -> None:
        times = tuple(t for sink in range(self.positions.first_rolling) for t in self.positions.keys(chunk, sink))
        self.keys[:, :, :, : self._pinned] = apply_rope(self.raw_sinks.flatten(0, 1), self._angles(times)).unflatten(
            0, self.raw_sinks.shape[:2]
        )
