"""The full size: Wan2.2-TI2V-5B's transformer and codec, wav2vec 2.0, and the paper's talk and listen attention."""

from __future__ import annotations

from streamavatar.config import AudioConfig, ModelConfig, TransformerConfig, WanCodecConfig, Wav2Vec2Sizes
from streamavatar.geometry import Geometry


def transformer() -> TransformerConfig:
    """5.0 B parameters of Wan's and 1.4 B of audio attention (paper, 1.1 and 1.4)."""
    return TransformerConfig(
        dim=3072,
        ffn_dim=14336,
        heads=24,
        layers=30,
        latent_channels=48,
        patch=2,
        freq_dim=256,
        text_dim=4096,
        audio_dim=768,
        eps=1e-6,
        prediction="velocity",
    )


def wan22_5b(height: int = 704, width: int = 928, wav2vec2: Wav2Vec2Sizes | None = None) -> ModelConfig:
    """The whole model.

    Both lanes are mixed into one track before wav2vec 2.0 and told apart by the mask after it, as the single track of
    real footage is (paper, 1.4).

    Args:
        height, width: of the pictures, multiples of 32.
        wav2vec2: sizes of the encoder; wav2vec2-base's if left out.
    """
    sizes = wav2vec2 or Wav2Vec2Sizes()
    return ModelConfig(
        name="wan22-5b",
        geometry=Geometry(height=height, width=width),
        transformer=transformer(),
        audio=AudioConfig(
            feature_dim=sizes.layers * sizes.width,
            tokens=32,
            hidden=512,
            dim=768,
            separate_lanes=False,
            mask="features",
            wav2vec2=sizes,
        ),
        codec=WanCodecConfig(),
    )
