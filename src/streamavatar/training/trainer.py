"""The loop: one method, one optimiser, checkpoints, a log, and an exact resume.

A method draws its batch from the step's own seed, so a resumed run sees what the uninterrupted one would have seen.
"""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from streamavatar.errors import UserError
from streamavatar.ops.precision import half_is_fast
from streamavatar.seeds import seed_for
from streamavatar.training.checkpoint import load_latest, save_checkpoint
from streamavatar.training.ema import Ema

CPU = torch.device("cpu")


@dataclass(frozen=True)
class TrainConfig:
    """Optimiser, schedule and bookkeeping of one stage.

    `bf16` computes in bfloat16 where the processor multiplies it natively, and in float32 elsewhere.
    """

    steps: int
    batch: int = 16
    lr: float = 1e-3
    warmup: int = 50
    final_lr: float = 0.05
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.99
    bf16: bool = True
    seed: int = 0
    save_every: int = 100
    log_every: int = 10
    keep: int = 2

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then a cosine down to `final_lr` of the peak."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * (self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


class Method(ABC):
    """A stage's loss, for one network or for two that take turns (a student and its fake score, for example)."""

    module: nn.Module
    """What is trained and kept; parameters without gradient are left alone."""

    critic: nn.Module | None = None
    """What is trained beside it, with an optimiser of its own."""

    def to(self, device: torch.device) -> None:
        """Move networks and data; methods that hold more than `module` and `critic` extend this."""
        self.module.to(device)
        if self.critic is not None:
            self.critic.to(device)

    def trains_critic(self, step: int) -> bool:
        """Whether step `step` moves the critic and not the module."""
        return False

    @abstractmethod
    def loss(self, step: int, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Scalars by name; "loss" is minimised, the others are logged. All draws come from `generator`."""


class Player:
    """A network with its optimiser and its average."""

    def __init__(self, module: nn.Module, config: TrainConfig) -> None:
        self.module = module
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )
        self.ema = Ema(module, config.ema)

    def state_dict(self) -> dict[str, Any]:
        return {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load_state_dict(state["ema"])


Progress = Callable[[str, int, int, str], None]
"""(stage, done, total, text)."""


class Trainer:
    """Runs a method to its last step.

    Args:
        method: what to train.
        config: how.
        folder: of this stage's checkpoints and log.
        progress: told about every step.
        device: where the networks are moved; methods make their tensors there, since it is the default while they run.
    """

    def __init__(
        self,
        method: Method,
        config: TrainConfig,
        folder: Path,
        progress: Progress,
        device: torch.device = CPU,
    ) -> None:
        self.method, self.config, self.folder, self.progress, self.device = method, config, folder, progress, device
        self.bf16 = config.bf16 and half_is_fast(device)
        method.to(device)
        self.main = Player(method.module, config)
        self.critic = None if method.critic is None else Player(method.critic, config)
        self.step = 0

    def run(self) -> nn.Module:
        """Train from the newest checkpoint on; returns the module with its averaged parameters."""
        self._resume()
        self.folder.mkdir(parents=True, exist_ok=True)
        began, first = time.monotonic(), self.step
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as log:
            while self.step < self.config.steps:
                values = self._advance()
                if self.step % self.config.log_every == 0 or self.step == self.config.steps:
                    speed = (self.step - first) / (time.monotonic() - began)
                    numbers = {name: float(value) for name, value in values.items()}
                    record = {"step": self.step, "time": time.time(), "lr": self.config.rate(self.step), **numbers}
                    log.write(json.dumps(record) + "\n")
                    log.flush()
                    text = " ".join(f"{name} {value:.4f}" for name, value in numbers.items())
                    self.progress(self.folder.name, self.step, self.config.steps, f"{text} {speed:.2f} steps/s")
                if self.step % self.config.save_every == 0 or self.step == self.config.steps:
                    self._save()
        self.main.ema.copy_to(self.method.module)
        return self.method.module

    def _advance(self) -> dict[str, Tensor]:
        config = self.config
        generator = torch.Generator(self.device).manual_seed(seed_for(config.seed, self.folder.name, self.step))
        player = self.critic if self.critic is not None and self.method.trains_critic(self.step) else self.main
        for group in player.optimizer.param_groups:
            group["lr"] = config.rate(self.step)
        with self.device, torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            values = self.method.loss(self.step, config.batch, generator)
        self._require_finite(values["loss"], "loss")
        values["loss"].backward()
        values["grad"] = nn.utils.clip_grad_norm_(player.parameters, config.clip)
        self._require_finite(values["grad"], "gradient")
        player.optimizer.step()
        player.ema.update(self.step)
        for each in (self.main, self.critic):  # what the step left in the other player's parameters is not its own
            if each is not None:
                each.optimizer.zero_grad()
        self.step += 1
        return {name: value.detach() for name, value in values.items()}

    def _require_finite(self, value: Tensor, name: str) -> None:
        if not torch.isfinite(value):
            raise UserError(
                f"{self.folder.name}: the {name} is not finite at step {self.step} (seed {self.config.seed}); "
                "the last checkpoint is intact: lower the learning rate and resume"
            )

    def _save(self) -> None:
        state = self.main.state_dict()
        if self.critic is not None:
            state["critic"] = self.critic.state_dict()
        save_checkpoint(self.folder, self.step, state, self.config.keep)

    def _resume(self) -> None:
        found = load_latest(self.folder)
        if found is None:
            return
        self.step, state = found
        self.main.load_state_dict(state)
        if self.critic is not None:
            self.critic.load_state_dict(state["critic"])
