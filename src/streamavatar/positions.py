"""RAPR: which temporal position each query and key has, and which chunks a chunk attends to (paper, 2.2-2.4).

Integers only. With P the largest index that a chunk's last latent may have, chunk i (latents s_i..e_i) is shifted
by D_i = max(0, e_i - P). The paper's form puts the query at t - D_i, rolling keys at j - D_i and sink keys at j.
RoPE logits depend on differences alone, so the same function is: query at t, rolling keys at j, sink keys at
j + D_i. That *engine form* is what the caches use: a rolling key is encoded once, only the sinks move.
"""

from __future__ import annotations

from dataclasses import dataclass

from streamavatar.config import ContextConfig
from streamavatar.geometry import Geometry


@dataclass(frozen=True)
class Window:
    """The chunks that chunk `chunk` attends to, itself included, in the order of the cache's slots."""

    chunk: int
    sinks: tuple[int, ...]
    rolling: tuple[int, ...]

    @property
    def chunks(self) -> tuple[int, ...]:
        return self.sinks + self.rolling


class Positions:
    """Positions and windows of one model.

    Args:
        geometry: chunk length.
        context: sink, ring and RAPR settings.
    """

    def __init__(self, geometry: Geometry, context: ContextConfig) -> None:
        self.geometry = geometry
        self.context = context
        ring_chunks = context.ring_latents // geometry.chunk_latents
        self.slots = ring_chunks if context.ring_includes_current else ring_chunks + 1
        """Ring slots of one chunk each, the chunk being made included."""
        self.first_rolling = {"none": 1, "reference": 1, "first_chunk": 2}[context.sink]
        """The first chunk that lives in the ring; those before it have slots of their own."""
        extra = geometry.chunk_latents - 1 if context.cap_on == "start" else 0
        self.largest = context.cap + extra
        """P: the largest index that the last latent of a chunk may have."""

    def slot(self, chunk: int) -> int:
        """The ring slot that chunk `chunk` >= first_rolling writes."""
        return (chunk - self.first_rolling) % self.slots

    def window(self, chunk: int) -> Window:
        """What chunk i sees. Without a sink the reference leaves once the ring is full."""
        oldest = max(self.first_rolling, chunk - self.slots + 1)
        rolling = sorted(range(oldest, chunk + 1), key=self.slot)
        pinned = range(min(self.first_rolling, chunk + 1))
        if self.context.sink == "none" and chunk >= self.first_rolling + self.slots:
            pinned = range(0)
        return Window(chunk, tuple(pinned), tuple(rolling))

    def shift(self, chunk: int) -> int:
        """D_i: how far the sinks (engine form) or everything else (the paper's form) is moved."""
        if not self.context.rapr:
            return 0
        return max(0, self.geometry.chunk_span(chunk)[-1] - self.largest)

    def is_sink(self, chunk: int) -> bool:
        return self.context.sink != "none" and chunk < self.first_rolling

    def query(self, chunk: int) -> tuple[int, ...]:
        """Engine form: positions of the chunk's own queries and keys."""
        return tuple(self.geometry.chunk_span(chunk))

    def keys(self, chunk: int, of: int) -> tuple[int, ...]:
        """Engine form: positions that the keys of chunk `of` have while chunk `chunk` is made."""
        moved = self.shift(chunk) if self.is_sink(of) else 0
        return tuple(j + moved for j in self.geometry.chunk_span(of))

    def literal_query(self, chunk: int) -> tuple[int, ...]:
        """The paper's form of :meth:`query`: never above P."""
        return tuple(t - self.shift(chunk) for t in self.geometry.chunk_span(chunk))

    def literal_keys(self, chunk: int, of: int) -> tuple[int, ...]:
        """The paper's form of :meth:`keys`."""
        moved = 0 if self.is_sink(of) else self.shift(chunk)
        return tuple(j - moved for j in self.geometry.chunk_span(of))
