"""The teacher's loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from streamavatar.config import ModelConfig
from streamavatar.data.latents import LatentSet
from streamavatar.draws import Draws
from streamavatar.models.avatar import AvatarModel
from streamavatar.training.methods.teacher import TeacherMethod, TeachingConfig, conditions_of

Model = Callable[..., AvatarModel]
Clips = Callable[..., LatentSet]


def seeded(seed: int = 0) -> Draws:
    return Draws.seeded(seed)


def test_noise_levels(make_model: Model, make_clips: Clips) -> None:
    """The reference is clean and every chunk has one level: the clip's, its own, or none in a clean past."""
    model = make_model()
    sigma = TeacherMethod(model, make_clips(model.config), 10)._sigma(400, 10, seeded())
    assert sigma.shape == (400, 10)
    assert not sigma[:, 0].any()
    chunks = sigma[:, 1:].unflatten(1, (3, 3))
    assert bool((chunks == chunks[:, :, :1]).all())
    chunks = chunks[:, :, 0]
    assert 0 <= float(chunks.min()) <= float(chunks.max()) <= 1
    assert bool((chunks[:, -1] > 0).all())
    past = (chunks == 0).any(1)
    same = (chunks == chunks[:, :1]).all(1)
    assert 0.2 < past.float().mean() < 0.3
    assert 0.44 < same.float().mean() < 0.56
    assert bool((chunks[past].diff(dim=1) >= 0).all())


def test_only_the_transformer_and_the_projections_learn(make_model: Model, make_clips: Clips) -> None:
    model = make_model()
    TeacherMethod(model, make_clips(model.config), 7).loss(0, 4, seeded())["loss"].backward()
    learning = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert learning == {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in learning} == {"transformer", "audio"}
    assert not any(name.startswith("audio.encoder") for name in learning)


def test_a_model_that_stands_still_is_as_good_as_still(small: ModelConfig, make_clips: Clips) -> None:
    fresh = AvatarModel(replace(small, transformer=replace(small.transformer, prediction="sample", residual=True)))
    values = TeacherMethod(fresh, make_clips(small), 7).loss(0, 4, seeded())
    assert values["vs_still"].item() == 1


def test_the_generator_makes_the_loss(make_model: Model, make_clips: Clips) -> None:
    model = make_model()
    method = TeacherMethod(model, make_clips(model.config), 7)
    a, b, c = (method.loss(0, 4, seeded(seed))["loss"] for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_silenced_conditions(make_model: Model, make_clips: Clips) -> None:
    model = make_model()
    clips = make_clips(model.config, 2).take(torch.arange(2))
    given = conditions_of(model, clips)
    silent: Any = conditions_of(model, replace(clips, talk=0 * clips.talk, listen=0 * clips.listen))
    half = conditions_of(model, clips, torch.tensor([1.0, 0.0]))
    assert torch.equal(half.talk[0], given.talk[0])
    assert torch.equal(half.talk[1], silent.talk[1])
    assert torch.equal(half.listen[1], silent.listen[1])
    assert given.reference.shape == (2, 8, 1, 4, 6)


def test_a_causal_teacher_does_not_see_what_comes(make_model: Model, make_clips: Clips) -> None:
    model = make_model(transformer={"prediction": "sample"})
    clips = make_clips(model.config, 1, 7).take(torch.arange(1))
    sigma = torch.tensor([[0.0, *[0.5] * 6]])
    for causal in (False, True):
        method = TeacherMethod(model, clips, 7, TeachingConfig(causal=causal))
        later = clips.latents.clone()
        later[:, :, 4:] += 1
        with torch.no_grad():
            a, b = (method._estimate(x, sigma, conditions_of(model, clips)) for x in (clips.latents, later))
        assert torch.equal(a[:, :, :4], b[:, :, :4]) == causal


def test_the_paper_s_teacher_has_one_level_per_clip(make_model: Model, make_clips: Clips) -> None:
    model = make_model()
    method = TeacherMethod(model, make_clips(model.config), 10, TeachingConfig(unequal=0.0))
    sigma = method._sigma(64, 10, Draws.seeded(0))
    assert torch.equal(sigma[:, 1:], sigma[:, 1:2].expand(-1, 9))


def test_noise_on_conditions_leaves_motion_and_silence(make_model: Model, make_clips: Clips) -> None:
    model = make_model(transformer={"reference_channels": 3, "residual": True, "prediction": "sample"})
    model.transformer.reference_scale.copy_(torch.tensor([1.0, 2.0, 4.0]))
    clips = make_clips(model.config, 64).take(torch.arange(64))
    clips.talk[:, ::2] = 0
    method = TeacherMethod(model, clips, 7, TeachingConfig(sound_noise=0.5, look_noise=0.25))
    changed = method._disturbed(clips, seeded())
    assert torch.equal(changed.latents[:, 3:], clips.latents[:, 3:])
    shift = (changed.latents - clips.latents)[:, :3]
    assert torch.allclose(shift, shift[:, :, :1].expand_as(shift), atol=1e-5), "looks change alike in all latents"
    assert torch.allclose(shift[:, :, 0].std((0, 2, 3)), torch.tensor([0.25, 0.5, 1.0]), rtol=0.1)
    for before, after in ((clips.talk, changed.talk), (clips.listen, changed.listen)):
        heard = before != 0
        assert not after[~heard].any()
        relative = (after - before)[heard].std() / before[heard].square().mean().sqrt()
        assert abs(relative.item() - 0.5) < 0.05


def test_no_noise_on_conditions_unless_asked_for(make_model: Model, make_clips: Clips) -> None:
    model = make_model()
    clips = make_clips(model.config)
    method = TeacherMethod(model, clips, 7)
    assert method._disturbed(clips, seeded()) is clips
