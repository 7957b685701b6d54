"""Clips as training reads them: latents, audio features, mouth weights and truth, in shards of safetensors."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from streamavatar.draws import Draws
from streamavatar.errors import UserError
from streamavatar.models.audio import AFTER, BEFORE


@dataclass(frozen=True)
class LatentSet:
    """N clips of T latents (F frames).

    Attributes:
        latents: float16 [N, C, T, h, w].
        talk, listen: masked features of frames -BEFORE .. F + AFTER - 1, float16 [N, F + BEFORE + AFTER, feature_dim].
        mouth: share of each latent cell that the mouth covers, float16 [N, T, h, w].
        opening: true mouth opening per frame, float16 [N, F].
        state: 0 idle, 1 listening, 2 talking, 3 both, per frame, int8 [N, F].
    """

    latents: Tensor
    talk: Tensor
    listen: Tensor
    mouth: Tensor
    opening: Tensor
    state: Tensor

    first_frame = -BEFORE

    def __len__(self) -> int:
        return self.latents.shape[0]

    def to(self, device: torch.device) -> LatentSet:
        """The same clips on a device."""
        return LatentSet(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def take(self, index: Tensor) -> LatentSet:
        """A batch, float32 but for `state`."""
        values = {f.name: getattr(self, f.name)[index] for f in fields(self)}
        return LatentSet(**{name: v if name == "state" else v.float() for name, v in values.items()})

    def draw(self, count: int, latents: int, draws: Draws) -> LatentSet:
        """`count` random windows of `latents` latents (see :meth:`crop`), float32."""
        clips = self.take(draws.randint(0, len(self), count))
        last = self.latents.shape[2] - latents + 1
        return clips.crop(draws.randint(1, last + 1, count), latents)

    def crop(self, starts: Tensor, latents: int) -> LatentSet:
        """Windows of the clips, each with the clip's own reference before it.

        The reference then need not be the frame before the window: at run time it is not either.

        Args:
            starts: latent k >= 1 at which each clip's window begins, [N].
            latents: length of the windows, the reference included.
        """
        stride = (self.talk.shape[1] - 1 - BEFORE - AFTER) // (self.latents.shape[2] - 1)
        device = starts.device
        rows = torch.arange(len(self), device=device)[:, None]
        later = starts[:, None] + torch.arange(latents - 1, device=device)
        frames = (starts[:, None] - 1) * stride
        shown = frames + torch.arange(1 + (latents - 1) * stride, device=device)
        heard = frames + torch.arange(feature_frames(shown.shape[1]), device=device)
        picked = torch.cat((torch.zeros_like(later[:, :1]), later), dim=1)
        return LatentSet(
            latents=self.latents.transpose(1, 2)[rows, picked].transpose(1, 2),
            talk=self.talk[rows, heard],
            listen=self.listen[rows, heard],
            mouth=self.mouth[rows, picked],
            opening=self.opening[rows, shown],
            state=self.state[rows, shown],
        )

    def save(self, path: Path) -> None:
        """Write beside, then rename: a shard is whole or absent."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".partial")
        save_file({f.name: getattr(self, f.name).contiguous() for f in fields(self)}, temporary)
        os.replace(temporary, path)

    @staticmethod
    def load(folder: Path) -> LatentSet:
        """All shards of a folder, in name order.

        Raises:
            UserError: if there is none.
        """
        shards = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
        if not shards:
            raise UserError(f"{folder}: no latent shards; run the stage that makes them first")
        return LatentSet(**{name: torch.cat([s[name] for s in shards]) for name in shards[0]})


def feature_frames(frames: int) -> int:
    """How many feature rows a clip of `frames` frames needs."""
    return frames + BEFORE + AFTER
