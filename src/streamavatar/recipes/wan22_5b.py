"""The full size: Wan2.2-TI2V-5B with the paper's talk and listen attention, and the decoder pruned from its own.

`models.full` has the sizes, `models.assemble` fills them from Wan's own weights.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from streamavatar.models.codec.choice import decoder_file, save_decoder
from streamavatar.models.codec.prune import prune
from streamavatar.models.codec.wan import WanDecoder
from streamavatar.models.full import transformer, wan22_5b
from streamavatar.training.methods.decoder import DecoderLossConfig, PrunedDecoderMethod
from streamavatar.training.parallel import CPU, World
from streamavatar.training.trainer import Progress, TrainConfig, Trainer

__all__ = ["pruned_decoder", "transformer", "wan22_5b"]

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
