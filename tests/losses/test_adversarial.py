"""Identities of the adversarial losses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from streamavatar.draws import Draws
from streamavatar.losses.adversarial import disturb, penalty, relativistic
from streamavatar.models.discriminator import Logits


def logits(seed: int, overall: bool = True) -> Logits:
    generator = torch.Generator().manual_seed(seed)
    return Logits(torch.randn(3, 4, generator=generator), torch.randn(3, generator=generator) if overall else None)


def test_equal_clips_cost_two_logarithms_of_two() -> None:
    assert relativistic(logits(0), logits(0)).item() == pytest.approx(2 * math.log(2), abs=1e-6)
    assert relativistic(logits(0, False), logits(0, False)).item() == pytest.approx(math.log(2), abs=1e-6)


def test_only_differences_count_and_winning_is_cheap() -> None:
    real, fake = logits(0), logits(1)
    assert real.overall is not None
    assert fake.overall is not None
    moved = [Logits(x.local + 7, x.overall + 7) for x in (real, fake)]  # type: ignore[operator]
    torch.testing.assert_close(relativistic(*moved), relativistic(real, fake))
    ahead = Logits(fake.local + 10, fake.overall + 10)
    assert relativistic(ahead, fake) < 1e-3
    assert relativistic(fake, ahead) > 19


def test_global_weight() -> None:
    real, fake = logits(0), logits(1)
    local = relativistic(Logits(real.local, None), Logits(fake.local, None))
    torch.testing.assert_close(relativistic(real, fake, 0.0), local)
    both = relativistic(real, fake, 1.0)
    torch.testing.assert_close(relativistic(real, fake, 3.0) - local, 3 * (both - local))


def test_penalty_of_a_linear_discriminator_is_the_squared_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 5, 1, 1, generator=generator)
    x = torch.randn(20000, 2, 6, 1, 1, generator=generator)

    def judge(clips: Tensor) -> Logits:
        return Logits((clips[:, :, 1:] * weight).sum((1, 2, 3, 4))[:, None], None)

    sd = 0.1
    measured = penalty(judge(x), judge(disturb(x, sd, Draws(generator))))
    assert measured.item() == pytest.approx(sd**2 * weight.square().sum().item(), rel=0.05)


def test_the_reference_is_not_disturbed() -> None:
    x = torch.randn(2, 3, 4, 2, 2)
    noisy = disturb(x, 0.1, Draws.seeded(0))
    assert torch.equal(noisy[:, :, 0], x[:, :, 0])
    assert 0.05 < (noisy - x)[:, :, 1:].std() < 0.15
