"""Random numbers of one batch, of which each rank and each micro-batch takes its rows.

Everyone draws for the whole batch from the same generator and keeps its own part: so a step is the same step on one
process, on many, and in several micro-batches. A generator per rank would be cheaper by the numbers thrown away, and
its result would depend on how many ranks there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """Draws of rows `part` of `parts` of a batch.

    Attributes:
        generator: at the same state for all parts.
        part: which rows are ours, 0-based.
        parts: how many share the batch; 1 draws as `torch.rand` and its like do.
    """

    generator: torch.Generator
    part: int = 0
    parts: int = 1

    @staticmethod
    def seeded(seed: int, device: torch.device | str = "cpu") -> Draws:
        """Of a whole batch."""
        return Draws(torch.Generator(device).manual_seed(seed))

    def rand(self, rows: int, *shape: int) -> Tensor:
        """Uniform in 0..1, [rows, *shape]."""
        return self._ours(torch.rand(self.parts * rows, *shape, generator=self.generator, device=self.device))

    def randn(self, rows: int, *shape: int) -> Tensor:
        """Normal, [rows, *shape]."""
        return self._ours(torch.randn(self.parts * rows, *shape, generator=self.generator, device=self.device))

    def randint(self, low: int, high: int, rows: int, *shape: int) -> Tensor:
        """Integers in low..high - 1, [rows, *shape]."""
        size = (self.parts * rows, *shape)
        return self._ours(torch.randint(low, high, size, generator=self.generator, device=self.device))

    def shared_int(self, high: int) -> int:
        """One integer in 0..high - 1 for the whole batch, the same for every part."""
        return int(torch.randint(high, (), generator=self.generator, device=self.generator.device))

    @property
    def device(self) -> torch.device:
        return self.generator.device

    def _ours(self, whole: Tensor) -> Tensor:
        rows = whole.shape[0] // self.parts
        return whole[self.part * rows : (self.part + 1) * rows]
