"""Student forcing: whole clips rolled out on the student's own output, as at run time (paper, 2.7); or, for the
ablation, teacher forcing: every chunk made after the true ones.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from streamavatar.data.latents import LatentSet
from streamavatar.draws import Draws
from streamavatar.models.avatar import AvatarModel
from streamavatar.rollout import ExitPass, Passes, make_forced, make_sequence
from streamavatar.training.methods.teacher import conditions_of

Forcing = Literal["student", "teacher"]


def student_rollout(
    student: AvatarModel,
    clips: LatentSet,
    draws: Draws,
    *,
    exit_step: int | None = None,
    gradient: bool,
    forcing: Forcing = "student",
    trace: list[ExitPass] | None = None,
) -> Tensor:
    """Clips that the student makes of their references and audio.

    Args:
        student: transformer and projections.
        clips: conditions and references; the other latents are used by teacher forcing alone.
        draws: of the noise.
        exit_step: pass whose estimates are taken; the last if None.
        gradient: whether the exit passes keep their graph; it never crosses chunks.
        forcing: what the chunks before are: the student's own, or the true ones.
        trace: see :func:`streamavatar.rollout.make_chunk`; student forcing only.

    Returns:
        float32 [B, C, T, H, W], the reference first.
    """
    config = student.config
    size = config.geometry.chunk_latents
    shape = (*clips.latents.shape[:2], size, *clips.latents.shape[3:])
    model, cache, conditions = student.transformer, student.tape_cache(), conditions_of(student, clips)
    passes = Passes(config.schedule.sigmas, config.context.cache_mode, exit_step, gradient)

    def noise(chunk: int, step: int) -> Tensor:
        return draws.randn(*shape)

    if forcing == "teacher":
        chunks = make_forced(model, cache, clips.latents, conditions, noise, passes, size)
    else:
        chunks = make_sequence(model, cache, conditions, noise, passes, size, trace)
    return torch.cat([clips.latents[:, :, :1], *(chunk.float() for chunk in chunks)], dim=2)


def long_rollout(student: AvatarModel, clips: LatentSet, draws: Draws, reference: Tensor, times: int = 3) -> Tensor:
    """A person who hears the first clip's audio `times` times over: longer than anything in training, so drift shows.

    Args:
        reference: latent of the person, [1, C, 1, H, W].

    Returns:
        float32 [1, C, T, H, W], the reference first.
    """
    clip = clips.take(torch.zeros(1, dtype=torch.long))
    config, once = student.config, conditions_of(student, clip)
    size = config.geometry.chunk_latents
    kept = 1 + (clip.latents.shape[2] - 1) // size * size

    def again(tokens: Tensor) -> Tensor:
        return torch.cat((tokens[:, :1], *[tokens[:, 1:kept]] * times), dim=1)

    conditions = replace(once, talk=again(once.talk), listen=again(once.listen), reference=reference)
    shape = (1, clip.latents.shape[1], size, *clip.latents.shape[3:])
    chunks = make_sequence(
        student.transformer,
        student.tape_cache(),
        conditions,
        lambda chunk, step: draws.randn(*shape),
        Passes.of(config),
        size,
    )
    return torch.cat([reference, *(chunk.float() for chunk in chunks)], dim=2)
