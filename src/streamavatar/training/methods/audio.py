"""Pretraining of the audio encoder: visemes and mouth opening from speech with known phone times.

Needs no rendering, so it is cheap; the transformer then starts from features in which the mouth is already visible.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional

from streamavatar.draws import Draws
from streamavatar.models.audio import AFTER, BEFORE, AudioEncoder
from streamavatar.training.trainer import Method

TARGETS = 17
"""15 visemes, mouth opening, mouth width."""


class AudioMethod(Method):
    """Regression of the mouth's truth from the features of five frames.

    Args:
        encoder: to train.
        lanes: waveforms [N, S].
        targets: [N, F, 17] with S = F * frame_samples.
        crop: frames of a sample.
        head_first: steps of the new head alone. An encoder that has been trained before then keeps the features that
            others read (Kumar et al., arXiv 2202.10054): a new head's first gradients would turn them around.
        keep: weight of the features' distance to those that the encoder has now, as a share of their variance; what
            reads them then understands those to come.
    """

    def __init__(
        self,
        encoder: AudioEncoder,
        lanes: Tensor,
        targets: Tensor,
        crop: int = 75,
        head_first: int = 0,
        keep: float = 0.0,
    ) -> None:
        window = BEFORE + 1 + AFTER
        feature_dim = encoder.config.feature_dim
        head = nn.Sequential(nn.Linear(window * feature_dim, 128), nn.GELU(), nn.Linear(128, TARGETS))
        self.encoder, self.head = encoder, head
        self.module: nn.Module = nn.ModuleDict({"encoder": encoder, "head": head})
        self.lanes, self.targets, self.crop, self.head_first = lanes, targets, crop, head_first
        self.keep, self.before = keep, deepcopy(encoder).requires_grad_(False) if keep else None

    def to(self, device: torch.device) -> None:
        super().to(device)
        self.lanes, self.targets = self.lanes.to(device), self.targets.to(device)
        if self.before is not None:
            self.before.to(device)

    def predict(self, features: Tensor) -> Tensor:
        """Features [B, BEFORE + F + AFTER, feature_dim] to [B, F, 17]."""
        return self.head(features.unfold(1, BEFORE + 1 + AFTER, 1).transpose(2, 3).flatten(2))

    def loss(self, step: int, batch: int, draws: Draws) -> dict[str, Tensor]:
        encoder = self.encoder
        size, lead = encoder.frame_samples, encoder.history + BEFORE
        frames = self.targets.shape[1]
        clip = draws.randint(0, len(self.lanes), batch)
        start = draws.randint(lead, frames - self.crop - AFTER, batch)
        spans = [(s - lead, s + self.crop + AFTER) for s in start.tolist()]
        waves = torch.stack([self.lanes[c, a * size : b * size] for c, (a, b) in zip(clip, spans, strict=True)])
        truth = torch.stack([self.targets[c, s : s + self.crop] for c, s in zip(clip, start, strict=True)])
        gain = 10 ** ((draws.rand(batch, 1) * 24 - 18) / 20)
        noise = 10 ** ((draws.rand(batch, 1) * 40 - 90) / 20)
        waves = waves * gain + draws.randn(*waves.shape) * noise
        features = encoder(waves)
        predicted = self.predict(features.detach() if step < self.head_first else features).float()
        visemes = functional.mse_loss(predicted[..., :15], truth[..., :15])
        opening = functional.mse_loss(predicted[..., 15:], truth[..., 15:])
        r = torch.corrcoef(torch.stack((predicted[..., 15].flatten().detach(), truth[..., 15].flatten())))[0, 1]
        values = {"loss": 5 * visemes + 4 * opening, "visemes": visemes, "opening": opening, "r": r}
        if self.before is not None:
            with torch.no_grad():
                known = self.before(waves)
            moved = functional.mse_loss(features, known) / known.var(dim=(0, 1)).mean()
            values |= {"loss": values["loss"] + self.keep * moved, "moved": moved}
        return values
