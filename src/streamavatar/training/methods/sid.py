"""SiD distillation with student forcing: the paper's first stage after the ODE start (paper, 2.7 and 2.8).

The student rolls out whole clips on its own outputs, through the same cache, sinks and RAPR as at run time. Two score
networks, both bidirectional, judge the result at a random noise level: the real score is the frozen teacher, the fake
score follows the student. The fake score takes `ratio` steps for every step of the student.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from streamavatar.data.latents import LatentSet
from streamavatar.draws import Draws
from streamavatar.losses.sid import critic_loss, dmd_loss, guided, sid_loss
from streamavatar.models.avatar import AvatarModel
from streamavatar.models.transformer import Conditions
from streamavatar.rollout import ExitPass
from streamavatar.schedule import add_noise, shift_sigma
from streamavatar.training.methods.student import Forcing, long_rollout, student_rollout
from streamavatar.training.methods.teacher import conditions_of, trainable
from streamavatar.training.trainer import Method


@dataclass(frozen=True)
class SidConfig:
    """The paper's choices, and its ablations.

    Attributes:
        objective: "sid", or "dmd" (no gradient through the scores).
        alpha, guidance, ratio: see `losses.sid`; fake-score steps per student step.
        forcing: "student" rolls out on the student's own chunks; "teacher" makes every chunk after the true ones.
        low, high: bounds of the noise level at which the scores judge, after the shift.
        grad_mode: "exit_step" keeps the rollout's graph; "replay" rolls out without one and runs the exit passes again,
            one chunk at a time (same gradient, memory of one chunk).
        last_chunks: only so many chunks at the end of a clip carry gradient; 0 is all.
    """

    objective: Literal["sid", "dmd"] = "sid"
    alpha: float = 1.0
    guidance: float = 3.0
    ratio: int = 5
    forcing: Forcing = "student"
    low: float = 0.02
    high: float = 0.98
    grad_mode: Literal["exit_step", "replay"] = "exit_step"
    last_chunks: int = 0

    def __post_init__(self) -> None:
        if self.forcing == "teacher" and self.grad_mode == "replay":
            raise ValueError("distillation: grad_mode 'replay' needs forcing 'student'; use 'exit_step'")


class SidMethod(Method):
    """See the module's docstring.

    Args:
        student: from the ODE start.
        real: the teacher; frozen here.
        fake: a copy of the teacher; the critic.
        clips: conditions and references; the pictures themselves are not used.
        window: latents of a rollout, the reference included.
        config: see :class:`SidConfig`.
    """

    def __init__(
        self,
        student: AvatarModel,
        real: AvatarModel,
        fake: AvatarModel,
        clips: LatentSet,
        window: int,
        config: SidConfig,
    ) -> None:
        trainable(student)
        trainable(fake)
        real.requires_grad_(False)
        self.module: torch.nn.Module = student
        self.critic: torch.nn.Module | None = fake
        self.frozen: tuple[torch.nn.Module, ...] = (real,)
        self.student, self.real, self.fake = student, real, fake
        self.clips, self.window, self.config = clips, window, config

    def to(self, device: torch.device) -> None:
        super().to(device)
        self.clips = self.clips.to(device)

    def sample(self, draws: Draws, reference: Tensor) -> Tensor:
        return long_rollout(self.student, self.clips, draws, reference)

    def trains_critic(self, step: int) -> bool:
        return step % (self.config.ratio + 1) != self.config.ratio

    def loss(self, step: int, batch: int, draws: Draws) -> dict[str, Tensor]:
        clips = self.clips.draw(batch, self.window, draws)
        if self.trains_critic(step):
            return self._critic_step(clips, draws)
        return self._student_step(clips, draws)

    def _critic_step(self, clips: LatentSet, draws: Draws) -> dict[str, Tensor]:
        with torch.no_grad():
            x = self._rollout(clips, draws, gradient=False)
        noised, noise, sigma = self._noised(x, draws)
        estimate = self.fake.transformer.sample(noised, sigma, conditions_of(self.fake, clips))
        return {"loss": critic_loss(estimate, noised, x, noise, sigma)}

    def _student_step(self, clips: LatentSet, draws: Draws) -> dict[str, Tensor]:
        if self.config.grad_mode == "exit_step":
            x = self._rollout(clips, draws, gradient=True)
            return {"loss": self._judge(x, clips, draws)}
        trace: list[ExitPass] = []
        with torch.no_grad():
            x = self._rollout(clips, draws, gradient=False, trace=trace)
        x.requires_grad_()
        loss = self._judge(x, clips, draws)
        (gradient,) = torch.autograd.grad(loss, x)
        self._replay(trace, clips, gradient)
        return {"loss": loss.detach().requires_grad_()}  # the student's gradients are in place; this adds none

    def _replay(self, trace: list[ExitPass], clips: LatentSet, gradient: Tensor) -> None:
        """Run the exit passes again, chunk by chunk from the last on, and put the student's gradients in place.

        The trace is emptied on the way, since each entry holds the keys and values of its past.
        """
        size = self.student.config.geometry.chunk_latents
        first = len(trace) - self.config.last_chunks if self.config.last_chunks else 0
        while len(trace) > first:
            seen, index = trace.pop(), len(trace)
            span = range(1 + index * size, 1 + (index + 1) * size)
            again = replace(seen, conditions=conditions_of(self.student, clips).latents(span))
            again.run(self.student.transformer).backward(gradient[:, :, span.start : span.stop])

    def _rollout(
        self, clips: LatentSet, draws: Draws, *, gradient: bool, trace: list[ExitPass] | None = None
    ) -> Tensor:
        """One exit step for all chunks; the last `last_chunks` chunks carry gradient."""
        exit_step = draws.shared_int(len(self.student.config.schedule.sigmas))
        x = student_rollout(
            self.student,
            clips,
            draws,
            exit_step=exit_step,
            gradient=gradient,
            forcing=self.config.forcing,
            trace=trace,
        )
        if not self.config.last_chunks:
            return x
        first = x.shape[2] - self.config.last_chunks * self.student.config.geometry.chunk_latents
        return torch.cat((x[:, :, :first].detach(), x[:, :, first:]), dim=2)

    def _judge(self, x: Tensor, clips: LatentSet, draws: Draws) -> Tensor:
        """The student's loss on a rollout."""
        noised, _, sigma = self._noised(x, draws)
        silence = torch.zeros(len(clips))
        scores: list[Tensor] = []
        with torch.set_grad_enabled(self.config.objective == "sid"):
            for model, keep in ((self.real, None), (self.real, silence), (self.fake, None)):
                conditions = _without_gradient(conditions_of(model, clips, keep))
                scores.append(model.transformer.sample(noised, sigma, conditions))
        real = guided(scores[0], scores[1], self.config.guidance)
        if self.config.objective == "dmd":
            return dmd_loss(x, real, scores[2])
        return sid_loss(x, real, scores[2], alpha=self.config.alpha)

    def _noised(self, x: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """x at one random noise level per clip, the reference clean; the noise and the levels [B, T]."""
        u = draws.rand(x.shape[0], 1)
        level = shift_sigma(u, self.student.config.schedule.shift).clamp(self.config.low, self.config.high)
        sigma = level.expand(-1, x.shape[2]).clone()
        sigma[:, 0] = 0
        noise = draws.randn(*x.shape)
        return add_noise(x, noise, sigma), noise, sigma


def _without_gradient(conditions: Conditions) -> Conditions:
    """Conditions of a judge: its projections are not trained by the student's loss."""
    return Conditions(conditions.talk.detach(), conditions.listen.detach(), conditions.reference, conditions.text)
