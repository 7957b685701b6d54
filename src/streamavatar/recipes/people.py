"""What the default model shall be: rendered people at 256x256, from shards that `streamavatar data synth` makes."""

from __future__ import annotations

from streamavatar.config import FlowCodecConfig, ModelConfig, TransformerConfig
from streamavatar.geometry import Geometry
from streamavatar.training.methods.adversarial import AdversarialConfig
from streamavatar.training.methods.sid import SidConfig
from streamavatar.training.methods.teacher import TeachingConfig
from streamavatar.training.recipe import Recipe
from streamavatar.training.trainer import TrainConfig


def people() -> Recipe:
    """Every stage of the paper at 15 M parameters.

    Latents say how the reference picture moves (`models.codec.flow`), within a window of 160x160 pixels on the face.
    A face that is always in its place needs no tokens that are alike wherever they are: a latent's 8x8 cells are one
    token, so two cores train the transformer with 16 times as many clips as with tokens of 2x2 cells. Clips are whole
    dialogues of 3.5 s, whose first frame is a neutral reference, since many people teach more than long clips; where
    there are fewer than `clips`, they come again changed (`data.augment`). docs/results.md says how far this has been
    trained.
    """
    channels, looks, patch = 80, 20, 8
    model = ModelConfig(
        name="people-256",
        geometry=Geometry(height=256, width=256, spatial_stride=32, patch=patch, latent_channels=channels),
        codec=FlowCodecConfig(
            appearance=looks, pose=12, flow=12, widths=(128, 96, 64), window=(48, 56, 160, 160), face=(128, 127)
        ),
        transformer=TransformerConfig(
            dim=320,
            ffn_dim=1280,
            heads=5,
            layers=5,
            latent_channels=channels,
            patch=patch,
            prediction="sample",
            residual=True,
            reference_channels=looks,
        ),
    )
    return Recipe(
        model=model,
        audio=TrainConfig(steps=3500, batch=32, lr=2e-3, warmup=100, bf16=False, save_every=200),
        decoder=TrainConfig(steps=2000, batch=6, lr=1e-3, save_every=200),
        teacher=TrainConfig(steps=2600, batch=64, lr=1e-3, warmup=100, weight_decay=0.1, ema=0.998, save_every=200),
        student=TrainConfig(steps=600, batch=32, lr=4e-4, warmup=50, save_every=100),
        sid=TrainConfig(steps=360, batch=16, lr=5e-5, betas=(0.0, 0.999), weight_decay=0.0, warmup=20, save_every=30),
        distillation=SidConfig(),
        adversarial=TrainConfig(
            steps=300, batch=8, lr=2e-5, betas=(0.0, 0.99), weight_decay=0.0, warmup=20, save_every=20
        ),
        refinement=AdversarialConfig(width=256, alone=100, critic_rate=20, penalty_weight=100),
        teaching=TeachingConfig(mouth=8.0, sound_noise=0.7, look_noise=1.0),  # docs/results.md, how long to teach
        latents=22,
        window=13,
        dialogues=300,
        varied_speech=True,
        codec_clips=256,
        clips=2048,
        pairs=512,
        solver_steps=16,
        ships="sid",  # refinement, as far as it was trained, moves less and follows no better: docs/results.md
    )
