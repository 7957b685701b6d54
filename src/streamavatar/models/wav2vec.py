"""wav2vec 2.0 as the audio encoder of the full size (paper, 1.4), through transformers' model.

The convolutions' features are interpolated to the video's rate before the transformer, and a feature is the stack of
all layers' outputs. The transformer attends in both directions, so features depend on all of the audio they are made
of: a chunk's are made of its own frames, `context` frames before and the look-ahead after, and of nothing else.
That is, the features of the same stretch of audio are always the same, however it was pushed, and they are those of the
original model given that stretch; they are not those of a run over a longer recording, which hears what comes later.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from streamavatar.config import Wav2Vec2Sizes
from streamavatar.errors import UserError
from streamavatar.models.weights import together

POSITIONS = "encoder.pos_conv_embed.conv"


def require_transformers() -> Any:
    """The library, loaded when it is needed: that takes seconds.

    Raises:
        UserError: it is not installed.
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise UserError(f"this needs {error.name}; install it with: pip install 'streamavatar[full]'") from error
    return transformers


class Wav2VecEncoder(nn.Module):
    """16 kHz waveform to one feature vector per video frame.

    Args:
        sizes: of the network.
        frame_samples: of a video frame.
    """

    def __init__(self, sizes: Wav2Vec2Sizes, frame_samples: int) -> None:
        super().__init__()
        self.sizes, self.frame_samples = sizes, frame_samples
        transformers = require_transformers()
        self.model = transformers.Wav2Vec2Model(
            transformers.Wav2Vec2Config(
                hidden_size=sizes.width,
                num_hidden_layers=sizes.layers,
                num_attention_heads=sizes.heads,
                intermediate_size=sizes.ffn,
                conv_dim=sizes.conv_widths,
                conv_kernel=sizes.conv_kernels,
                conv_stride=sizes.conv_strides,
                conv_bias=sizes.conv_bias,
                feat_extract_norm=sizes.conv_norm,
                num_conv_pos_embeddings=sizes.position_kernel,
                num_conv_pos_embedding_groups=sizes.position_groups,
                do_stable_layer_norm=sizes.stable_norm,
                mask_time_prob=0.0,  # no augmentation, and so no parameter for it
            )
        )
        # Training's weight norm is folded: the product is computed once, when weights are read.
        nn.utils.parametrize.remove_parametrizations(self.model.get_submodule(POSITIONS), "weight")

    @property
    def history(self) -> int:
        """Frames of audio before the first feature."""
        return self.sizes.context

    def forward(self, waveform: Tensor) -> Tensor:
        """Features of the frames after the history.

        Args:
            waveform: [B, (history + F) * frame_samples], float, about -1..1.

        Returns:
            [B, F, layers * width], the first layer's output first.
        """
        frames = waveform.shape[1] // self.frame_samples
        x = waveform.float()
        if self.sizes.normalize:
            x = (x - x.mean(1, keepdim=True)) * (x.var(1, keepdim=True, correction=0) + 1e-7).rsqrt()
        x = functional.interpolate(self.model.feature_extractor(x), size=frames, mode="linear", align_corners=True)
        x, _ = self.model.feature_projection(x.transpose(1, 2))
        encoder = self.model.encoder
        x = x + encoder.pos_conv_embed(x)
        x = x if self.sizes.stable_norm else encoder.layer_norm(x)
        layers = []
        for layer in encoder.layers:
            x = layer(x, attention_mask=None)
            layers.append(x[:, self.history :])
        return torch.cat(layers, dim=-1)


# files ---------------------------------------------------------------------------------------------

_FIELDS = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "ffn": "intermediate_size",
    "conv_widths": "conv_dim",
    "conv_kernels": "conv_kernel",
    "conv_strides": "conv_stride",
    "conv_bias": "conv_bias",
    "conv_norm": "feat_extract_norm",
    "position_kernel": "num_conv_pos_embeddings",
    "position_groups": "num_conv_pos_embedding_groups",
    "stable_norm": "do_stable_layer_norm",
}


def read_sizes(folder: Path) -> Wav2Vec2Sizes:
    """The sizes in a folder of Hugging Face's form: config.json and preprocessor_config.json.

    Raises:
        UserError: config.json is missing or not wav2vec 2.0's.
    """
    found: dict[str, Any] = {}
    for name in ("config.json", "preprocessor_config.json"):
        try:
            found |= json.loads((folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            if name == "config.json":
                raise UserError(f"{folder}: no config.json; give a folder of wav2vec 2.0") from error
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{folder / name}: not readable ({error}); download it again") from error
    if found.get("model_type") != "wav2vec2":
        raise UserError(f"{folder}: model_type is {found.get('model_type')!r}; give a folder of wav2vec 2.0")
    values = {ours: found[theirs] for ours, theirs in _FIELDS.items() if theirs in found}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    try:
        return Wav2Vec2Sizes(**values, normalize=bool(found.get("do_normalize", True)))
    except (ValueError, TypeError) as error:
        raise UserError(f"{folder / 'config.json'}: {error}") from error


def sources(ours: Mapping[str, Any], found: Mapping[str, Any], source: str) -> dict[str, tuple[str, ...]]:
    """Which stored tensors make each of ours: one, or the gain and the direction of a weight norm.

    Args:
        ours: names within `Wav2VecEncoder`.
        found: stored names; heads for recognition and augmentation among them are left out.

    Raises:
        UserError: naming the tensors that are missing.
    """
    plain = {name.removeprefix("wav2vec2."): name for name in found}
    out: dict[str, tuple[str, ...]] = {}
    for name in ours:
        short = name.removeprefix("model.")
        normed = [
            (f"{POSITIONS}.weight_g", f"{POSITIONS}.weight_v"),
            (f"{POSITIONS}.parametrizations.weight.original0", f"{POSITIONS}.parametrizations.weight.original1"),
        ]
        pairs = [(short,), *(normed if short == f"{POSITIONS}.weight" else [])]
        made_of = next((pair for pair in pairs if all(part in plain for part in pair)), None)
        if made_of is not None:
            out[name] = tuple(plain[part] for part in made_of)
    if missing := sorted(ours.keys() - out.keys()):
        raise UserError(
            f"{source}: is missing {len(missing)} tensors of wav2vec 2.0: "
            f"{', '.join(together(name.removeprefix('model.') for name in missing))}; "
            "give the weights that belong to its config.json"
        )
    return out


def fold(parts: list[Tensor]) -> Tensor:
    """The tensor that `sources` says is made of these: itself, or gain times unit direction (over all but time)."""
    if len(parts) == 1:
        return parts[0]
    gain, direction = (part.float() for part in parts)
    return direction * (gain / direction.square().sum((0, 1), keepdim=True).sqrt())
