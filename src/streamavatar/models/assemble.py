"""A model folder out of pulled parts: Wan's transformer (or a student of it), codec and text encoder, wav2vec 2.0.

Every part is checked before a byte is written; then tensors are copied one at a time into one file that appears when it
is whole. What no part has, the talk and listen attention and the projections of audio to tokens, starts fresh: its
output is zero, so the model computes what Wan's does until it is trained.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from streamavatar.config import ModelConfig, TaehvConfig, WanCodecConfig
from streamavatar.errors import UserError
from streamavatar.models.audio import LaneTokens
from streamavatar.models.avatar import CONFIG, TEXT, WEIGHTS, AvatarModel
from streamavatar.models.codec.choice import decoder_file, save_decoder
from streamavatar.models.codec.names import is_wan, wan_name
from streamavatar.models.codec.taehv import Taehv
from streamavatar.models.files import check, shapes_of, size_of, write_safetensors
from streamavatar.models.text import keep_text
from streamavatar.models.wav2vec import fold, read_sizes, sources
from streamavatar.models.weights import Stored, check_config, fresh_audio, match, open_weights
from streamavatar.seeds import seed_for

T = TypeVar("T")
Reader = Callable[[], Tensor]
SPARE = 2**28
"""Bytes of disk beyond the weights: text, a light decoder, and some air."""


@dataclass(frozen=True)
class Parts:
    """Where the parts are.

    Attributes:
        backbone: transformer weights: a file, a folder of shards, a diffusers pipeline, a checkpoint of a student.
        codec: Wan2.2_VAE.pth or the folder of Wan's release, or a file or folder in diffusers' form.
        wav2vec2: a folder of Hugging Face's form.
        text_encoder: Wan's release, a diffusers pipeline, or an encoder in transformers' form.
        prompt: what the text encoder embeds.
        light: taew2_2.pth, if the light decoder is wanted.
        network: which network of a checkpoint of several; see `models.weights.open_weights`.
    """

    backbone: Path
    codec: Path
    wav2vec2: Path
    text_encoder: Path
    prompt: str
    light: Path | None = None
    network: str | None = None


@dataclass(frozen=True)
class Assembled:
    """What was put together.

    Attributes:
        config: of the model.
        fresh: what starts untrained.
        text_made: whether the text encoder ran, or the embedding was there from before.
    """

    config: ModelConfig
    fresh: tuple[str, ...]
    text_made: bool


def assemble(
    out: Path,
    config: ModelConfig,
    parts: Parts,
    tell: Callable[[str, int, int], None] = lambda stage, done, total: None,
    device: str = "cpu",
) -> Assembled:
    """Write a model folder.

    Args:
        out: the folder; its model is replaced if it has one.
        config: sizes of transformer, codec and pictures; those of wav2vec 2.0 come from its folder.
        parts: see `Parts`.
        tell: told (stage, bytes done, bytes in all).
        device: where the text encoder runs.

    Raises:
        UserError: a part is missing, damaged or does not fit, or the disk is too full.
    """
    sizes = replace(read_sizes(parts.wav2vec2), context=_context(config))
    audio = replace(config.audio, wav2vec2=sizes, feature_dim=sizes.layers * sizes.width)
    config = replace(config, audio=audio)
    with torch.device("meta"):
        model = AvatarModel(config)
    light = None if parts.light is None else _read_light(parts.light)
    with ExitStack() as stack:
        readers, fresh = _transformer(model, parts, stack)
        readers |= _codec(model, parts.codec, stack) | _audio(model, parts.wav2vec2, stack)
        shapes = {
            name: (torch.bfloat16 if name.startswith("transformer.") else torch.float32, shape)
            for name, shape in shapes_of(model).items()
        }
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{out}: cannot make this folder ({error.strerror}); choose another for -o") from error
        _require_space(out, size_of(shapes) + SPARE)
        tell("text", 0, 1)
        text_made = keep_text(out / TEXT, parts.text_encoder, parts.prompt, device)
        tell("text", 1, 1)
        write_safetensors(
            out / WEIGHTS,
            shapes,
            lambda name: readers[name](),
            {"backbone": parts.backbone.name, "codec": parts.codec.name, "wav2vec2": parts.wav2vec2.name},
            lambda done, total: tell("weights", done, total),
        )
    if light is not None:
        save_decoder(light, decoder_file(out, "light"))
    config.save(out / CONFIG)
    return Assembled(config, fresh, text_made)


def _context(config: ModelConfig) -> int:
    if config.audio.wav2vec2 is None:
        raise UserError(f"{config.name}: this configuration has no wav2vec 2.0; it is trained, not assembled")
    return config.audio.wav2vec2.context


def _require_space(folder: Path, need: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < need:
        raise UserError(
            f"{folder}: {free / 2**30:.1f} GiB of disk are free, {need / 2**30:.1f} GiB are needed; "
            "free some, or choose another place for -o"
        )


def _stored(read: Callable[[str], Tensor], name: str) -> Reader:
    return lambda: read(name)


def _transformer(model: AvatarModel, parts: Parts, stack: ExitStack) -> tuple[dict[str, Reader], tuple[str, ...]]:
    """Readers of the transformer's tensors, by the model's names, and what starts fresh."""
    config = model.config.transformer
    check_config(parts.backbone, config)
    stored = stack.enter_context(open_weights(parts.backbone, parts.network))
    found = match(shapes_of(model.transformer), stored.shapes, str(parts.backbone))
    readers = {name: _stored(stored.read, theirs) for name, theirs in found.names.items()}

    @lru_cache(maxsize=1)
    def block(layer: int) -> dict[str, Tensor]:
        return _seeded(f"audio attention {layer}", lambda: fresh_audio(config, layer))

    for name in found.initial:
        readers[name] = lambda name=name: block(int(name.split(".")[1]))[name]  # type: ignore[misc]
    fresh = ("talk and listen attention",) if found.initial else ()
    return {f"transformer.{name}": reader for name, reader in readers.items()}, (*fresh, "projections of audio")


def _codec(model: AvatarModel, path: Path, stack: ExitStack) -> dict[str, Reader]:
    if not isinstance(model.config.codec, WanCodecConfig):
        raise UserError(f"{model.config.name}: this configuration has no Wan codec; it is trained, not assembled")
    if path.is_dir():  # Wan's release, a diffusers pipeline, or the folder of the codec alone
        path = next((inner for inner in (path / "Wan2.2_VAE.pth", path / "vae") if inner.exists()), path)
    stored = stack.enter_context(open_weights(path))
    shapes, blocks = shapes_of(model.codec), model.config.codec.res_blocks
    names = {wan_name(name, blocks) if is_wan(stored.shapes) else name: name for name in shapes}
    check(path, {theirs: shapes[name] for theirs, name in names.items()}, stored.shapes, "give Wan2.2's VAE")
    return {f"codec.{name}": _stored(stored.read, theirs) for theirs, name in names.items()}


def _audio(model: AvatarModel, folder: Path, stack: ExitStack) -> dict[str, Reader]:
    stored = stack.enter_context(open_weights(folder))
    shapes = shapes_of(model.audio.encoder)
    made_of = sources(shapes, stored.shapes, str(folder))
    single = {parts[0]: name for name, parts in made_of.items() if len(parts) == 1}
    check(
        folder,
        {theirs: shapes[name] for theirs, name in single.items()},
        {theirs: stored.shapes[theirs] for theirs in single},
        "give the weights that belong to its config.json",
    )
    readers = {f"audio.encoder.{name}": _folded(stored, parts) for name, parts in made_of.items()}
    for lane in ("talk", "listen"):
        tokens = _seeded(lane, lambda: LaneTokens(model.config.audio, model.config.geometry.temporal_stride))
        readers |= {
            f"audio.{lane}.{name}": _stored(tokens.state_dict().__getitem__, name) for name in shapes_of(tokens)
        }
    return readers


def _folded(stored: Stored, parts: tuple[str, ...]) -> Reader:
    return lambda: fold([stored.read(part) for part in parts])


def _seeded(what: str, make: Callable[[], T]) -> T:
    """The same start every time, and the caller's random numbers left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(0, f"assemble {what}"))
        return make()


def _read_light(path: Path) -> Taehv:
    decoder = Taehv(TaehvConfig())
    with open_weights(path) as stored:
        decoder.load({name: stored.read(name) for name in stored.shapes}, str(path))
    return decoder
