"""The second stage: who is trained when, and that the student's gradient comes through the discriminator alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from streamavatar.data.latents import LatentSet
from streamavatar.draws import Draws
from streamavatar.models.avatar import AvatarModel
from streamavatar.training.methods.adversarial import AdversarialConfig, AdversarialMethod
from streamavatar.training.trainer import TrainConfig, Trainer

WINDOW = 13
MakeMethod = Callable[..., AdversarialMethod]


@pytest.fixture
def make_method(make_model: Callable[..., AvatarModel], make_clips: Callable[..., LatentSet]) -> MakeMethod:
    def make(**changes: object) -> AdversarialMethod:
        settings = {"transformer": {"prediction": "sample", "residual": True, "layers": 3}}
        student, teacher = (make_model(seed=s, **settings) for s in (0, 1))
        clips = make_clips(student.config, latents=WINDOW + 3)
        config = replace(AdversarialConfig(width=16, penalty_weight=1.0), **changes)
        return AdversarialMethod(student, teacher, clips, WINDOW, config)

    return make


def step(method: AdversarialMethod, number: int) -> None:
    method.loss(number, 2, Draws.seeded(3))["loss"].backward()


@pytest.mark.parametrize("branches", ["single", "local", "pooled", "full"])
def test_turns(make_method: MakeMethod, branches: str) -> None:
    method = make_method(branches=branches)
    assert [method.trains_critic(n) for n in range(4)] == [True, False, True, False]
    step(method, 0)
    assert all(p.grad is None for p in method.student.parameters())
    assert all(p.grad is not None for p in method.discriminator.parameters() if p.requires_grad)
    assert all(p.grad is None for p in method.teacher.audio.parameters())
    method = make_method(branches=branches)
    step(method, 1)
    trained = [p for p in method.student.parameters() if p.requires_grad]
    assert sum(bool(p.grad is not None and p.grad.any()) for p in trained) > 0.9 * len(trained)


def test_the_discriminator_may_begin_alone_and_learn_faster(make_method: MakeMethod, tmp_path: Path) -> None:
    method = make_method(alone=3, critic_rate=4.0)
    assert [method.trains_critic(n) for n in range(6)] == [True, True, True, False, True, False]
    before = [p.detach().clone() for p in method.student.parameters()]
    trainer = Trainer(
        method, TrainConfig(steps=3, batch=2, lr=1e-3, warmup=0, bf16=False), tmp_path, lambda *report: None
    )
    trainer.run()
    assert all(torch.equal(a, b) for a, b in zip(before, method.student.parameters(), strict=True))
    assert trainer.critic is not None
    rates = {group["lr"] for group in trainer.critic.optimizer.param_groups}
    assert rates == {4.0 * trainer.config.rate(2)}


def test_the_penalty_flattens_the_discriminator(make_method: MakeMethod) -> None:
    torch.manual_seed(0)
    free, flat = (make_method(penalty_weight=weight) for weight in (0.0, 10.0))
    losses = [m.loss(0, 2, Draws.seeded(3)) for m in (free, flat)]
    assert losses[1]["loss"] > losses[0]["loss"]


def test_training_separates_real_from_fake(make_method: MakeMethod, tmp_path: Path) -> None:
    """With the student standing still, the discriminator learns to tell its clips."""
    torch.manual_seed(0)
    method = make_method(penalty_weight=0.1)
    method.trains_critic = lambda step: True  # type: ignore[method-assign]
    seen: list[str] = []
    config = TrainConfig(steps=30, batch=4, lr=3e-3, warmup=0, log_every=30, save_every=30, bf16=False)
    Trainer(method, config, tmp_path / "adversarial", lambda *report: seen.append(report[-1])).run()
    margin = float(seen[-1].split("margin ")[1].split()[0])
    assert margin > 0.5
