"""The puppet model: 128x128, trained on this project's 2-D puppet world on two CPU cores."""

from __future__ import annotations

from dataclasses import replace

from streamavatar.config import AudioConfig, CodecConfig, ModelConfig, TransformerConfig
from streamavatar.geometry import Geometry
from streamavatar.training.recipe import Recipe
from streamavatar.training.trainer import TrainConfig


def puppets() -> Recipe:
    """The bundled default: about 12 M parameters, under two hours on two cores with bf16 matrix units."""
    model = ModelConfig(
        name="puppets-128",
        codec=CodecConfig(widths=(160, 96, 64), blocks=2),
        geometry=Geometry(height=128, width=128),
        transformer=TransformerConfig(
            dim=256, ffn_dim=1024, heads=4, layers=6, prediction="sample", residual=True, reference_channels=48
        ),
    )
    return Recipe(
        model=model,
        audio=TrainConfig(steps=900, batch=32, lr=2e-3, bf16=False, save_every=300),
        decoder=TrainConfig(steps=6500, batch=8, lr=1e-3, save_every=250),
        teacher=TrainConfig(steps=1800, batch=16, lr=1.2e-3, warmup=100, ema=0.995),
        student=TrainConfig(steps=500, batch=16, lr=4e-4, warmup=50, ema=0.99),
    )


def micro() -> Recipe:
    """Every stage in a few minutes and of no use otherwise: the integration test."""
    full = puppets()
    model = replace(
        full.model,
        name="micro",
        geometry=Geometry(height=64, width=64),
        transformer=replace(full.model.transformer, dim=64, ffn_dim=128, heads=2, layers=3),
        audio=AudioConfig(width=32, depth=2, hidden=64),
        codec=CodecConfig(widths=(32, 24, 16), blocks=1),
    )
    short = TrainConfig(steps=4, batch=2, warmup=1, save_every=2, log_every=2)
    return replace(
        full,
        model=model,
        audio=replace(short, bf16=False),
        decoder=short,
        teacher=short,
        student=short,
        sid=replace(short, steps=6, save_every=3),
        adversarial=short,
        latents=10,
        window=7,
        dialogues=2,
        dialogue_seconds=12,
        codec_clips=32,
        clips=32,
        pairs=4,
        solver_steps=2,
        workers=1,
    )
