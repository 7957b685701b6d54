"""The whole model of an avatar: audio lanes, transformer and codec, and its folder on disk.

A folder holds `config.json` and `model.safetensors` (or shards and their index), at full size also `text.safetensors`
and other decoders; nothing else is needed to run, and nothing in it is executed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from streamavatar.cache import RingCache, TapeCache
from streamavatar.config import ModelConfig, WanCodecConfig
from streamavatar.errors import UserError
from streamavatar.models.audio import AudioConditioner
from streamavatar.models.codec.choice import (
    DECODERS,
    DecoderName,
    OtherConfig,
    SwappedCodec,
    decoder_file,
    fill_decoder,
    heavy_parts,
    make_codec,
)
from streamavatar.models.codec.choice import read_config as read_decoder_config
from streamavatar.models.codec.flow import FlowCodec
from streamavatar.models.codec.wan import WanEncoder
from streamavatar.models.files import check, fill, shapes_of, write_safetensors
from streamavatar.models.text import read_text, write_text
from streamavatar.models.transformer import Transformer
from streamavatar.models.weights import open_weights
from streamavatar.positions import Positions

CONFIG, WEIGHTS, TEXT = "config.json", "model.safetensors", "text.safetensors"
OWN_DECODER = ("codec.decoder.", "codec.post_quant_conv.")
"""What another decoder makes superfluous."""


class AvatarModel(nn.Module):
    """Everything with weights.

    Args:
        config: see :class:`streamavatar.config.ModelConfig`.
        other: sizes of another decoder of Wan's latents than the codec's own.
    """

    codec: Any  # make_codec's: they share open, decode and encode, and training knows which it has
    text: Tensor | None
    """The prompt's embedding [1, 512, text_dim] for `Conditions.text`, where the model has a text path."""

    def __init__(self, config: ModelConfig, other: OtherConfig | None = None) -> None:
        super().__init__()
        self.config = config
        geometry = config.geometry
        self.positions = Positions(geometry, config.context)
        self.audio = AudioConditioner(config.audio, geometry.fps, geometry.temporal_stride)
        self.transformer = Transformer(config.transformer)
        self.codec = make_codec(config.codec, geometry, other)
        self.register_buffer("text", None, persistent=False)

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
        """Write the folder; weights as `dtype`, the codec's statistics in float32, its components in float16.

        Raises:
            ValueError: the model was loaded with a decoder that is not its own.
        """
        if isinstance(self.codec, SwappedCodec):
            raise ValueError("load the model with decoder='full' to save it")
        folder.mkdir(parents=True, exist_ok=True)
        state = self.state_dict()
        kinds = dict.fromkeys(state, dtype) | dict.fromkeys(dict(self.named_buffers()), torch.float32)
        if isinstance(self.codec, FlowCodec):
            kinds |= dict.fromkeys((f"codec.{name}" for name in self.codec.components), torch.float16)
        shapes = {name: (kinds[name], tuple(value.shape)) for name, value in state.items()}
        write_safetensors(folder / WEIGHTS, shapes, state.__getitem__)
        if self.text is not None:
            write_text(folder / TEXT, self.text[0])
        self.config.save(folder / CONFIG)

    @staticmethod
    def load(
        folder: Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        decoder: DecoderName = "full",
        decoder_device: torch.device | str | None = None,
    ) -> AvatarModel:
        """Read a folder, in evaluation mode; every tensor goes straight to where it stays.

        Args:
            folder: config.json, and model.safetensors or an index of shards; with a text path text.safetensors, and
                light.safetensors or pruned.safetensors where such a decoder is wanted.
            device: of the weights.
            dtype: of the transformer and of the decoder; everything else is float32.
            decoder: the model's own, or one of Wan's latents beside it.
            decoder_device: of the codec's weights; `device` if None.

        Raises:
            UserError: a missing or damaged file, or the tensors that do not fit the configuration.
        """
        config = read_config(folder)
        other = None
        if decoder not in DECODERS:
            raise UserError(f"unknown decoder {decoder!r}; use {', '.join(DECODERS)}")
        if decoder != "full":
            if not isinstance(config.codec, WanCodecConfig):
                raise UserError(f"{folder}: this model has one decoder; leave out --decoder, or give full")
            other = read_decoder_config(decoder_file(folder, decoder))
        with torch.device("meta"):
            model = AvatarModel(config, other)
        beside = device if decoder_device is None else decoder_device
        model._read_weights(folder, device, beside, dtype)
        if isinstance(model.codec, SwappedCodec):
            fill_decoder(model.codec.other, decoder_file(folder, decoder), beside, dtype)
        if config.transformer.text_dim:
            model.text = read_text(folder / TEXT, config.transformer.text_dim).to(device, dtype)
        if torch.device(beside).type == "cuda" and isinstance(model.codec, WanEncoder):
            model.codec.channels_last()  # of whatever decoder it has
        return model.eval().requires_grad_(False)

    def _read_weights(
        self, folder: Path, device: torch.device | str, beside: torch.device | str, dtype: torch.dtype
    ) -> None:
        """Everything but a decoder that is not the model's own."""
        expected = {name: shape for name, shape in shapes_of(self).items() if not name.startswith("codec.other.")}
        path = folder / WEIGHTS if (folder / WEIGHTS).exists() else folder / f"{WEIGHTS}.index.json"
        with open_weights(path if path.exists() else folder / WEIGHTS) as stored:
            found = dict(stored.shapes)
            if isinstance(self.codec, SwappedCodec):
                found = {name: shape for name, shape in found.items() if not name.startswith(OWN_DECODER)}
            check(path, expected, found, f"use the {CONFIG} that was saved with these weights")
            for codec, place in ((False, device), (True, beside)):
                names = [name for name in expected if name.startswith("codec.") == codec]
                fill(self, stored, names, place, self.precision(dtype))

    def precision(self, dtype: torch.dtype) -> Callable[[str], torch.dtype]:
        """The type of every tensor, by name, of a model whose transformer and decoder compute in `dtype`."""
        buffers = dict(self.named_buffers())
        heavy = ("transformer.", *(f"codec.{name}" for name in heavy_parts(self.codec)))
        return lambda name: dtype if name.startswith(heavy) and name not in buffers else torch.float32


def read_config(folder: Path) -> ModelConfig:
    """The configuration in a model folder.

    Raises:
        UserError: it is missing, damaged or not valid.
    """
    try:
        text = (folder / CONFIG).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{folder}: no readable {CONFIG} ({error}); give a model folder with {CONFIG} and {WEIGHTS}"
        ) from error
    return ModelConfig.from_json(text, source=str(folder / CONFIG))
