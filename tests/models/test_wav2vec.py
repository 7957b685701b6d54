"""wav2vec 2.0: transformers' own numbers for a stretch of audio, and nothing else is heard; weights by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from streamavatar.config import AudioConfig, Wav2Vec2Sizes
from streamavatar.errors import UserError
from streamavatar.models.audio import HOLD_FRAMES, AudioConditioner
from streamavatar.models.files import shapes_of
from streamavatar.models.wav2vec import Wav2VecEncoder, fold, read_sizes, sources
from streamavatar.models.weights import open_weights, place

transformers = pytest.importorskip("transformers")

FRAME = 640
BASE = Wav2Vec2Sizes(
    layers=3, width=24, heads=2, ffn=32, conv_widths=(8,) * 7, position_kernel=16, position_groups=4, context=9
)
LARGE = replace(BASE, conv_norm="layer", conv_bias=True, stable_norm=True, normalize=False)
KINDS = pytest.mark.parametrize("sizes", [BASE, LARGE], ids=["base", "large"])


def theirs_of(sizes: Wav2Vec2Sizes) -> Any:
    """Transformers' own model, as released checkpoints have it: weight norm and a vector for augmentation included."""
    torch.manual_seed(0)
    model = transformers.Wav2Vec2Model(
        transformers.Wav2Vec2Config(
            hidden_size=sizes.width,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            intermediate_size=sizes.ffn,
            conv_dim=sizes.conv_widths,
            num_conv_pos_embeddings=sizes.position_kernel,
            num_conv_pos_embedding_groups=sizes.position_groups,
            feat_extract_norm=sizes.conv_norm,
            conv_bias=sizes.conv_bias,
            do_stable_layer_norm=sizes.stable_norm,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model.eval().requires_grad_(False)


def folder_of(sizes: Wav2Vec2Sizes, path: Path) -> Any:
    """A released folder, and the model in it."""
    model = theirs_of(sizes)
    model.save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": sizes.normalize}))
    return model


def ours_from(folder: Path) -> Wav2VecEncoder:
    with torch.device("meta"):
        encoder = Wav2VecEncoder(replace(read_sizes(folder), context=9), FRAME)
    with open_weights(folder) as stored:
        for name, parts in sources(shapes_of(encoder), stored.shapes, str(folder)).items():
            place(encoder, name, fold([stored.read(part) for part in parts]), "cpu")
    return encoder.eval().requires_grad_(False)


def speech(frames: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.2 * torch.randn(1, frames * FRAME, generator=generator) + 0.05


class Resampled(nn.Module):
    """The convolutions with their output brought to the video's rate: what the transformer is to see."""

    def __init__(self, convolutions: nn.Module, frames: int) -> None:
        super().__init__()
        self.convolutions, self.frames = convolutions, frames

    def forward(self, x: Tensor) -> Tensor:
        return functional.interpolate(self.convolutions(x), self.frames, mode="linear", align_corners=True)


@KINDS
def test_equals_transformers(sizes: Wav2Vec2Sizes, tmp_path: Path) -> None:
    theirs, ours = folder_of(sizes, tmp_path), ours_from(tmp_path)
    assert ours.sizes == sizes
    audio = speech(9 + 16)
    got = ours(audio).unflatten(-1, (3, 24))
    if sizes.normalize:
        audio = torch.from_numpy((audio.numpy() - audio.numpy().mean()) / (audio.numpy().var() + 1e-7) ** 0.5)
    theirs.feature_extractor = Resampled(theirs.feature_extractor, 25)
    states = theirs(audio, output_hidden_states=True).hidden_states
    assert len(states) == 4  # the input of the first layer comes first
    expected = torch.stack(states[1:], dim=2)[:, 9:]
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)
    assert got.std() > 0.1


def test_older_names_and_other_heads(tmp_path: Path) -> None:
    """As facebook/wav2vec2-base-960h has them."""
    folder_of(BASE, tmp_path)
    expected = ours_from(tmp_path)(speech(20))
    tensors = load_file(tmp_path / "model.safetensors")
    root = "encoder.pos_conv_embed.conv"
    renamed = {
        name.replace(f"{root}.parametrizations.weight.original0", f"{root}.weight_g").replace(
            f"{root}.parametrizations.weight.original1", f"{root}.weight_v"
        ): value
        for name, value in tensors.items()
    }
    assert f"{root}.weight_g" in renamed
    heads = {"lm_head.weight": torch.zeros(32, 24), "lm_head.bias": torch.zeros(32)}
    save_file({**{f"wav2vec2.{n}": v for n, v in renamed.items()}, **heads}, tmp_path / "model.safetensors")
    torch.testing.assert_close(ours_from(tmp_path)(speech(20)), expected)


def test_the_default_is_the_base_model() -> None:
    with torch.device("meta"):
        ours = Wav2VecEncoder(Wav2Vec2Sizes(), FRAME)
        theirs = transformers.Wav2Vec2Model(transformers.Wav2Vec2Config())
    assert set(sources(shapes_of(ours), shapes_of(theirs), "")) == set(shapes_of(ours))
    left = sum(p.numel() for p in theirs.parameters()) - sum(p.numel() for p in ours.parameters())
    assert left == 768 + 128  # the augmentation's vector and the gains of the weight norm
    assert Wav2Vec2Sizes().context + 16 == 5 * 25  # a chunk hears five seconds


@pytest.mark.parametrize("separate", [False, True])
def test_features_are_masked_and_belong_to_their_stretch(separate: bool, tmp_path: Path) -> None:
    """Through the conditioner: history, masks and tokens as with the small encoder; nothing outside is heard."""
    config = AudioConfig(feature_dim=72, tokens=3, hidden=16, dim=12, separate_lanes=separate, wav2vec2=BASE)
    torch.manual_seed(0)
    audio = AudioConditioner(config).eval().requires_grad_(False)
    assert audio.history == BASE.context + HOLD_FRAMES
    assert audio.encoder.frame_samples == FRAME
    length = audio.history + 16
    agent, user = speech(40, 1), speech(40, 2)
    agent[:, 30 * FRAME :] = 0
    at = slice(2 * FRAME, (2 + length) * FRAME)  # ends with frame 31, the agent's hold with 35
    talk, listen = audio.features(agent[:, at], user[:, at])
    assert talk.shape == listen.shape == (1, 16, 72)
    again = audio.features(agent[:, at].clone(), user[:, at].clone())
    assert torch.equal(talk, again[0])
    assert torch.equal(listen, again[1])
    silent = torch.zeros_like(agent)
    talk, listen = audio.features(silent[:, at], user[:, at])
    assert talk.abs().max() == 0
    assert listen.abs().min(dim=-1).values.max() > 0
    tokens = audio.tokens(talk, listen, -1, range(1, 4))
    assert [t.shape for t in tokens] == [(1, 3, 3, 12)] * 2


def test_later_audio_reaches_all_features_of_the_stretch(tmp_path: Path) -> None:
    """What the module says of itself: both directions, so a longer recording gives other features."""
    folder_of(BASE, tmp_path)
    encoder, audio = ours_from(tmp_path), speech(40)
    short, long = encoder(audio[:, : 25 * FRAME]), encoder(audio)[:, :16]
    assert (short - long).abs().amax(dim=(0, 2)).min() > 1e-4


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        read_sizes(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="model_type is 'bert'"):
        read_sizes(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: not readable"):
        read_sizes(tmp_path)
    with torch.device("meta"):
        shapes = shapes_of(Wav2VecEncoder(BASE, FRAME))
    stored = shapes_of(theirs_of(BASE))
    stored.pop("encoder.layers.1.attention.k_proj.weight")
    stored.pop("encoder.pos_conv_embed.conv.parametrizations.weight.original0")
    with pytest.raises(
        UserError, match=r"missing 2 tensors of wav2vec 2\.0: encoder\.layers\.\S*attention\.k_proj\.weight"
    ):
        sources(shapes, stored, "folder")
