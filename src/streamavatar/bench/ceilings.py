"""What the device can do at most, measured in the same run, and how much work a chunk is."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import torch
from torch.utils.flop_counter import FlopCounterMode

from streamavatar.bench.drawn import decoder_config
from streamavatar.config import ModelConfig
from streamavatar.models.avatar import AvatarModel
from streamavatar.models.codec.choice import DecoderName
from streamavatar.models.transformer import Conditions


def settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    """Wall seconds of each repeat, the device waited for; one more goes before them."""
    out = []
    for _ in range(repeats + 1):
        settle(device)
        begin = perf_counter()
        work()
        settle(device)
        out.append(perf_counter() - begin)
    return out[1:]


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Rates of a large product of random matrices, and of a large copy, bytes read and written."""
    side, size = (8192, 2**31) if device.type == "cuda" else (512, 2**24)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    product = sorted(seconds_of(lambda: a @ b, device, 20))[10]
    source = torch.randint(0, 255, (size,), device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    copy = sorted(seconds_of(lambda: target.copy_(source), device, 20))[10]
    return {"product_tflops": 2 * side**3 / product / 1e12, "copy_tb_per_second": 2 * size / copy / 1e12}


def count_work(config: ModelConfig, decoder: DecoderName) -> dict[str, float]:
    """TFLOP per chunk in the steady state: of the passes with what they share, and of the decoder."""
    g = config.geometry
    with torch.device("meta"), torch.no_grad():
        model = AvatarModel(config, decoder_config(config, decoder))
        cells = (g.latent_height, g.latent_width)
        tokens = torch.empty(1, g.chunk_latents, config.audio.tokens, config.audio.dim)
        text = torch.empty(1, 512, config.transformer.text_dim)
        conditions = Conditions(tokens, tokens, torch.empty(1, g.latent_channels, 1, *cells), text)
        x, sigma = torch.empty(1, g.latent_channels, g.chunk_latents, *cells), torch.ones(1, g.chunk_latents)
        cache = model.ring_cache()
        with FlopCounterMode(display=False) as once:
            conditions = model.transformer.prepare(conditions)
        with FlopCounterMode(display=False) as each:
            model.transformer.sample(x, sigma, conditions, cache.view(cache.full()[0]))
        _, state = model.codec.open(torch.empty(1, 3, g.height, g.width))
        with FlopCounterMode(display=False) as decode:
            model.codec.decode(x, state)
    passes = len(config.schedule.sigmas) + (config.context.cache_mode == "clean")
    return {
        "pass_tflop": each.get_total_flops() / 1e12,
        "transformer_tflop": (once.get_total_flops() + passes * each.get_total_flops()) / 1e12,
        "decode_tflop": decode.get_total_flops() / 1e12,
    }
