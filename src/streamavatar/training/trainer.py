"""The loop: one method, one optimiser, checkpoints, a log, and an exact resume; on one process or on many.

A method draws its batch from the step's own seed, so a resumed run sees what the uninterrupted one would have seen.
Each rank, and each micro-batch, takes its rows of those draws, so the number of either does not change the step. A loss
is the mean over the rows it was given; the trainer averages the gradients of all parts, by their "weight" where a
method says that its parts do not count alike.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from streamavatar.draws import Draws
from streamavatar.errors import UserError
from streamavatar.models.transformer import Transformer
from streamavatar.ops.precision import half_is_fast
from streamavatar.provenance import commit
from streamavatar.seeds import seed_for
from streamavatar.training.checkpoint import Checkpoints
from streamavatar.training.ema import Ema
from streamavatar.training.journal import Journal, Screen
from streamavatar.training.lora import bases
from streamavatar.training.parallel import World, average_gradients, clip_gradients, local, release, shard


@dataclass(frozen=True)
class TrainConfig:
    """Optimiser, schedule and bookkeeping of one stage.

    Attributes:
        steps, batch: how many, and clips per step over all ranks.
        lr, warmup, final_lr: see :meth:`rate`.
        betas, weight_decay, clip: of AdamW, and the norm to which gradients are clipped.
        ema: decay of the average.
        bf16: compute in bfloat16 where the processor multiplies it natively, and in float32 elsewhere.
        seed: of all draws.
        save_every, log_every, keep: checkpoints, lines of the log, and how many checkpoints stay.
        accumulate: micro-batches that a rank takes one after another for one step; for memory.
        recompute: activation checkpointing: each block, and each Q-Former of a discriminator, runs again in the
            backward pass instead of keeping its activations; for memory.
        shard: ranks that share one copy of the weights; 0 is all of them.
        async_save: write checkpoints while training goes on.
        sample_every: steps between sample videos; 0 is never.
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
    accumulate: int = 1
    recompute: bool = False
    shard: int = 0
    async_save: bool = False
    sample_every: int = 0

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then a cosine down to `final_lr` of the peak."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * (self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


HOW = ("accumulate", "recompute", "shard", "async_save", "sample_every")
"""Settings of :class:`TrainConfig` that say how a stage is run and not what comes out."""


class Method(ABC):
    """A stage's loss, for one network or for two that take turns (a student and its fake score, for example)."""

    module: nn.Module
    """What is trained and kept; parameters without gradient are left alone."""

    critic: nn.Module | None = None
    """What is trained beside it, with an optimiser of its own."""

    critic_rate: float = 1.0
    """Its learning rate, as a multiple of the module's."""

    frozen: tuple[nn.Module, ...] = ()
    """What is used and not trained (a teacher, for example)."""

    passes_meet: bool = False
    """Whether gradients flow from one pass of a network into another through keys and values."""

    def to(self, device: torch.device) -> None:
        """Move networks and data; methods that hold data extend this."""
        for network in self.networks():
            network.to(device)

    def networks(self) -> list[nn.Module]:
        """All of them."""
        return [self.module, *([] if self.critic is None else [self.critic]), *self.frozen]

    def trains_critic(self, step: int) -> bool:
        """Whether step `step` moves the critic and not the module."""
        return False

    @abstractmethod
    def loss(self, step: int, batch: int, draws: Draws) -> dict[str, Tensor]:
        """Scalars by name; "loss" is minimised, the others are logged.

        Args:
            step: 0-based.
            batch: rows to draw: a part of the step's batch where ranks or micro-batches share it.
            draws: of everything that is random.

        Returns:
            "loss" is a mean over the rows. Where rows count unequally (a mouth covers more of some clips), "weight" is
            the sum of what they count, so that the parts of a batch can be averaged rightly; it is not logged.
        """

    def sample(self, draws: Draws, reference: Tensor) -> Tensor | None:
        """Latents [1, C, T, H, W] made of a person's as at run time, longer than what is trained on; or nothing."""
        return None


