"""The full size: Wan2.2-TI2V-5B with the paper's talk and listen attention, and the decoder pruned from its own.

`models.full` has the sizes, `models.assemble` fills them from Wan's own weights, and the recipe trains what it wrote.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from streamavatar.config import AudioConfig, ModelConfig, TransformerConfig, WanCodecConfig, Wav2Vec2Sizes
from streamavatar.geometry import Geometry
from streamavatar.models.codec.choice import decoder_file, save_decoder
from streamavatar.models.codec.prune import prune
from streamavatar.models.codec.wan import WanDecoder
from streamavatar.models.full import transformer, wan22_5b
from streamavatar.training.methods.adversarial import AdversarialConfig
from streamavatar.training.methods.decoder import DecoderLossConfig, PrunedDecoderMethod
from streamavatar.training.methods.sid import SidConfig
from streamavatar.training.methods.teacher import TeachingConfig
from streamavatar.training.parallel import CPU, World
from streamavatar.training.recipe import Recipe
from streamavatar.training.trainer import Progress, TrainConfig, Trainer

__all__ = ["full", "pruned_decoder", "small_wan", "transformer", "wan22_5b"]


def full() -> Recipe:
    """The paper's training of the 5B. Numbers in brackets name the section of the paper that reports them; the others
    are this project's choices where nothing is reported.
    """
    steady: dict[str, Any] = {"final_lr": 1.0, "save_every": 250, "recompute": True}  # a constant rate
    return Recipe(
        # 928x704 as in the paper's speed test (1.2); passes at 1.0, 0.757, 0.522 (choice, 2.6); D is 9 (2.4).
        model=wan22_5b(),
        audio=None,  # wav2vec 2.0 is kept (1.4)
        decoder=None,  # and so is Wan's codec (1.1)
        # 20,000 steps of 32 clips at 5e-6 from Wan2.2-TI2V-5B (1.6); AdamW's betas, decay, EMA: choice.
        teacher=TrainConfig(
            steps=20000, batch=32, lr=5e-6, warmup=200, betas=(0.9, 0.999), weight_decay=0.01, ema=0.9999, **steady
        ),
        # Flow matching on the velocity of what is made (1.6); silence for guidance one time in ten: choice.
        teaching=TeachingConfig(loss="velocity", mouth=0.0, dropout=0.1, unequal=0.0),
        # 5,000 steps of 8 trajectories at 2e-6 (2.5).
        student=TrainConfig(
            steps=5000, batch=8, lr=2e-6, warmup=100, betas=(0.9, 0.999), weight_decay=0.01, ema=0.99, **steady
        ),
        # 6,000 steps of 16 clips at 3e-6 (2.7), counted as Self-Forcing counts: five of the fake score, one of the
        # student. Betas, decay, clipping at 10 and EMA are Self-Forcing's.
        sid=TrainConfig(
            steps=6000, batch=16, lr=3e-6, warmup=0, betas=(0.0, 0.999), weight_decay=0.0, clip=10.0, ema=0.99, **steady
        ),
        # Self-Forcing's alpha, guidance and ratio (2.7); replayed chunk by chunk, for the memory of one chunk.
        distillation=SidConfig(alpha=1.0, guidance=3.0, ratio=5, grad_mode="replay"),
        # 1,400 iterations of 32 clips at 5e-6 (3), each a step of the discriminator and one of the student.
        adversarial=TrainConfig(
            steps=2 * 1400,
            batch=32,
            lr=5e-6,
            warmup=0,
            betas=(0.0, 0.99),
            weight_decay=0.0,
            clip=10.0,
            ema=0.995,
            **steady,
        ),
        # Three Q-Formers, local and global branch (3); AAPT's constants.
        refinement=AdversarialConfig(branches="full", global_weight=1.0, penalty_weight=1000.0, penalty_sd=0.1),
        latents=31,  # 121 frames, Wan's own length: the reference and ten chunks (choice, 1.6)
        window=31,
        clips=150000,  # about 200 hours (1.6)
        pairs=4000,  # choice between 2,000 and 10,000 (2.5)
        solver_steps=40,  # "40+" (1.6)
        guidance=5.0,  # Wan's own
        workers=8,
    )


def small_wan() -> Recipe:
    """The 5B's recipe with every part reduced, so that a computer without a GPU runs all of it in a minute: the test
    that the recipe is real.
    """
    ears = Wav2Vec2Sizes(
        layers=2,
        width=16,
        heads=2,
        ffn=32,
        conv_widths=(8,) * 7,
        position_kernel=4,
        position_groups=2,
        context=12,
    )
    model = ModelConfig(
        name="wan-small",
        geometry=Geometry(height=64, width=64, latent_channels=48),
        transformer=TransformerConfig(
            dim=32, ffn_dim=64, heads=2, layers=3, freq_dim=32, text_dim=24, audio_dim=16, prediction="velocity"
        ),
        audio=AudioConfig(
            feature_dim=ears.layers * ears.width, tokens=2, hidden=16, dim=16, separate_lanes=False, wav2vec2=ears
        ),
        codec=WanCodecConfig(encoder_dim=8, decoder_dim=8, res_blocks=1),
    )
    recipe = full()
    stages = ("teacher", "student", "sid", "adversarial")
    short = {
        name: replace(getattr(recipe, name), steps=6, batch=2, warmup=1, save_every=6, log_every=3) for name in stages
    }
    return replace(
        recipe,
        model=model,
        **short,
        refinement=replace(recipe.refinement, width=32),
        latents=10,
        window=7,
        clips=2,
        pairs=2,
        solver_steps=2,
        workers=1,
    )


HALF = (512, 512, 512, 256, 128)
"""Half of Wan's channels everywhere: a quarter of its work."""


def pruned_decoder(
    full: WanDecoder,
    latents: Tensor,
    folder: Path,
    model: Path,
    progress: Progress,
    *,
    widths: tuple[int, ...] = HALF,
    config: TrainConfig | None = None,
    loss: DecoderLossConfig | None = None,
    marked: Tensor | None = None,
    device: torch.device = CPU,
) -> WanDecoder:
    """Prune Wan's decoder and distil it; the result goes into a model folder, for `--decoder pruned`.

    Args:
        full: the decoder, or the codec, of the model.
        latents: of clips, [N, C, T, h, w], T at least 4; the first of each is a clip's first latent.
        folder: of checkpoints and log; the same call goes on where it stopped.
        model: model folder that gets the decoder.
        progress: told about every step.
        widths: see `WanCodecConfig.decoder_widths`.
        config: optimiser and schedule.
        loss: weights of the loss.
        marked: share of each cell that faces and hands cover, [N, T, h, w].
        device: where it trains.
    """
    small = prune(full, widths, latents[:4, :, :4].to(full.post_quant_conv.weight.device).float())
    method = PrunedDecoderMethod(full, small, latents, marked, loss)
    settings = config or TrainConfig(steps=20000, batch=8, lr=3e-4, warmup=200, ema=0.999, save_every=500)
    Trainer(method, settings, folder, progress, World(device)).run()
    save_decoder(small, decoder_file(model, "pruned"))
    return small
