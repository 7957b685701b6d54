"""The causal student's start: regression of the teacher's ODE trajectories, block-causally (paper, 2.5).

Every chunk of a clip takes a noise level of its own among the student's passes, and sees the chunks before it as noisy
as they are, through the same cache, sinks and RAPR as at run time.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from streamavatar.data.latents import LatentSet
from streamavatar.draws import Draws
from streamavatar.losses.flow import importance, sample_loss
from streamavatar.losses.ode import pick_levels
from streamavatar.models.avatar import AvatarModel
from streamavatar.models.transformer import Conditions
from streamavatar.rollout import prime, read_chunks
from streamavatar.schedule import solver_sigmas, velocity_from_sample
from streamavatar.training.methods.student import long_rollout
from streamavatar.training.methods.teacher import TeachingConfig, conditions_of, trainable
from streamavatar.training.trainer import Method


@torch.no_grad()
def trajectories(
    model: AvatarModel,
    clips: LatentSet,
    noise: Tensor,
    steps: int = 16,
    guidance: float = 1.0,
    *,
    causal: bool = False,
) -> tuple[Tensor, Tensor]:
    """Solve the teacher's ODE (Euler) and keep the points at the student's noise levels.

    Args:
        model: the teacher.
        clips: conditions and reference.
        noise: start, [B, C, T, H, W].
        steps: solver steps before the student's own levels are merged in.
        guidance: 1 is none; above, both lanes are guided against silence.
        causal: the teacher is autoregressive: each chunk is solved after the finished ones before it.

    Returns:
        Points [B, N, C, T, H, W] at `model.config.schedule.sigmas`, and the end x0 [B, C, T, H, W].
    """
    lanes = [conditions_of(model, clips)]
    if guidance != 1:
        lanes.append(conditions_of(model, clips, torch.zeros(len(clips), device=noise.device)))
    x = noise.clone()
    x[:, :, 0] = clips.latents[:, :, 0]

    def guided(estimates: list[Tensor]) -> Tensor:
        first = estimates[0].float()
        return first if guidance == 1 else estimates[1].float() + guidance * (first - estimates[1].float())

    if not causal:
        return _solve(model, x, steps, lambda x, s: guided([model.transformer.sample(x, s, c) for c in lanes]))
    caches = [model.tape_cache() for _ in lanes]
    for cache, conditions in zip(caches, lanes, strict=True):
        prime(model.transformer, cache, conditions.latents(range(1)))
    size, first = model.config.geometry.chunk_latents, x[:, :, :1]
    points, ends = [first[:, None].expand(-1, len(model.config.schedule.sigmas), -1, -1, -1, -1)], [first]
    for chunk, start in enumerate(range(1, x.shape[2], size), start=1):
        own = [c.latents(range(start, start + size)) for c in lanes]

        def estimate(x: Tensor, s: Tensor, chunk: int = chunk, own: list[Conditions] = own) -> Tensor:
            views = [cache.view(chunk) for cache in caches]
            return guided([model.transformer.sample(x, s, c, v) for c, v in zip(own, views, strict=True)])

        kept, end = _solve(model, x[:, :, start : start + size], steps, estimate, given=0)
        for cache, conditions in zip(caches, own, strict=True):
            view = cache.view(chunk)
            model.transformer.sample(end, torch.zeros(end.shape[0], size, device=end.device), conditions, view)
            view.commit()
        points.append(kept)
        ends.append(end)
    return torch.cat(points, dim=3), torch.cat(ends, dim=2)


def _solve(
    model: AvatarModel, x: Tensor, steps: int, estimate: Callable[[Tensor, Tensor], Tensor], given: int = 1
) -> tuple[Tensor, Tensor]:
    """Euler steps from noise x to the end; the first `given` latents are given and stay. Points and end."""
    schedule = model.config.schedule
    levels = sorted({*solver_sigmas(steps, schedule.shift).tolist(), *schedule.sigmas}, reverse=True)
    clean, kept = x[:, :, :given], {}
    for level, following in pairwise(levels):
        if level in schedule.sigmas:
            kept[level] = x
        sigma = torch.full(x.shape[:1] + x.shape[2:3], level, device=x.device)
        sigma[:, :given] = 0
        x = x + (following - level) * velocity_from_sample(x, estimate(x, sigma), sigma)
        x = torch.cat((clean, x[:, :, given:]), dim=2)
    return torch.stack([kept[s] for s in schedule.sigmas], dim=1), x


class OdeMethod(Method):
    """See the module's docstring.

    Args:
        model: the student, starting from the teacher's weights.
        clips: conditions of the pairs.
        points, ends: see :func:`trajectories`, for all clips, float16.
        mouth: see `TeachingConfig`.
    """

    passes_meet = True  # chunks see those before them with gradient

    def __init__(
        self, model: AvatarModel, clips: LatentSet, points: Tensor, ends: Tensor, mouth: float = TeachingConfig.mouth
    ) -> None:
        trainable(model)
        self.module: nn.Module = model
        self.model, self.clips, self.points, self.ends, self.mouth = model, clips, points, ends, mouth

    def to(self, device: torch.device) -> None:
        super().to(device)
        self.clips, self.points, self.ends = self.clips.to(device), self.points.to(device), self.ends.to(device)

    def sample(self, draws: Draws, reference: Tensor) -> Tensor:
        return long_rollout(self.model, self.clips, draws, reference)

    def loss(self, step: int, batch: int, draws: Draws) -> dict[str, Tensor]:
        chosen = draws.randint(0, len(self.ends), batch)
        clips, target = self.clips.take(chosen), self.ends[chosen].float()
        chunk = self.model.config.geometry.chunk_latents
        sigmas = torch.tensor(self.model.config.schedule.sigmas)
        index = draws.randint(0, len(sigmas), batch, (target.shape[2] - 1) // chunk)
        x, sigma = pick_levels(self.points[chosen].float(), sigmas, index, chunk)
        cache = self.model.tape_cache(detach=False)
        estimate = read_chunks(self.model.transformer, cache, x, sigma, conditions_of(self.model, clips), chunk)
        weight = 1 + self.mouth * clips.mouth[:, 1:]
        target, keep = target[:, :, 1:], torch.ones(batch, target.shape[2] - 1)
        still = sample_loss(clips.latents[:, :, :1].expand_as(target), target, keep, weight)
        loss = sample_loss(estimate, target, keep, weight)
        return {"loss": loss, "vs_still": loss.detach() / still, "weight": importance(target, keep, weight)}
