"""The decoders of Wan's latents to choose from when a model is loaded.

full: Wan's own. light: TAEHV, about a two-hundredth of the work. pruned: Wan's with fewer channels, distilled. All read
the same latents; the reference picture is always encoded by Wan's encoder. Light and pruned decoders lie beside the
model in files of their own, which say their sizes themselves.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Literal, get_args

import dacite
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from streamavatar.config import CodecConfig, FlowCodecConfig, TaehvConfig, WanCodecConfig
from streamavatar.errors import UserError
from streamavatar.geometry import Geometry
from streamavatar.models.codec.flow import FlowCodec
from streamavatar.models.codec.light import LightCodec
from streamavatar.models.codec.taehv import Taehv, TaehvState
from streamavatar.models.codec.wan import WanCodec, WanDecoder, WanEncoder, WanState
from streamavatar.models.files import check, fill, shapes_of, write_safetensors
from streamavatar.models.weights import open_weights

DecoderName = Literal["full", "light", "pruned"]
DECODERS: tuple[DecoderName, ...] = get_args(DecoderName)
OtherConfig = TaehvConfig | WanCodecConfig
"""Sizes of a decoder that is not the model's own."""


class SwappedCodec(WanEncoder):
    """Wan's encoder before another decoder of its latents.

    Args:
        config: of the encoder.
        other: sizes of the decoder.
    """

    def __init__(self, config: WanCodecConfig, other: OtherConfig) -> None:
        super().__init__(config)
        self.other = make_decoder(other)

    def open(self, picture: Tensor) -> tuple[Tensor, WanState | TaehvState]:
        """Reference picture [B, 3, H, W] in -1..1 to its latent [B, C, 1, h, w] and the state to decode from."""
        latent = self.encode_picture(picture)
        return latent, self.other.decode_start(latent)[1]

    def decode(self, latents: Tensor, state: WanState | TaehvState) -> tuple[Tensor, WanState | TaehvState]:
        """Later latents [B, C, T, h, w] to frames [B, 3, 4 T, H, W] in -1..1 and the state to go on with."""
        return self.other.decode(latents, state)  # type: ignore[arg-type]  # the state is the decoder's own


Codec = LightCodec | FlowCodec | WanCodec | SwappedCodec


def make_codec(
    config: CodecConfig | FlowCodecConfig | WanCodecConfig, geometry: Geometry, other: OtherConfig | None = None
) -> Codec:
    """The codec of a model, with its own decoder or another."""
    if isinstance(config, FlowCodecConfig):
        return FlowCodec(config, geometry)
    if isinstance(config, CodecConfig):
        return LightCodec(config, geometry)
    return WanCodec(config) if other is None else SwappedCodec(config, other)


def make_decoder(config: OtherConfig) -> Taehv | WanDecoder:
    return Taehv(config) if isinstance(config, TaehvConfig) else WanDecoder(config)


def heavy_parts(codec: Codec) -> tuple[str, ...]:
    """Names, as beginnings, of what run time computes per chunk and may compute in bfloat16."""
    if isinstance(codec, LightCodec | FlowCodec):
        return ("detail.",)
    return ("decoder.", "post_quant_conv.") if isinstance(codec, WanCodec) else ("other.",)


# files ---------------------------------------------------------------------------------------------


def decoder_file(folder: Path, name: str) -> Path:
    """Where a model folder keeps a light or pruned decoder."""
    return folder / f"{name}.safetensors"


def save_decoder(decoder: Taehv | WanDecoder, path: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write a decoder with its sizes."""
    state = decoder.state_dict()
    shapes = {name: (dtype, tuple(value.shape)) for name, value in state.items()}
    kind = "taehv" if isinstance(decoder, Taehv) else "wan"
    words = {"decoder": kind, "config": json.dumps(asdict(decoder.config))}
    write_safetensors(path, shapes, state.__getitem__, words)


def read_config(path: Path) -> OtherConfig:
    """The sizes in a decoder's file.

    Raises:
        UserError: the file is missing, damaged, or says nothing of its sizes.
    """
    if not path.is_file():
        how = "--light taew2_2.pth" if path.stem == "light" else "recipes.wan22_5b.pruned_decoder"
        raise UserError(
            f"{path} is missing: this model has no {path.stem} decoder; use --decoder full, or add it: {how}"
        )
    try:
        with safe_open(path, framework="pt") as file:
            words = file.metadata() or {}
        kind = {"taehv": TaehvConfig, "wan": WanCodecConfig}[words["decoder"]]
        return dacite.from_dict(kind, json.loads(words["config"]), dacite.Config(strict=True, cast=[tuple]))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, dacite.DaciteError) as error:
        raise UserError(f"{path}: not a decoder of this program ({error}); make or copy it again") from error


def fill_decoder(decoder: nn.Module, path: Path, device: torch.device | str, dtype: torch.dtype) -> None:
    """Read a decoder's weights.

    Raises:
        UserError: naming the tensor that is missing, unexpected or of another shape.
    """
    with open_weights(path) as stored:
        shapes = shapes_of(decoder)
        check(path, shapes, stored.shapes, "make or copy it again")
        fill(decoder, stored, shapes, device, lambda name: dtype)
