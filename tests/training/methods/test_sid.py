"""SiD with student forcing: who is trained when, where gradients go, and that replaying gives the same ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from streamavatar.data.latents import LatentSet
from streamavatar.draws import Draws
from streamavatar.models.avatar import AvatarModel
from streamavatar.training.methods.sid import SidConfig, SidMethod
from streamavatar.training.trainer import TrainConfig, Trainer

WINDOW = 13  # four chunks: the ring is full and shifted in the last
MakeMethod = Callable[..., SidMethod]


@pytest.fixture
def make_method(make_model: Callable[..., AvatarModel], make_clips: Callable[..., LatentSet]) -> MakeMethod:
    def make(seed: int = 0, **changes: object) -> SidMethod:
        settings = {"transformer": {"prediction": "sample", "residual": True}}
        student, real, fake = (make_model(seed=s, **settings) for s in (seed, 1, 2))
        clips = make_clips(student.config, latents=WINDOW + 3)
        return SidMethod(student, real, fake, clips, WINDOW, replace(SidConfig(), **changes))

    return make


def gradients(method: SidMethod, step: int) -> dict[str, Tensor]:
    method.loss(step, 2, Draws.seeded(5))["loss"].backward()
    return {name: p.grad.clone() for name, p in method.student.named_parameters() if p.grad is not None}


def test_five_steps_of_the_fake_score_for_one_of_the_student(make_method: MakeMethod) -> None:
    method = make_method()
    assert [method.trains_critic(step) for step in range(12)] == 2 * ([True] * 5 + [False])


def test_the_critic_step_moves_nothing_but_the_fake_score(make_method: MakeMethod) -> None:
    method = make_method()
    assert not gradients(method, step=0)
    assert any(p.grad is not None and p.grad.any() for p in method.fake.transformer.parameters())
    assert all(p.grad is None for p in method.real.parameters())


def test_the_student_step_reaches_transformer_and_projections(make_method: MakeMethod) -> None:
    found = gradients(make_method(), step=5)
    for part in ("transformer.blocks.0.self_attn.k.weight", "transformer.head.head.weight", "audio.talk.rest.weight"):
        assert found[part].any(), part
    assert not any(name.startswith(("codec.", "audio.encoder.")) for name in found)


@pytest.mark.parametrize(("bf16", "last_chunks"), [(False, 0), (True, 0), (False, 2)])
def test_replay_gives_the_gradients_of_exit_step(make_method: MakeMethod, bf16: bool, last_chunks: int) -> None:
    results = []
    for mode in ("exit_step", "replay"):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            results.append(gradients(make_method(grad_mode=mode, last_chunks=last_chunks), step=5))
    assert results[0].keys() == results[1].keys()
    for name, expected in results[0].items():
        scale = expected.abs().max().clamp_min(1e-6)
        assert (results[1][name] - expected).abs().max() / scale < (0.1 if bf16 else 1e-4), name


def test_gradient_goes_through_both_scores(make_method: MakeMethod) -> None:
    """With the scores' own dependence on x cut, as DMD does, the student's gradient is another."""
    name = "transformer.head.head.weight"
    sid, dmd = (gradients(make_method(objective=objective), step=5)[name].flatten() for objective in ("sid", "dmd"))
    assert torch.isfinite(sid).all()
    assert torch.nn.functional.cosine_similarity(sid, dmd, dim=0) < 0.99


def test_only_the_last_chunks_carry_gradient(make_method: MakeMethod) -> None:
    method = make_method(last_chunks=1)
    clips = method.clips.take(torch.arange(2)).crop(torch.ones(2, dtype=torch.long), WINDOW)
    x = method._rollout(clips, Draws.seeded(0), gradient=True)
    head = method.student.transformer.head.head.weight
    (early,) = torch.autograd.grad(x[:, :, :-3].sum() + 0 * x.sum(), head, retain_graph=True)
    (late,) = torch.autograd.grad(x[:, :, -3:].sum(), head)
    assert not early.any()
    assert late.any()


def test_trainer_alternates_and_resumes_exactly(make_method: MakeMethod, tmp_path: Path) -> None:
    config = TrainConfig(steps=14, batch=2, lr=1e-3, warmup=0, save_every=7, bf16=False)

    def trainer(folder: str, seed: int = 0) -> Trainer:
        return Trainer(make_method(seed), config, tmp_path / folder / "sid", lambda *report: None)

    whole = trainer("a")
    whole.run()
    killed = trainer("b")
    for _ in range(7):
        killed._advance()
    killed.checkpoints.save(killed.step, killed._tensors())
    resumed = trainer("b", seed=9)
    resumed.run()
    for a, b in ((whole.main, resumed.main), (whole.critic, resumed.critic)):
        assert a is not None
        assert b is not None
        for name, value in a.module.state_dict().items():
            assert torch.equal(value, b.module.state_dict()[name]), name


def test_teacher_forcing_looks_at_the_true_chunks(make_method: MakeMethod) -> None:
    """What the clip shows changes the student's gradients under teacher forcing, and does not under student forcing."""
    for forcing, reaches in (("teacher", True), ("student", False)):
        method = make_method(forcing=forcing)
        plain = gradients(method, step=5)
        method.student.zero_grad()
        method.clips.latents[:, :, 1:] += 1
        changed = gradients(method, step=5)
        assert any(not torch.equal(plain[name], changed[name]) for name in plain) == reaches
    with pytest.raises(ValueError, match="exit_step"):
        SidConfig(forcing="teacher", grad_mode="replay")
