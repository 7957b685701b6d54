"""Pruning: exact where the dropped channels are silent, better than chance elsewhere, streaming as the full does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from streamavatar.config import WanCodecConfig
from streamavatar.models.codec import prune as prune_module
from streamavatar.models.codec.prune import prune
from streamavatar.models.codec.wan import WanDecoder

FULL = WanCodecConfig(z_dim=6, decoder_dim=12, means=(0.1,) * 6, stds=(0.9,) * 6)  # widths 48, 48, 48, 24, 12


def drawn(seed: int = 0) -> WanDecoder:
    decoder = WanDecoder(FULL)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in decoder.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("gamma"):
                value.copy_(1 + 0.1 * noise)
            else:
                value.copy_(0.1 * noise if value.ndim == 1 else noise / value[0].numel() ** 0.5)
    return decoder.eval().requires_grad_(False)


def some_latents(count: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(1, 6, count, 2, 3, generator=torch.Generator().manual_seed(seed))


def silence(decoder: WanDecoder, widths: tuple[int, ...], factor: float = 0.0) -> None:
    """Nothing, or little, comes out of the second part of every layer: channels beyond `widths`."""
    for name, module in decoder.decoder.named_modules():
        if not isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d) or name == "conv_out":
            continue
        stage = int(name.split(".")[1]) + 1 if name.startswith("up_blocks") else 0
        full, kept = FULL.widths[stage], widths[stage]
        for first in range(0, module.out_channels, full):  # to_qkv has three parts, time_conv two
            module.weight[first + kept : first + full] *= factor
            module.bias[first + kept : first + full] *= factor


@pytest.mark.parametrize("widths", [(24, 24, 24, 12, 6), (48, 48, 32, 12, 6), (48, 40, 24, 12, 4), (30, 24, 24, 12, 6)])
def test_equals_the_full_one_where_the_dropped_are_silent(widths: tuple[int, ...]) -> None:
    full = drawn()
    # A stream's channels live on in the levels before it, so each level's sound ends where the next one's does.
    silence(full, (24, 24, 24, 12, widths[-1]))
    small = prune(full, widths, some_latents(seed=2))
    z = some_latents()
    expected = full.decode_clip(z)
    torch.testing.assert_close(small.decode_clip(z), expected, rtol=0, atol=2e-5)
    assert expected.std() > 0.1


def test_same_widths_change_the_order_only() -> None:
    full, z = drawn(), some_latents()
    torch.testing.assert_close(prune(full, FULL.widths, z).decode_clip(z), full.decode_clip(z), rtol=0, atol=2e-5)


def test_keeps_what_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly silent channels go: far nearer to the full decoder than with channels kept at random."""
    full, z, widths = drawn(), some_latents(), (24, 24, 24, 12, 6)
    silence(full, widths, 0.03)
    expected = full.decode_clip(z)

    def error() -> float:
        small = prune(full, widths, some_latents(seed=5)).requires_grad_(False)
        return float((small.decode_clip(z) - expected).square().mean() / expected.var())

    chosen = error()
    generator = torch.Generator().manual_seed(0)
    top = prune_module._top
    monkeypatch.setattr(
        prune_module, "_top", lambda w, count: top(torch.rand(w.shape, generator=generator) - 2 * (w < 0), count)
    )
    assert chosen < 0.03
    assert min(error() for _ in range(3)) > 0.3


def test_streams_as_the_full_one_does() -> None:
    small, z = prune(drawn(), (24, 24, 24, 8, 6), some_latents()).double(), some_latents(6).double()
    whole = small.decode_clip(z, at_once=100)
    _, state = small.decode_start(z[:, :, :1])
    parts = []
    for part in z[:, :, 1:].split([2, 1, 2], dim=2):
        frames, state = small.decode(part, state)
        parts.append(frames)
    torch.testing.assert_close(torch.cat(parts, dim=2), whole[:, :, 1:], rtol=0, atol=1e-6)


def test_is_smaller() -> None:
    with torch.device("meta"):
        sizes = [
            sum(p.numel() for p in WanDecoder(WanCodecConfig(decoder_widths=widths)).parameters())
            for widths in ((), (512, 512, 512, 256, 128), (1024, 1024, 1024, 256, 128))
        ]
    assert sizes[0] > 0.5e9
    assert sizes[1] == pytest.approx(sizes[0] / 4, rel=0.02)
    assert sizes[1] < sizes[2] < sizes[0]


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((24, 24, 24, 12), "5 positive"),
        ((24, 24, 20, 12, 6), "at least 2 times"),
        ((24, 24, 24, 12, 12), "must differ"),
        ((96, 96, 96, 24, 12), "exceed"),
    ],
)
def test_widths_are_checked(widths: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune(drawn(), widths, some_latents())
