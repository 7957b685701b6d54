"""Fitting the codec: principal components of motion, then the decoder's convolutions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from streamavatar.config import CodecConfig
from streamavatar.data.prepare import Footage
from streamavatar.draws import Draws
from streamavatar.geometry import Geometry
from streamavatar.models.codec import LightCodec
from streamavatar.training.methods.codec import DecoderMethod, fit_linear, fit_scale, to_unit

FRAMES, SIZE = 25, 32
GEOMETRY = Geometry(height=SIZE, width=SIZE, spatial_stride=8, latent_channels=8)  # small blocks fit fast


@pytest.fixture(scope="module")
def clips() -> np.ndarray:
    """Blobs that sway over pictures of their own."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    rng = np.random.default_rng(0)
    out = []
    for phase, tint in zip(rng.random(4) * 6, rng.random((4, 3)), strict=True):
        time = np.arange(FRAMES) / 6 + phase
        blob = np.exp(-40 * ((x - 0.5 - 0.2 * np.sin(time)[:, None, None]) ** 2 + (y - 0.5) ** 2))
        out.append((blob[..., None] * 0.7 + 0.3 * tint) * 255)
    return np.stack(out).astype(np.uint8)


@pytest.fixture(scope="module")
def mouths() -> Tensor:
    cells = torch.zeros(4, 7, 4, 4)
    cells[:, :, 2] = 0.5
    return cells


@pytest.fixture
def codec(clips: np.ndarray, mouths: Tensor) -> LightCodec:
    torch.manual_seed(0)
    codec = LightCodec(CodecConfig(widths=(8, 8, 8), blocks=1), GEOMETRY)
    fit_linear(codec, clips, mouths)
    return codec


def test_to_unit() -> None:
    frames = np.zeros((2, 5, 4, 6, 3), np.uint8)
    frames[1, 2, 3, 4] = (255, 51, 0)
    unit = to_unit(frames)
    assert unit.shape == (2, 3, 5, 4, 6)
    torch.testing.assert_close(unit[1, :, 2, 3, 4], torch.tensor([1.0, -0.6, -1.0]))
    assert unit[0].unique().tolist() == [-1]


def test_the_linear_part_is_orthonormal_and_the_same_both_ways(codec: LightCodec) -> None:
    torch.testing.assert_close(codec.analysis @ codec.analysis.t(), torch.eye(8), atol=1e-4, rtol=0)
    assert torch.equal(codec.synthesis, codec.analysis.t())


def test_the_linear_part_holds_most_of_the_motion(codec: LightCodec, clips: np.ndarray) -> None:
    blocks = codec.blocks(to_unit(clips))
    motion = (blocks - blocks[:, :1]).flatten(0, 3)
    kept = motion @ codec.analysis.t() @ codec.analysis
    assert (motion - kept).square().sum() < 0.1 * motion.square().sum()


def test_latents_are_centred_and_moving_channels_are_of_one_order(codec: LightCodec, clips: np.ndarray) -> None:
    latents = codec.encode(to_unit(clips)).detach()
    assert latents.mean((0, 2, 3, 4)).abs().max() < 1e-3
    motion = (latents[:, :, 1:] - latents[:, :, :1]).square().mean((0, 2, 3, 4)).sqrt()
    raw = motion * codec.scale
    torch.testing.assert_close(motion.max() / motion.min(), (raw.max() / raw.min()).sqrt())
    again = [t.clone() for t in (codec.shift, codec.scale, codec.spread)]
    fit_scale(codec, clips)
    for a, b in zip(again, (codec.shift, codec.scale, codec.spread), strict=True):
        torch.testing.assert_close(a, b)


def test_only_the_decoder_s_convolutions_learn(codec: LightCodec, clips: np.ndarray, mouths: Tensor) -> None:
    method = DecoderMethod(codec, Footage(clips, mouths))
    values = method.loss(0, 2, Draws.seeded(0))
    values["loss"].backward()
    learning = {name for name, p in codec.named_parameters() if p.grad is not None}
    assert learning == {name for name, _ in codec.named_parameters() if name.startswith("detail.")}
    assert torch.isfinite(values["psnr"])


def test_the_decoder_learns(codec: LightCodec, clips: np.ndarray, mouths: Tensor) -> None:
    method = DecoderMethod(codec, Footage(clips, mouths))
    optimizer = torch.optim.Adam(codec.detail.parameters(), 3e-3)
    losses = []
    for _ in range(25):
        loss = method.loss(0, 4, Draws.seeded(0))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
