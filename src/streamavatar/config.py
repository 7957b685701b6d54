"""What a model is: one frozen, validated dataclass per component, written as JSON beside every checkpoint.

A small model is only a smaller configuration; nothing in the code branches on a model's name.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import dacite

from streamavatar.errors import UserError
from streamavatar.geometry import Geometry

FORMAT = 1
PROMPT = "a person is speaking and listening."
"""The only text of the paper's model (paper, 1.5)."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class TransformerConfig:
    """The diffusion transformer (Wan2.2 shaped; the defaults are not Wan's, see `recipes`).

    `text_dim` 0 builds no text path; `audio_dim` is the width of an audio token.
    So many `reference_channels`, the first, of the reference latent are also concatenated to every noisy latent (as
    Wan2.1's image-to-video does): a small model then need not spend attention on copying them.
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
    reference_channels: int = 0

    def __post_init__(self) -> None:
        for name in ("dim", "ffn_dim", "heads", "layers", "freq_dim"):
            _require(getattr(self, name) >= 1, f"transformer: {name} must be at least 1")
        _require(self.dim % self.heads == 0, f"transformer: dim {self.dim} is not a multiple of heads {self.heads}")
        _require(
            self.head_dim % 2 == 0 and self.head_dim >= 6, f"transformer: head_dim {self.head_dim} must be even, >= 6"
        )
        _require(
            0 <= self.reference_channels <= self.latent_channels,
            f"transformer: reference_channels {self.reference_channels} are more than a latent has, or less than none",
        )
        _require(not self.residual or self.prediction == "sample", "transformer: residual needs prediction='sample'")

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


@dataclass(frozen=True)
class Wav2Vec2Sizes:
    """Sizes of a wav2vec 2.0 encoder, and how much of the past it hears; the defaults are wav2vec2-base's.

    Attributes:
        layers, width, heads, ffn: of its transformer; a feature is all layers' outputs, `layers * width` numbers.
        conv_widths, conv_kernels, conv_strides: of the convolutions that shorten the waveform.
        conv_bias: whether these have biases.
        conv_norm: "group" normalises the first of them over time (base), "layer" all of them (large).
        position_kernel, position_groups: of the convolution that tells the transformer about positions.
        stable_norm: norms before the sublayers instead of after them (large).
        normalize: waveforms are brought to zero mean and unit variance first.
        context: frames of audio that are heard before the first feature: with a chunk's 12 frames and 2 on either side,
            5 s.
    """

    layers: int = 12
    width: int = 768
    heads: int = 12
    ffn: int = 3072
    conv_widths: tuple[int, ...] = (512, 512, 512, 512, 512, 512, 512)
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = False
    conv_norm: Literal["group", "layer"] = "group"
    position_kernel: int = 128
    position_groups: int = 16
    stable_norm: bool = False
    normalize: bool = True
    context: int = 109

    def __post_init__(self) -> None:
        _require(
            len(self.conv_widths) == len(self.conv_kernels) == len(self.conv_strides) >= 1,
            "wav2vec2: conv_widths, conv_kernels and conv_strides differ in length",
        )
        _require(self.layers >= 1 and self.context >= 1, "wav2vec2: layers and context must be at least 1")
        _require(self.width % self.heads == 0, f"wav2vec2: width {self.width} is not a multiple of heads {self.heads}")


@dataclass(frozen=True)
class AudioConfig:
    """Audio lanes to tokens: an encoder, windows, one projection per lane.

    The encoder is log-mel and causal convolutions (`mels`, `width`, `depth`), or wav2vec 2.0 where `wav2vec2` is set.

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
    wav2vec2: Wav2Vec2Sizes | None = None

    def __post_init__(self) -> None:
        for name in ("sample_rate", "mels", "width", "depth", "feature_dim", "tokens", "hidden", "dim"):
            _require(getattr(self, name) >= 1, f"audio: {name} must be at least 1")
        if (sizes := self.wav2vec2) is not None:
            _require(
                self.feature_dim == sizes.layers * sizes.width,
                f"audio: feature_dim must be wav2vec2's layers x width, {sizes.layers * sizes.width}",
            )
            _require(self.sample_rate == 16000, "audio: wav2vec2 hears 16000 Hz")
            _require(self.mask == "features", "audio: wav2vec2 is masked after it, mask='features'")

    @property
    def encoder(self) -> Literal["mel", "wav2vec2"]:
        return "mel" if self.wav2vec2 is None else "wav2vec2"


