"""Trajectories of the teacher and the student's regression of their ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from streamavatar.config import ModelConfig
from streamavatar.data.latents import LatentSet
from streamavatar.draws import Draws
from streamavatar.models.avatar import AvatarModel
from streamavatar.schedule import add_noise
from streamavatar.training.methods.ode import OdeMethod, trajectories

Model = Callable[..., AvatarModel]
Clips = Callable[..., LatentSet]


def noise_like(clips: LatentSet, seed: int = 0) -> Tensor:
    return torch.randn(clips.latents.shape, generator=torch.Generator().manual_seed(seed))


def still(config: ModelConfig) -> AvatarModel:
    """Predicts the reference, whatever it is given."""
    return AvatarModel(replace(config, transformer=replace(config.transformer, prediction="sample", residual=True)))


@pytest.mark.parametrize("steps", [1, 5])
def test_a_constant_estimate_is_reached_on_a_straight_line(small: ModelConfig, make_clips: Clips, steps: int) -> None:
    clips = make_clips(small, 2).take(torch.arange(2))
    noise, reference = noise_like(clips), clips.latents[:, :, :1]
    points, ends = trajectories(still(small), clips, noise, steps)
    assert points.shape == (2, 3, 8, 10, 4, 6)
    torch.testing.assert_close(ends, reference.expand_as(ends), atol=1e-5, rtol=0)
    for index, level in enumerate(small.schedule.sigmas):
        sigma = torch.full((2, 10), level)
        sigma[:, 0] = 0
        expected = add_noise(reference.expand_as(noise), noise, sigma)
        torch.testing.assert_close(points[:, index], expected, atol=1e-5, rtol=0)


def test_the_reference_stays_clean_and_the_first_point_is_noise(make_model: Model, make_clips: Clips) -> None:
    model = make_model(transformer={"prediction": "sample"})
    clips = make_clips(model.config, 2).take(torch.arange(2))
    noise = noise_like(clips)
    before = noise.clone()
    points, ends = trajectories(model, clips, noise, 3)
    assert torch.equal(noise, before)
    assert not points.requires_grad
    assert torch.equal(points[:, 0, :, 1:], noise[:, :, 1:])
    for x in (*points.unbind(1), ends):
        assert torch.equal(x[:, :, 0], clips.latents[:, :, 0])


def test_guidance_is_against_silence(make_model: Model, make_clips: Clips) -> None:
    model = make_model(transformer={"prediction": "sample"})
    clips = make_clips(model.config, 2).take(torch.arange(2))
    noise = noise_like(clips)
    silent = replace(clips, talk=0 * clips.talk, listen=0 * clips.listen)
    none, plain = (trajectories(model, c, noise, 3, g)[1] for c, g in ((clips, 0.0), (silent, 1.0)))
    torch.testing.assert_close(none, plain, atol=1e-5, rtol=0)
    assert not torch.allclose(trajectories(model, clips, noise, 3, 3.0)[1], plain, atol=1e-2)


@pytest.fixture
def pairs(small: ModelConfig, make_clips: Clips) -> tuple[LatentSet, Tensor, Tensor]:
    clips = make_clips(small, 4)
    points = torch.randn(4, 3, 8, 10, 4, 6, generator=torch.Generator().manual_seed(1))
    points[:, :, :, 0] = clips.latents[:, None, :, 0].float()
    return clips, points.half(), clips.latents


def test_the_student_learns_where_the_teacher_did(make_model: Model, pairs: tuple[LatentSet, Tensor, Tensor]) -> None:
    model = make_model()
    OdeMethod(model, *pairs).loss(0, 3, Draws.seeded(0))["loss"].backward()
    learning = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert learning == {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith(("audio.encoder", "codec")) for name in learning)


def test_a_student_that_stands_still(small: ModelConfig, pairs: tuple[LatentSet, Tensor, Tensor]) -> None:
    values = OdeMethod(still(small), *pairs).loss(0, 3, Draws.seeded(0))
    assert values["vs_still"].item() == pytest.approx(1, abs=1e-5)


def test_an_autoregressive_teacher_looks_at_finished_chunks_alone(make_model: Model, make_clips: Clips) -> None:
    """A later chunk's noise does not change an earlier chunk; an earlier one's does change a later one."""
    model = make_model(transformer={"prediction": "sample"})
    clips = make_clips(model.config, 2, 7).take(torch.arange(2))
    noise = torch.randn(clips.latents.shape, generator=torch.Generator().manual_seed(0))
    results = []
    for chunk in (None, slice(1, 4), slice(4, 7)):
        other = noise.clone()
        if chunk is not None:
            other[:, :, chunk] += 1
        points, end = trajectories(model, clips, other, 2, 2.0, causal=True)
        assert points.shape == (2, 3, *noise.shape[1:])
        torch.testing.assert_close(points[:, 0, :, 1:], other[:, :, 1:])
        assert torch.equal(end[:, :, :1], clips.latents[:, :, :1])
        results.append(end)
    plain, early, late = results
    assert not torch.equal(early[:, :, 4:], plain[:, :, 4:])
    assert torch.equal(late[:, :, :4], plain[:, :, :4])
    both, _ = trajectories(model, clips, noise, 2)
    assert not torch.equal(both, points)
