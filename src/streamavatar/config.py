"""What a model is: one frozen, validated dataclass per component, written as JSON beside every checkpoint.

A small model is only a smaller configuration; nothing in the code branches on a model's name.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import dacite

from streamavatar.errors import UserError
from streamavatar.geometry import Geometry

FORMAT = 1


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class TransformerConfig:
    """The diffusion transformer (Wan2.2 shaped; the defaults are not Wan's, see `recipes`).

    `text_dim` 0 builds no text path; `audio_dim` is the width of an audio token.
    `reference_channels` also concatenates the reference latent to every noisy latent along the channels
    (as Wan2.1's image-to-video does): a small model then need not spend attention on copying it.
    """

    dim: int = 256
    ffn_dim: int = 1024
    heads: int = 4
    layers: int = 6
    latent_channels: int = 48
    patch: int = 2
    freq_dim: int = 256
    text_dim: int = 0
    audio_dim: int = 128
    eps: float = 1e-6
    rope_theta: float = 10000.0
    prediction: Literal["velocity", "sample"] = "velocity"
    residual: bool = False
    reference_channels: bool = False

    def __post_init__(self) -> None:
        for name in ("dim", "ffn_dim", "heads", "layers", "freq_dim"):
            _require(getattr(self, name) >= 1, f"transformer: {name} must be at least 1")
        _require(self.dim % self.heads == 0, f"transformer: dim {self.dim} is not a multiple of heads {self.heads}")
        _require(
            self.head_dim % 2 == 0 and self.head_dim >= 6, f"transformer: head_dim {self.head_dim} must be even, >= 6"
        )
        _require(not self.residual or self.prediction == "sample", "transformer: residual needs prediction='sample'")

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


@dataclass(frozen=True)
class AudioConfig:
    """Audio lanes to tokens: log-mel, a causal convolutional encoder, windows, one projection per lane.

    `separate_lanes` encodes each lane by itself; otherwise the lanes are mixed and the mask alone tells them
    apart, as a single track of real footage needs (paper, 1.4). `mask` says whether the talk mask acts on the
    features (the paper's choice) or on the waveform before the encoder.
    """

    sample_rate: int = 16000
    mels: int = 64
    width: int = 160
    depth: int = 4
    feature_dim: int = 128
    tokens: int = 4
    hidden: int = 256
    dim: int = 128
    separate_lanes: bool = True
    mask: Literal["features", "waveform"] = "features"

    def __post_init__(self) -> None:
        for name in ("sample_rate", "mels", "width", "depth", "feature_dim", "tokens", "hidden", "dim"):
            _require(getattr(self, name) >= 1, f"audio: {name} must be at least 1")


@dataclass(frozen=True)
class CodecConfig:
    """The light video codec: a linear encoder and a streaming convolutional decoder.

    The decoder has one stage per width and doubles the resolution between them; `pool` shrinks the pictures that the
    linear map sees.
    """

    widths: tuple[int, ...] = (160, 96, 48)
    blocks: int = 2
    pool: int = 1

    def __post_init__(self) -> None:
        _require(len(self.widths) >= 2 and min(self.widths) >= 1, "codec: widths are two or more positive numbers")
        _require(self.blocks >= 1, "codec: at least one block per stage")
        _require(self.pool >= 1, "codec: pool must be at least 1")


@dataclass(frozen=True)
class ScheduleConfig:
    """Flow matching: the noise levels of the student's passes and the shift of the training timesteps."""

    sigmas: tuple[float, ...] = (1.0, 0.757, 0.522)
    shift: float = 5.0

    def __post_init__(self) -> None:
        _require(len(self.sigmas) >= 1, "schedule: at least one pass")
        _require(self.sigmas[0] == 1.0, "schedule: the first pass starts from pure noise, sigma 1.0")
        _require(
            all(a > b > 0 for a, b in zip(self.sigmas, self.sigmas[1:], strict=False)),
            "schedule: sigmas must fall and stay above 0",
        )
        _require(self.shift > 0, "schedule: shift must be positive")


@dataclass(frozen=True)
class ContextConfig:
    """What a chunk may look back on, and at which positions (Reference Sink and RAPR; paper, 2.2-2.4).

    `cap` is the paper's D in latents. `cap_on` says whether it bounds the chunk's last latent ("end",
    reading A of the paper notes) or its first ("start", reading B). `ring_includes_current` says whether
    the `ring_latents` count the chunk being made.
    """

    sink: Literal["none", "reference", "first_chunk"] = "first_chunk"
    ring_latents: int = 6
    ring_includes_current: bool = True
    rapr: bool = True
    cap: int = 9
    cap_on: Literal["end", "start"] = "end"
    cache_mode: Literal["last_noisy", "clean"] = "last_noisy"

    def __post_init__(self) -> None:
        _require(self.ring_latents >= 1, "context: ring_latents must be at least 1")
        _require(self.cap >= 1, "context: cap (D) must be at least 1")


@dataclass(frozen=True)
class ModelConfig:
    """Everything run time needs to know about a model; the JSON beside its weights."""

    name: str = "unnamed"
    geometry: Geometry = field(default_factory=Geometry)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    audio: AudioConfig = field(default_factory=AudioConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    context: ContextConfig = field(default_factory=ContextConfig)

    def __post_init__(self) -> None:
        g, t, c = self.geometry, self.transformer, self.context
        _require(t.latent_channels == g.latent_channels, "model: transformer and geometry differ in latent channels")
        _require(t.patch == g.patch, "model: transformer and geometry differ in patch size")
        _require(t.audio_dim == self.audio.dim, "model: transformer.audio_dim differs from audio.dim")
        _require(
            self.audio.sample_rate % (4 * g.fps) == 0 and self.audio.sample_rate <= 20480,
            "model: the audio rate must be four hops per frame and at most 20480 Hz",
        )
        _require(g.spatial_stride % self.codec.pool == 0, "model: codec.pool must divide the spatial stride")
        _require(
            g.spatial_stride % 2 ** (len(self.codec.widths) - 1) == 0,
            "model: the codec has more stages than the spatial stride has halvings",
        )
        _require(c.ring_latents % g.chunk_latents == 0, "model: ring_latents must be whole chunks")
        _require(c.cap >= g.chunk_latents, "model: context.cap (D) must leave room for one chunk")

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n"

    def save(self, path: Path) -> None:
        path.write_text(self.to_json(), encoding="utf-8")

    @staticmethod
    def from_json(text: str, source: str = "configuration") -> ModelConfig:
        """Parse and validate.

        Raises:
            UserError: naming `source` and the first thing that is wrong.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            found = values.pop("format", None)
            if found != FORMAT:
                raise UserError(f"{source}: format {found!r} is not {FORMAT}; use a matching release of streamavatar")
            return dacite.from_dict(ModelConfig, values, dacite.Config(strict=True, cast=[tuple]))
        except (ValueError, TypeError, AttributeError, dacite.DaciteError) as error:
            raise UserError(f"{source}: not a valid model configuration: {error}") from error