@dataclass(frozen=True)
class CodecConfig:
    """The light video codec: a linear encoder and a streaming convolutional decoder.

    The decoder has one stage per width and doubles the resolution between them; `pool` shrinks the pictures that the
    linear map sees.
    """

    widths: tuple[int, ...] = (160, 96, 48)
    blocks: int = 2
    pool: int = 1
    kind: Literal["light"] = "light"

    def __post_init__(self) -> None:
        _require(len(self.widths) >= 2 and min(self.widths) >= 1, "codec: widths are two or more positive numbers")
        _require(self.blocks >= 1, "codec: at least one block per stage")
        _require(self.pool >= 1, "codec: pool must be at least 1")


@dataclass(frozen=True)
class FlowCodecConfig:
    """The codec whose latents are motion: closed-form maps and a streaming convolutional decoder, `models.codec.flow`.

    Attributes:
        appearance, pose, flow: channels of the reference picture, of the head's motion as a whole (if any) and of all
            other motion; the others are for what motion cannot explain.
        widths: of the decoder, one stage each; the resolution doubles between them.
        blocks: residual blocks per stage.
        pool: shrinks the pictures that the linear maps see.
        window: left, top, width and height of the part of the picture that latents are of, in pixels; the whole picture
            if empty. Around it, what moves at its borders fades away.
        face: right and down, where pictures have the middle between eyes and mouth, in pixels; nowhere in particular if
            empty.
    """

    appearance: int = 32
    pose: int = 0
    flow: int = 40
    widths: tuple[int, ...] = (128, 96, 64, 48)
    blocks: int = 2
    pool: int = 2
    window: tuple[int, ...] = ()
    face: tuple[int, ...] = ()
    kind: Literal["flow"] = "flow"

    def __post_init__(self) -> None:
        _require(len(self.widths) >= 2 and min(self.widths) >= 1, "codec: widths are two or more positive numbers")
        for name in ("appearance", "flow", "blocks", "pool"):
            _require(getattr(self, name) >= 1, f"codec: {name} must be at least 1")
        _require(0 <= self.pose <= 24, "codec: pose has at most six numbers for each of four frames")
        _require(len(self.window) in (0, 4), "codec: a window is left, top, width and height")
        _require(len(self.face) in (0, 2), "codec: a face is at so many pixels to the right and down")

    def part(self, geometry: Geometry) -> tuple[slice, slice]:
        """Rows and columns of the picture that latents are of."""
        left, top, width, height = self.window or (0, 0, geometry.width, geometry.height)
        return slice(top, top + height), slice(left, left + width)

    def cell(self, geometry: Geometry) -> int:
        """Pixels per latent cell, each way."""
        return self.window[2] // geometry.latent_width if self.window else geometry.spatial_stride

    def patch(self, geometry: Geometry) -> int:
        """Pixels per cell of the flow's grid, each way."""
        return self.cell(geometry) // 2 ** (len(self.widths) - 1)


# The latents' mean and spread per channel (Wan2.2, wan/modules/vae2_2.py, class Wan2_2_VAE).
# fmt: off
WAN_MEANS = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
    0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
    -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)
WAN_STDS = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)
# fmt: on


