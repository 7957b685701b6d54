"""The full size: Wan2.2-TI2V-5B's transformer with the paper's talk and listen attention (paper, 1.1 and 1.4).

`models.weights.load_backbone` fills it from Wan's own weights.
"""

from __future__ import annotations

from streamavatar.config import TransformerConfig


def transformer() -> TransformerConfig:
    """5.0 B parameters of Wan's and 1.4 B of audio attention."""
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
