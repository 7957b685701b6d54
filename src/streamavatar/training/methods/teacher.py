"""The bidirectional teacher by flow matching on the clean sample (paper, 1.6).

Half of the clips have one noise level throughout, as the solver needs; the others have a level per chunk or a clean
past, so that the student, which is started from these weights, already knows chunks of unequal noise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from streamavatar.data.latents import LatentSet
from streamavatar.draws import Draws
from streamavatar.losses.flow import importance, sample_loss, velocity_loss
from streamavatar.models.avatar import AvatarModel
from streamavatar.models.transformer import Conditions
from streamavatar.rollout import read_chunks
from streamavatar.schedule import add_noise, shift_sigma
from streamavatar.training.lora import trained_parts
from streamavatar.training.trainer import Method


@dataclass(frozen=True)
class TeachingConfig:
    """How the teacher is taught.

    Attributes:
        loss: on the clean sample, or on the velocity as the paper has it (the former times 1 / sigma squared).
        mouth: how much more a latent cell counts that the mouth covers.
        dropout: share of clips whose lanes are silenced, for guidance.
        unequal: share of clips with a noise level per chunk or a clean past; 0 is the paper's.
        causal: chunks see the chunks before them alone, through the cache, as the student's do.
        sound_noise, look_noise: standard deviation of noise on what is heard, and on what the reference says of looks
            (`reference_channels`), relative to their own: conditions that are never twice the same cannot be learnt by
            heart (conditioning augmentation, Ho et al. 2021, arXiv 2106.15282).
    """

    loss: Literal["sample", "velocity"] = "sample"
    mouth: float = 5.0
    dropout: float = 0.1
    unequal: float = 0.5
    causal: bool = False
    sound_noise: float = 0.0
    look_noise: float = 0.0

    def __post_init__(self) -> None:
        for name in ("dropout", "unequal"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"teaching: {name} is a share, 0 to 1")


def trainable(model: AvatarModel) -> None:
    """Train the transformer (or its adapters) and the lanes' projections; the audio encoder and the codec stay."""
    model.requires_grad_(False)
    for part in trained_parts(model):
        part.requires_grad_(True)


def conditions_of(model: AvatarModel, clips: LatentSet, keep: Tensor | None = None) -> Conditions:
    """Conditions of whole clips; `keep` [B] set to 0 silences both lanes (condition dropout, CFG)."""
    talk, listen = clips.talk, clips.listen
    if keep is not None:
        talk, listen = talk * keep[:, None, None], listen * keep[:, None, None]
    span = range(clips.latents.shape[2])
    tokens = model.audio.tokens(talk, listen, LatentSet.first_frame, span)
    return Conditions(*tokens, reference=clips.latents[:, :, :1], text=_text(model, len(clips)))


def _text(model: AvatarModel, batch: int) -> Tensor | None:
    """The fixed prompt's embedding for every clip, where the model has one."""
    return None if model.text is None else model.text.expand(batch, -1, -1)


class TeacherMethod(Method):
    """See the module's docstring.

    Args:
        model: whose transformer and projections are trained.
        clips: training data.
        window: latents of a training sample, the reference included; cut from the clips at random.
        config: see :class:`TeachingConfig`.
    """

    def __init__(self, model: AvatarModel, clips: LatentSet, window: int, config: TeachingConfig | None = None) -> None:
        trainable(model)
        self.module: nn.Module = model
        self.model, self.clips, self.window, self.config = model, clips, window, config or TeachingConfig()

    def to(self, device: torch.device) -> None:
        super().to(device)
        self.clips = self.clips.to(device)

    def _sigma(self, batch: int, latents: int, draws: Draws) -> Tensor:
        """Noise levels [B, T]; 0 for the reference."""
        geometry, shift = self.model.config.geometry, self.model.config.schedule.shift
        chunks = (latents - 1) // geometry.chunk_latents
        kind = draws.rand(batch, 1)
        same = shift_sigma(draws.rand(batch, 1), shift).expand(-1, chunks)
        each = shift_sigma(draws.rand(batch, chunks), shift)
        past = torch.arange(chunks)[None] < draws.randint(1, chunks, batch, 1)
        even = 1 - self.config.unequal
        level = torch.where(kind < even, same, torch.where(kind < (even + 1) / 2, each, torch.where(past, 0.0, same)))
        level = level.repeat_interleave(geometry.chunk_latents, dim=1)
        return torch.cat((torch.zeros(batch, 1), level), dim=1)

    def loss(self, step: int, batch: int, draws: Draws) -> dict[str, Tensor]:
        clips = self._disturbed(self.clips.draw(batch, self.window, draws), draws)
        z = clips.latents
        sigma = self._sigma(batch, z.shape[2], draws)
        x = add_noise(z, draws.randn(*z.shape), sigma)
        keep = (draws.rand(batch) >= self.config.dropout).float()
        estimate = self._estimate(x, sigma, conditions_of(self.model, clips, keep))
        noisy = (sigma > 0).float()
        weight = 1 + self.config.mouth * clips.mouth
        with torch.no_grad():
            still = sample_loss(z[:, :, :1].expand_as(z), z, noisy, weight)
        error = sample_loss(estimate, z, noisy, weight)
        loss = velocity_loss(estimate, z, sigma, weight) if self.config.loss == "velocity" else error
        return {"loss": loss, "vs_still": error.detach() / still, "weight": importance(z, noisy, weight)}

    def _disturbed(self, clips: LatentSet, draws: Draws) -> LatentSet:
        """Clips with noise on their conditions; looks change alike in all latents, so that motion stays what it is."""
        sound, look = self.config.sound_noise, self.config.look_noise
        if sound:
            lanes = {}
            for name in ("talk", "listen"):
                heard = getattr(clips, name)
                loud = heard != 0
                spread = (heard.square().sum() / loud.sum().clamp(min=1)).sqrt()
                lanes[name] = heard + sound * spread * loud * draws.randn(*heard.shape)
            clips = replace(clips, **lanes)
        if look and (channels := self.model.config.transformer.reference_channels):
            batch, _, _, *cells = clips.latents.shape
            spread = self.model.transformer.reference_scale[:, None, None, None]
            shift = look * spread * draws.randn(batch, channels, 1, *cells)
            looks, motion = clips.latents[:, :channels], clips.latents[:, channels:]
            clips = replace(clips, latents=torch.cat((looks + shift, motion), dim=1))
        return clips

    def _estimate(self, x: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
        model = self.model
        if not self.config.causal:
            return model.transformer.sample(x, sigma, conditions)
        cache, chunk = model.tape_cache(detach=False), model.config.geometry.chunk_latents
        made = read_chunks(model.transformer, cache, x, sigma, conditions, chunk)
        return torch.cat((x[:, :, :1], made), dim=2)
