"""Exponential moving average of a module's parameters, in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from streamavatar.training.parallel import local


class Ema:
    """Averages the trainable parameters; with a warm-up, so that the random start is soon forgotten.

    Of parameters that are split among ranks, each rank averages its own part.

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
        average, live = [local(a) for a in self.average], [local(p.detach()).float() for p in self._live]
        torch._foreach_lerp_(average, live, 1 - decay)

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

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The averages in place of the parameters, for a while."""
        kept = [local(p.detach()).clone() for p in self._live]
        with torch.no_grad():
            for parameter, value in zip(self._live, self.average, strict=True):
                local(parameter.detach()).copy_(local(value))
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self._live, kept, strict=True):
                    local(parameter.detach()).copy_(value)
