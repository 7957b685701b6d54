"""Models of the full size with weights drawn at random, on the device where they stay: speed does not depend on what a
model has learnt, and zeros would run faster than weights do."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from streamavatar.config import ModelConfig, TaehvConfig, WanCodecConfig, Wav2Vec2Sizes
from streamavatar.models.avatar import AvatarModel
from streamavatar.models.codec.choice import DecoderName, OtherConfig
from streamavatar.models.codec.wan import WanEncoder
from streamavatar.models.full import wan22_5b
from streamavatar.models.text import LENGTH

_SEED = 20


def full_config(height: int, width: int) -> ModelConfig:
    return wan22_5b(height, width)


def reduced(config: ModelConfig, layers: int, dim: int) -> ModelConfig:
    """The same parts in small, to try out the measuring on a machine without a GPU."""
    heads = max(1, dim // config.transformer.head_dim)
    sizes = Wav2Vec2Sizes(layers=2, width=48, heads=2, ffn=96, conv_widths=(16,) * 7, position_groups=4)
    audio = replace(config.audio, feature_dim=sizes.layers * sizes.width, hidden=64, dim=32, wav2vec2=sizes)
    transformer = replace(
        config.transformer, layers=layers, dim=dim, heads=heads, ffn_dim=4 * dim, audio_dim=audio.dim, text_dim=64
    )
    codec = replace(WanCodecConfig(), encoder_dim=8, decoder_dim=8)
    return replace(config, name=f"{config.name}-reduced", transformer=transformer, audio=audio, codec=codec)


def decoder_config(config: ModelConfig, name: DecoderName) -> OtherConfig | None:
    """Sizes of a decoder; pruned is Wan's with half of the channels, a quarter of the work."""
    if name == "light":
        return TaehvConfig()
    assert isinstance(config.codec, WanCodecConfig)
    return (
        replace(config.codec, decoder_widths=tuple(w // 2 for w in config.codec.widths)) if name == "pruned" else None
    )


@torch.no_grad()
def draw(module: nn.Module, device: torch.device, dtype_of: dict[str, torch.dtype]) -> None:
    """Give a module on the meta device its weights: matrices scaled by their inputs, vectors near one or zero."""
    generator = torch.Generator(device).manual_seed(_SEED)
    for name, old in list(module.named_parameters()):
        new = torch.empty(old.shape, dtype=dtype_of[name], device=device)
        if new.ndim > 1:
            new.normal_(0, (new.numel() / new.shape[0]) ** -0.5, generator=generator)
        else:
            new.normal_(float(name.endswith(("weight", "gamma"))), 0.02, generator=generator)
        owner, _, last = name.rpartition(".")
        setattr(module.get_submodule(owner), last, nn.Parameter(new, requires_grad=False))


def drawn_model(config: ModelConfig, decoder: DecoderName, device: torch.device, dtype: torch.dtype) -> AvatarModel:
    """A model as `AvatarModel.load` would give it."""
    with torch.device("meta"):
        model = AvatarModel(config, decoder_config(config, decoder))
    kind = model.precision(dtype)
    draw(model, device, {name: kind(name) for name, _ in model.named_parameters()})
    generator = torch.Generator(device).manual_seed(_SEED)
    text = torch.empty(1, LENGTH, config.transformer.text_dim, device=device, dtype=dtype)
    model.text = text.normal_(generator=generator)
    if device.type == "cuda" and isinstance(model.codec, WanEncoder):
        model.codec.channels_last()
    return model.eval()
