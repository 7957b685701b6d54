"""The whole model of an avatar: audio lanes, transformer and codec, and its folder on disk.

A folder holds `config.json` and `model.safetensors`; nothing else is needed to run, and nothing in it is executed.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from streamavatar.cache import RingCache, TapeCache
from streamavatar.config import ModelConfig
from streamavatar.errors import UserError
from streamavatar.models.audio import AudioConditioner
from streamavatar.models.codec import LightCodec
from streamavatar.models.transformer import Transformer
from streamavatar.positions import Positions

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class AvatarModel(nn.Module):
    """Everything with weights.

    Args:
        config: see :class:`streamavatar.config.ModelConfig`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        geometry = config.geometry
        self.positions = Positions(geometry, config.context)
        self.audio = AudioConditioner(config.audio, geometry.fps, geometry.temporal_stride)
        self.transformer = Transformer(config.transformer)
        self.codec = LightCodec(config.codec, geometry)

    def ring_cache(self, batch: int = 1) -> RingCache:
        """A cache for run time, in the transformer's precision and on its device."""
        weight = self.transformer.head.head.weight
        config = self.config.transformer
        return RingCache(
            self.positions,
            self.config.geometry.grid,
            layers=config.layers,
            heads=config.heads,
            head_dim=config.head_dim,
            theta=config.rope_theta,
            batch=batch,
            dtype=weight.dtype,
            device=weight.device,
        )

    def tape_cache(self, *, detach: bool = True) -> TapeCache:
        """A cache for training."""
        config = self.config.transformer
        return TapeCache(self.positions, self.config.geometry.grid, config.head_dim, config.rope_theta, detach=detach)

    # files -----------------------------------------------------------------------------------------

    def save(self, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
        """Write the folder; float weights as `dtype`, the codec's statistics in float32."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            name: value.detach().to(torch.float32 if name in dict(self.named_buffers()) else dtype).contiguous()
            for name, value in self.state_dict().items()
        }
        temporary = folder / f".{WEIGHTS}.partial"
        save_file(tensors, temporary)
        temporary.chmod(0o644)  # the library makes it readable to its owner alone
        self.config.save(folder / CONFIG)
        os.replace(temporary, folder / WEIGHTS)

    @staticmethod
    def load(folder: Path) -> AvatarModel:
        """Read a folder; weights in float32 on the CPU, in evaluation mode.

        Raises:
            UserError: a missing or damaged file, or the first tensor that does not fit the configuration.
        """
        try:
            text = (folder / CONFIG).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{folder}: no readable {CONFIG} ({error}); give a model folder with {CONFIG} and {WEIGHTS}"
            ) from error
        model = AvatarModel(ModelConfig.from_json(text, source=str(folder / CONFIG)))
        model._read_weights(folder / WEIGHTS)
        return model.eval().requires_grad_(False)

    def _read_weights(self, path: Path) -> None:
        expected = self.state_dict()
        try:
            with safe_open(path, framework="pt") as file:
                found = set(file.keys())
                _same_keys(path, set(expected), found)
                for name, value in expected.items():
                    shape = tuple(file.get_slice(name).get_shape())
                    if shape != tuple(value.shape):
                        raise UserError(
                            f"{path}: {name} has shape {shape} but {CONFIG} asks for {tuple(value.shape)}; "
                            "use the config.json that was saved with these weights"
                        )
                    value.copy_(file.get_tensor(name))
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: cannot read weights ({error}); copy or download the file again") from error


def _same_keys(path: Path, expected: set[str], found: set[str]) -> None:
    for title, names in (("is missing", expected - found), ("has unexpected", found - expected)):
        if names:
            raise UserError(
                f"{path}: {title} {len(names)} tensors, the first {min(names)}; "
                f"use the {CONFIG} that was saved with these weights"
            )