@dataclass(frozen=True)
class WanCodecConfig:
    """Sizes of Wan's autoencoder; the defaults are Wan2.2-TI2V-5B's.

    Attributes:
        z_dim: latent channels.
        encoder_dim, decoder_dim: channels at the finest level.
        dim_mult: channels per level as multiples of these, finest first.
        res_blocks: residual blocks per level of the encoder; the decoder has one more.
        temporal_down: which of the steps between levels halve time as well; finest first.
        patch: pixels (each way) that become channels before the first level.
        means, stds: of the latents, per channel.
        decoder_widths: channels of a pruned decoder: of its middle and after each level, coarsest first; Wan's own
            (`decoder_dim` times `dim_mult`) if empty. See `models.codec.prune`.
    """

    z_dim: int = 48
    encoder_dim: int = 160
    decoder_dim: int = 256
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    res_blocks: int = 2
    temporal_down: tuple[bool, ...] = (False, True, True)
    patch: int = 2
    means: tuple[float, ...] = WAN_MEANS
    stds: tuple[float, ...] = WAN_STDS
    decoder_widths: tuple[int, ...] = ()
    kind: Literal["wan"] = "wan"

    def __post_init__(self) -> None:
        levels = len(self.dim_mult)
        _require(levels == len(self.temporal_down) + 1, f"wan codec: {levels} levels need {levels - 1} temporal_down")
        _require(
            len(self.means) == len(self.stds) == self.z_dim,
            f"wan codec: z_dim {self.z_dim} needs as many means and stds",
        )
        widths = self.widths
        _require(
            len(widths) == levels + 1 and min(widths) >= 1,
            f"wan codec: decoder_widths are {levels + 1} positive numbers, for the middle and after each level",
        )
        for level, ratio in enumerate(self.shortcut_ratios):
            _require(
                widths[level] >= ratio * widths[level + 1],
                f"wan codec: decoder_widths[{level}] must be at least {ratio} times decoder_widths[{level + 1}]",
            )
        # A block between equal widths has no convolution in its shortcut; Wan's last levels have one to keep.
        _require(
            all(a == b or v != w for (a, b), (v, w) in zip(pairwise(self.multiples), pairwise(widths), strict=True)),
            "wan codec: decoder_widths must differ between levels where Wan's do",
        )

    @property
    def temporal_stride(self) -> int:
        """Frames per latent."""
        return 2 ** sum(self.temporal_down)

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent position, each way."""
        return self.patch * 2 ** len(self.temporal_down)

    @property
    def multiples(self) -> tuple[int, ...]:
        """Wan's decoder widths as multiples of `decoder_dim`: of the middle and after each level, coarsest first."""
        return (self.dim_mult[-1], *reversed(self.dim_mult))

    @property
    def widths(self) -> tuple[int, ...]:
        """The decoder's channels: of its middle and after each level, coarsest first."""
        return self.decoder_widths or tuple(self.decoder_dim * m for m in self.multiples)

    @property
    def shortcut_ratios(self) -> tuple[int, ...]:
        """Input channels that the shortcut of a level reads per output channel; the last level has no shortcut."""
        multiples = self.multiples
        return tuple(a // b for a, b in pairwise(multiples[:-1]))


@dataclass(frozen=True)
class TaehvConfig:
    """Sizes of a light codec for Wan's latents; the defaults are those of taew2_2.pth.

    Attributes:
        latent_channels: of the latents.
        patch: pixels (each way) that become channels.
        encoder_width: channels of the encoder.
        decoder_widths: channels of the decoder's three levels, coarsest first, and of its last convolution.
        encoder_time: which of the encoder's three steps halve time.
        decoder_time: which of the decoder's three steps double time.
    """

    latent_channels: int = 48
    patch: int = 2
    encoder_width: int = 64
    decoder_widths: tuple[int, int, int, int] = (256, 128, 64, 64)
    encoder_time: tuple[bool, bool, bool] = (True, True, False)
    decoder_time: tuple[bool, bool, bool] = (False, True, True)

    def __post_init__(self) -> None:
        _require(
            sum(self.encoder_time) == sum(self.decoder_time),
            "taehv: the encoder must halve time as often as the decoder doubles it",
        )

    @property
    def temporal_stride(self) -> int:
        """Frames per latent."""
        return 2 ** sum(self.decoder_time)

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent position, each way."""
        return self.patch * 8


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
    codec: CodecConfig | FlowCodecConfig | WanCodecConfig = field(default_factory=CodecConfig)
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
        self._check_codec()
        _require(c.ring_latents % g.chunk_latents == 0, "model: ring_latents must be whole chunks")
        _require(c.cap >= g.chunk_latents, "model: context.cap (D) must leave room for one chunk")

    def _check_codec(self) -> None:
        g, codec = self.geometry, self.codec
        if isinstance(codec, WanCodecConfig):
            theirs = (codec.z_dim, codec.spatial_stride, codec.temporal_stride)
            _require(
                theirs == (g.latent_channels, g.spatial_stride, g.temporal_stride),
                "model: codec and geometry differ in latent channels or strides",
            )
            return
        if isinstance(codec, FlowCodecConfig):
            _require(
                codec.appearance + codec.pose + codec.flow < g.latent_channels,
                "model: codec.appearance, pose and flow leave no latent channel for the rest",
            )
            if codec.window:
                left, top, *size = codec.window
                _require(
                    min(codec.window) >= 0 and left + size[0] <= g.width and top + size[1] <= g.height,
                    "model: codec.window reaches beyond the picture",
                )
                _require(
                    size == [codec.cell(g) * n for n in (g.latent_width, g.latent_height)],
                    "model: codec.window must have the latents' cells as squares",
                )
        cell = codec.cell(g) if isinstance(codec, FlowCodecConfig) else g.spatial_stride
        _require(cell % codec.pool == 0, "model: codec.pool must divide the spatial stride")
        _require(
            cell % 2 ** (len(codec.widths) - 1) == 0,
            "model: the codec has more stages than the spatial stride has halvings",
        )

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
            rules = dacite.Config(strict=True, cast=[tuple])
            if "codec" in values:
                kinds = {"wan": WanCodecConfig, "flow": FlowCodecConfig}
                kind = kinds.get(values["codec"].get("kind"), CodecConfig)
                values["codec"] = dacite.from_dict(kind, values["codec"], rules)
            return dacite.from_dict(ModelConfig, values, rules)
        except (ValueError, TypeError, AttributeError, dacite.DaciteError) as error:
            raise UserError(f"{source}: not a valid model configuration: {error}") from error
