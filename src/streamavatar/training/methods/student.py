"""Student forcing: whole clips rolled out on the student's own output, as at run time (paper, 2.7)."""

from __future__ import annotations

import torch
from torch import Tensor

from streamavatar.data.latents import LatentSet
from streamavatar.models.avatar import AvatarModel
from streamavatar.rollout import ExitPass, Passes, make_sequence
from streamavatar.training.methods.teacher import conditions_of


def student_rollout(
    student: AvatarModel,
    clips: LatentSet,
    generator: torch.Generator,
    *,
    exit_step: int | None = None,
    gradient: bool,
    trace: list[ExitPass] | None = None,
) -> Tensor:
    """Clips that the student makes of their references and audio.

    Args:
        student: transformer and projections.
        clips: conditions and references; the other latents are not used.
        generator: of the noise.
        exit_step: pass whose estimates are taken; the last if None.
        gradient: whether the exit passes keep their graph; it never crosses chunks.
        trace: see :func:`streamavatar.rollout.make_chunk`.

    Returns:
        float32 [B, C, T, H, W], the reference first.
    """
    config = student.config
    size = config.geometry.chunk_latents
    shape = (*clips.latents.shape[:2], size, *clips.latents.shape[3:])
    chunks = make_sequence(
        student.transformer,
        student.tape_cache(),
        conditions_of(student, clips),
        lambda chunk, step: torch.randn(shape, generator=generator),
        Passes(config.schedule.sigmas, config.context.cache_mode, exit_step, gradient),
        size,
        trace,
    )
    return torch.cat([clips.latents[:, :, :1], *(chunk.float() for chunk in chunks)], dim=2)
