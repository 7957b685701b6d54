"""Exponential moving average of a module's parameters, in float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Ema:
    """Averages the trainable parameters; with a warm-up, so that the random start is soon forgotten.

    Args:
        module: what is averaged.
        decay: weight of the past once warm.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.names = [name for name, p in module.named_parameters() if p.requires_grad]
        parameters = dict(module.named_parameters())
        self._live = [parameters[name] for name in self.names]
        self.average = [p.detach().float().clone() for p in self._live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the parameters after optimiser step `step` (0-based)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.average, [p.detach().float() for p in self._live], 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.average, strict=True))

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in zip(self.names, self.average, strict=True):
            value.copy_(state[name])

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Put the averages into `module`'s parameters of the same names."""
        parameters = dict(module.named_parameters())
        for name, value in zip(self.names, self.average, strict=True):
            parameters[name].copy_(value)