class Player:
    """A network with its optimiser and its average."""

    def __init__(self, module: nn.Module, config: TrainConfig) -> None:
        self.module = module
        self.names, self.parameters = map(
            list, zip(*((name, p) for name, p in module.named_parameters() if p.requires_grad), strict=True)
        )
        # One call of the optimiser takes parameters that are split among ranks, or such that are not.
        kinds = ([p for p in self.parameters if isinstance(p, DTensor) is split] for split in (True, False))
        self.optimizer = torch.optim.AdamW(
            [{"params": kind} for kind in kinds if kind],
            lr=config.lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.ema = Ema(module, config.ema)

    def tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint holds, by name; changed in place by a load."""
        if not self.optimizer.state:
            self._begin()
        found = {f"module.{name}": value for name, value in self.module.state_dict().items()}
        for name, parameter in zip(self.names, self.parameters, strict=True):
            for slot, value in self.optimizer.state[parameter].items():
                found[f"optimizer.{name}.{slot}"] = value
        return found | {f"ema.{name}": value for name, value in self.ema.state_dict().items()}

    def _begin(self) -> None:
        """Make the optimiser's state by a step that moves nothing."""
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad()
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()


Progress = Callable[[str, int, int, str], None]
"""(stage, done, total, text)."""


class Trainer:
    """Runs a method to its last step.

    Args:
        method: what to train; adapters and the like are in its networks already.
        config: how.
        folder: of this stage's checkpoints and log.
        progress: told about every step.
        world: the ranks, and this one's device, where the networks are moved; methods make their tensors there, since
            it is the default while they run.
        screen: where samples are shown; none are made without it.
        about: further settings that every checkpoint carries.

    Raises:
        UserError: the batch cannot be divided among ranks and micro-batches.
    """

    def __init__(
        self,
        method: Method,
        config: TrainConfig,
        folder: Path,
        progress: Progress,
        world: World | None = None,
        *,
        screen: Screen | None = None,
        about: dict[str, Any] | None = None,
    ) -> None:
        self.method, self.config, self.folder, self.progress, self.screen = method, config, folder, progress, screen
        self.world = world or World()
        self.device = self.world.device
        self.bf16 = config.bf16 and half_is_fast(self.device)
        self.parts = self.world.size * config.accumulate
        if config.batch % self.parts:
            raise UserError(
                f"{folder.name}: a batch of {config.batch} cannot be divided by {self.parts} "
                f"({self.world.size} ranks x accumulate={config.accumulate}); change one of them"
            )
        self._place()
        self.main = Player(method.module, config)
        self.critic = None if method.critic is None else Player(method.critic, config)
        self.checkpoints = Checkpoints(
            folder,
            self.world,
            config.keep,
            background=config.async_save,
            about=lambda: {"commit": commit(), "config": asdict(config), **(about or {})},
        )
        self.step = 0

    def _place(self) -> None:
        """Put the networks where they are trained: split among ranks first, so that no device holds them whole."""
        self.mesh = self.world.mesh(self.config.shard)
        networks = self.method.networks()
        lent = {id(layer) for network in networks for layer in bases(network)}
        for network in networks:
            for part in network.modules():
                if isinstance(part, Transformer) and self.config.recompute:
                    part.checkpoint_blocks = True
            # A network whose layers others have adapted would not be whole when these run.
            if self.mesh is not None and not any(id(part) in lent for part in network.modules()):
                shard(network, self.mesh, bf16=self.bf16, hold=self.method.passes_meet)
        self.method.to(self.device)

    def run(self) -> nn.Module:
        """Train from the newest checkpoint on; returns the module with its averaged parameters."""
        config = self.config
        refused = self._resume()
        began, first = time.monotonic(), self.step
        with Journal(self.folder, self.step, active=self.world.first) as journal:
            for text in refused:
                journal.note(text)
            while self.step < config.steps:
                values = self._advance()
                last = self.step == config.steps
                if self.step % config.log_every == 0 or last:
                    speed = (self.step - first) / (time.monotonic() - began)
                    numbers = {name: float(value) for name, value in values.items()}
                    journal.record(self.step, {"lr": config.rate(self.step), **numbers})
                    text = " ".join(f"{name} {value:.4f}" for name, value in numbers.items())
                    self.progress(self.folder.name, self.step, config.steps, f"{text} {speed:.2f} steps/s")
                if self.step % config.save_every == 0 or last:
                    self.checkpoints.save(self.step, self._tensors())
                if self.screen and config.sample_every and (self.step % config.sample_every == 0 or last):
                    self._sample(self.screen, journal)
        self.checkpoints.finish()
        self.main.ema.copy_to(self.method.module)
        return self.method.module

    def _advance(self) -> dict[str, Tensor]:
        """One step; returns what is logged of it."""
        player = self.critic if self.critic is not None and self.method.trains_critic(self.step) else self.main
        for group in player.optimizer.param_groups:
            group["lr"] = self.config.rate(self.step) * (self.method.critic_rate if player is self.critic else 1)
        values = self._gradients(player)
        self._require_finite(values["loss"], "loss")
        values["grad"] = clip_gradients(player.parameters, self.config.clip, self.mesh)
        self._require_finite(values["grad"], "gradient")
        player.optimizer.step()
        player.ema.update(self.step)
        for each in (self.main, self.critic):  # what the step left in the other player's parameters is not its own
            if each is not None:
                each.optimizer.zero_grad()
        self.step += 1
        return values

    def _gradients(self, player: Player) -> dict[str, Tensor]:
        """The step's gradients, in place, and its values: means over all ranks and micro-batches."""
        rows, first = self.config.batch // self.parts, self.world.rank * self.config.accumulate
        sums: dict[str, Tensor] = {}
        for part in range(first, first + self.config.accumulate):
            generator = torch.Generator(self.device).manual_seed(self._seed)
            with self.device, torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
                values = self.method.loss(self.step, rows, Draws(generator, part, self.parts))
            weight = values.pop("weight", None)
            if self.parts == 1:
                values["loss"].backward()
                return {name: value.detach() for name, value in values.items()}
            weight = torch.ones((), device=self.device) if weight is None else weight.detach()
            (values["loss"] * weight).backward()
            for name, value in {**values, "weight": torch.ones_like(weight)}.items():
                sums[name] = sums.get(name, 0) + (value.detach() * weight).double()
        if self.method.passes_meet:
            release(player.module)
        average_gradients(player.parameters, self.world)
        totals = self.world.total(torch.stack(list(sums.values())))
        means = dict(zip(sums, totals / totals[-1], strict=True))
        # Ranks' gradients are averaged already, micro-batches' are summed.
        scale = float(self.world.size / totals[-1])
        torch._foreach_mul_([local(p.grad) for p in player.parameters if p.grad is not None], scale)
        return {name: means[name].float() for name in values}

    @property
    def _seed(self) -> int:
        """Of the step's batch."""
        return seed_for(self.config.seed, self.folder.name, self.step)

    def _require_finite(self, value: Tensor, name: str) -> None:
        if not torch.isfinite(value):
            raise UserError(
                f"{self.folder.name}: the {name} is not finite at step {self.step} (seed {self.config.seed}; its batch "
                f"is drawn from {self._seed}); the last checkpoint is intact: lower the learning rate and resume"
            )

    def _sample(self, screen: Screen, journal: Journal) -> None:
        """Show what the averaged weights make of a person; always the same one, with the same noise."""
        generator = torch.Generator(self.device).manual_seed(seed_for(self.config.seed, "sample"))
        with torch.no_grad(), self.main.ema.shown(), self.device:
            latents = self.method.sample(Draws(generator), screen.reference)
            if latents is not None and self.world.first:
                journal.clip(self.step, screen.frames(latents), screen.fps)

    # checkpoints -----------------------------------------------------------------------------------

    def _tensors(self) -> dict[str, Tensor]:
        players = {"main": self.main} if self.critic is None else {"main": self.main, "critic": self.critic}
        return {f"{name}.{key}": value for name, player in players.items() for key, value in player.tensors().items()}

    def _resume(self) -> list[str]:
        """Load the newest checkpoint that can be read; returns what is to be said about those that cannot."""
        refused: list[str] = []
        found = self.checkpoints.load(self._tensors(), refused.append) if self.world.once(self.folder.exists) else None
        self.step = found or 0
        for text in refused:
            self.progress(self.folder.name, self.step, self.config.steps, text)
        return refused
