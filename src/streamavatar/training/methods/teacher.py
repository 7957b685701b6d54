"""The bidirectional teacher by flow matching on the clean sample (paper, 1.6).

Half of the clips have one noise level throughout, as the solver needs; the others have a level per chunk or a clean
past, so that the student, which is started from these weights, already knows chunks of unequal noise.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from streamavatar.data.latents import LatentSet
from streamavatar.draws import Draws
from streamavatar.losses.flow import importance, sample_loss
from streamavatar.models.avatar import AvatarModel
from streamavatar.models.transformer import Conditions
from streamavatar.schedule import add_noise, shift_sigma
from streamavatar.training.trainer import Method

MOUTH_WEIGHT = 5.0
DROPOUT = 0.1


def trainable(model: AvatarModel) -> None:
    """Train the transformer and the lanes' projections; the audio encoder and the codec stay."""
    model.requires_grad_(False)
    for part in (model.transformer, model.audio.talk, model.audio.listen):
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
    """

    def __init__(self, model: AvatarModel, clips: LatentSet, window: int) -> None:
        trainable(model)
        self.module: nn.Module = model
        self.model, self.clips, self.window = model, clips, window

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
        level = torch.where(kind < 0.5, same, torch.where(kind < 0.75, each, torch.where(past, 0.0, same)))
        level = level.repeat_interleave(geometry.chunk_latents, dim=1)
        return torch.cat((torch.zeros(batch, 1), level), dim=1)

    def loss(self, step: int, batch: int, draws: Draws) -> dict[str, Tensor]:
        clips = self.clips.draw(batch, self.window, draws)
        z = clips.latents
        sigma = self._sigma(batch, z.shape[2], draws)
        x = add_noise(z, draws.randn(*z.shape), sigma)
        keep = (draws.rand(batch) >= DROPOUT).float()
        estimate = self.model.transformer.sample(x, sigma, conditions_of(self.model, clips, keep))
        noisy = (sigma > 0).float()
        weight = 1 + MOUTH_WEIGHT * clips.mouth
        with torch.no_grad():
            still = sample_loss(z[:, :, :1].expand_as(z), z, noisy, weight)
        loss = sample_loss(estimate, z, noisy, weight)
        return {"loss": loss, "vs_still": loss.detach() / still, "weight": importance(z, noisy, weight)}
