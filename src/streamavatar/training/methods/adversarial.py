"""Adversarial refinement against real clips with the Consistency-Aware Discriminator: the paper's second stage (3).

Student and discriminator take turns. A real clip and the student's clip form a pair: same reference, same audio. The
discriminator sees clean latents and is told a random noise level, since at level 0 such backbones carry little.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from streamavatar.data.latents import LatentSet
from streamavatar.draws import Draws
from streamavatar.losses.adversarial import disturb, penalty, relativistic
from streamavatar.models.avatar import AvatarModel
from streamavatar.models.discriminator import Branches, Discriminator, Logits, default_taps
from streamavatar.models.transformer import Conditions
from streamavatar.training.methods.student import long_rollout, student_rollout
from streamavatar.training.methods.teacher import conditions_of, trainable
from streamavatar.training.trainer import Method


@dataclass(frozen=True)
class AdversarialConfig:
    """The paper's choices where known, AAPT's constants elsewhere, and the ablation of the branches.

    Attributes:
        branches: "full", "pooled" (a global branch without the reference's question), "local", "single" (one logit).
        global_weight: of the global branch in both losses.
        penalty_weight, penalty_sd: of the finite-difference R1 and R2.
        width: of a latent's feature in the discriminator.
        alone: steps at the beginning in which the discriminator learns alone; all that it teaches before it can tell
            clips apart is noise.
        critic_rate: learning rate of the discriminator, as a multiple of the student's.
    """

    branches: Branches = "full"
    global_weight: float = 1.0
    penalty_weight: float = 1000.0
    penalty_sd: float = 0.1
    width: int = 1024
    alone: int = 0
    critic_rate: float = 1.0


class AdversarialMethod(Method):
    """See the module's docstring.

    Args:
        student: distilled or ODE-started; trained here.
        teacher: its transformer becomes the discriminator's backbone and is trained as such; its projections, which
            make the discriminator's audio tokens, stay.
        clips: real clips.
        window: latents of a sample, the reference included.
        config: see :class:`AdversarialConfig`.
    """

    def __init__(
        self, student: AvatarModel, teacher: AvatarModel, clips: LatentSet, window: int, config: AdversarialConfig
    ) -> None:
        trainable(student)
        trainable(teacher)
        teacher.audio.requires_grad_(False)
        backbone = teacher.transformer
        self.discriminator = Discriminator(
            backbone, default_taps(backbone.config.layers), config.branches, config.width
        )
        backbone.head.requires_grad_(False)  # what follows the last tap is not used
        self.module: torch.nn.Module = student
        self.critic: torch.nn.Module | None = self.discriminator
        self.frozen: tuple[torch.nn.Module, ...] = (teacher,)  # but for the backbone
        self.student, self.teacher = student, teacher
        self.clips, self.window, self.config = clips, window, config
        self.critic_rate = config.critic_rate

    def to(self, device: torch.device) -> None:
        super().to(device)
        self.clips = self.clips.to(device)

    def sample(self, draws: Draws, reference: Tensor) -> Tensor:
        return long_rollout(self.student, self.clips, draws, reference)

    def trains_critic(self, step: int) -> bool:
        return step < self.config.alone or step % 2 == 0

    def loss(self, step: int, batch: int, draws: Draws) -> dict[str, Tensor]:
        clips = self.clips.draw(batch, self.window, draws)
        train_critic = self.trains_critic(step)
        with torch.set_grad_enabled(not train_critic):
            made = student_rollout(self.student, clips, draws, gradient=not train_critic)
        with torch.no_grad():
            conditions = conditions_of(self.teacher, clips)
        sigma = draws.rand(batch, 1).expand(-1, self.window).clone()
        sigma[:, 0] = 0
        judge = _Judge(self.discriminator, sigma, conditions)
        if train_critic:
            return self._critic_loss(judge, clips.latents, made, draws)
        with torch.no_grad():
            real = judge(clips.latents)
        fake = judge(made)
        return {"loss": relativistic(fake, real, self.config.global_weight), "generator": _margin(fake, real)}

    def _critic_loss(self, judge: _Judge, clip: Tensor, made: Tensor, draws: Draws) -> dict[str, Tensor]:
        config = self.config
        real, fake = judge(clip), judge(made)
        smooth = sum(
            penalty(logits, judge(disturb(x, config.penalty_sd, draws))) for x, logits in ((clip, real), (made, fake))
        )
        loss = relativistic(real, fake, config.global_weight)
        return {"loss": loss + config.penalty_weight * smooth, "critic": loss.detach(), "margin": _margin(real, fake)}


@dataclass(frozen=True)
class _Judge:
    """The discriminator with the conditions of one batch."""

    discriminator: Discriminator
    sigma: Tensor
    conditions: Conditions

    def __call__(self, x: Tensor) -> Logits:
        return self.discriminator(x, self.sigma, self.conditions)


def _margin(winner: Logits, loser: Logits) -> Tensor:
    """How far the per-latent logits (the clip's where there are none) are apart."""
    pairs = [(a, b) for a, b in zip(winner, loser, strict=True) if a is not None and b is not None]
    return (pairs[0][0] - pairs[0][1]).mean().detach()
