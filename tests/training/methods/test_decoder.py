"""Distilling a pruned decoder: the loss weighs what it says, falls, and the result is a decoder that run time loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from streamavatar.config import WanCodecConfig
from streamavatar.draws import Draws
from streamavatar.models.codec.choice import decoder_file, fill_decoder, make_decoder, read_config
from streamavatar.models.codec.prune import prune
from streamavatar.models.codec.wan import WanDecoder
from streamavatar.recipes.wan22_5b import pruned_decoder
from streamavatar.training.methods.decoder import DecoderLossConfig, PrunedDecoderMethod, cover
from streamavatar.training.trainer import TrainConfig

FULL = WanCodecConfig(z_dim=6, decoder_dim=8, means=(0.1,) * 6, stds=(0.9,) * 6)  # widths 32, 32, 32, 16, 8
WIDTHS = (16, 16, 16, 8, 4)


@pytest.fixture
def full() -> WanDecoder:
    decoder, generator = WanDecoder(FULL), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.1 * noise)
        for name, parameter in decoder.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(1)
    return decoder.eval()


@pytest.fixture
def latents() -> Tensor:
    return torch.randn(4, 6, 6, 2, 3, generator=torch.Generator().manual_seed(1))


def test_boxes_cover_cells() -> None:
    cells = cover([(0, 0, 0.5, 0.25), (0.4, 0, 0.6, 1)], 4, 2)
    expected = torch.tensor([[1.0, 0.2], [0.2, 0.2], [0.2, 0.2], [0.2, 0.2]])
    torch.testing.assert_close(cells, expected)
    assert cover([], 2, 3).tolist() == [[0] * 3] * 2


def test_an_equal_decoder_has_no_loss(full: WanDecoder, latents: Tensor) -> None:
    method = PrunedDecoderMethod(full, prune(full, FULL.widths, latents), latents)
    values = method.loss(0, 2, Draws.seeded(0))
    assert values["loss"] < 1e-4
    assert values["psnr"] > 70


def test_parts_of_the_loss(full: WanDecoder, latents: Tensor) -> None:
    """A still, flat error is no edge and no flicker; a marked place counts more."""
    method = PrunedDecoderMethod(full, full, latents, config=DecoderLossConfig(marked=4))
    plain = torch.ones(1, 1, 8, 16, 16)
    still = torch.full((1, 3, 8, 16, 16), 0.1)
    values = method._compare(still, plain)
    assert values["edges"] == values["flicker"] == 0
    torch.testing.assert_close(values["mean"], torch.tensor(0.1))
    assert method._compare(still * torch.tensor([1.0, -1.0] * 4)[:, None, None], plain)["flicker"] == pytest.approx(0.2)
    assert method._compare(still * torch.tensor([1.0, -1.0] * 8), plain)["edges"] > 0.05
    face = plain.clone()
    face[..., :8] = 5
    assert method._compare(still, face)["mean"] == pytest.approx(0.3)


def test_marked_cells_count_more(full: WanDecoder, latents: Tensor) -> None:
    small = prune(full, WIDTHS, latents)
    losses = [
        PrunedDecoderMethod(full, small, latents, marked).loss(0, 2, Draws.seeded(0))
        for marked in (None, torch.ones(4, 6, 2, 3))
    ]
    assert losses[1]["mean"].item() == pytest.approx(5 * losses[0]["mean"].item(), rel=1e-4)


def test_only_the_pruned_decoder_learns(full: WanDecoder, latents: Tensor) -> None:
    small = prune(full, WIDTHS, latents)
    PrunedDecoderMethod(full, small, latents).loss(0, 2, Draws.seeded(0))["loss"].backward()
    assert all(p.grad is not None for p in small.parameters())
    assert all(p.grad is None for p in full.parameters())
    with pytest.raises(ValueError, match="at least 4 latents"):
        PrunedDecoderMethod(full, small, latents[:, :, :3])


def test_recipe(full: WanDecoder, latents: Tensor, tmp_path: Path) -> None:
    """Pruned, distilled and put into a model folder; it ends nearer to the full decoder than it began."""
    (tmp_path / "model").mkdir()
    config = TrainConfig(steps=16, batch=1, lr=5e-3, warmup=2, bf16=False, ema=0.5, save_every=8, log_every=1)
    told: list[int] = []

    def error(decoder: WanDecoder) -> float:
        with torch.no_grad():
            return float((decoder.decode_clip(latents) - full.decode_clip(latents)).abs().mean())

    before = error(prune(full, WIDTHS, latents[:4, :, :4]))
    small = pruned_decoder(
        full,
        latents[:, :, :4],
        tmp_path / "run",
        tmp_path / "model",
        lambda stage, done, total, text: told.append(done),
        widths=WIDTHS,
        config=config,
        loss=DecoderLossConfig(latents=2),
    )
    assert told[-1] == 16
    assert error(small) < 0.9 * before
    path = decoder_file(tmp_path / "model", "pruned")
    loaded = make_decoder(read_config(path))
    fill_decoder(loaded, path, "cpu", torch.float32)
    assert isinstance(loaded, WanDecoder)
    assert loaded.config.decoder_widths == WIDTHS
    for name, value in small.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.bfloat16().float()), name
