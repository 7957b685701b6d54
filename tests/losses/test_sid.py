"""Identities of the distillation losses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from streamavatar.losses.sid import critic_loss, dmd_loss, guided, sid_loss
from streamavatar.schedule import add_noise


@pytest.fixture
def triple() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, real, fake = (torch.randn(2, 3, 4, 2, 2, generator=generator, dtype=torch.float64) for _ in range(3))
    return x, real, fake


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_equals_its_expanded_form(triple: tuple[Tensor, Tensor, Tensor], alpha: float) -> None:
    x, real, fake = (v[:, :, 1:] for v in triple)
    norm = (x - real).abs().mean(dim=(1, 2, 3, 4), keepdim=True)
    expanded = ((1 - alpha) * (real - fake) ** 2 + (real - fake) * (fake - x)) / norm
    assert abs(sid_loss(*triple, alpha=alpha) - expanded.mean()) < 1e-12


def test_zero_when_the_scores_agree(triple: tuple[Tensor, Tensor, Tensor]) -> None:
    x, real, _ = triple
    assert sid_loss(x, real, real.clone()) == 0
    assert critic_loss(x, x, x, x, torch.ones(2, 4)) >= 0


def test_the_reference_does_not_count(triple: tuple[Tensor, Tensor, Tensor]) -> None:
    before = sid_loss(*triple)
    changed = [v.clone() for v in triple]
    for value in changed:
        value[:, :, 0] += 100 * torch.rand(())
    assert sid_loss(*changed) == before


def test_gradient_reaches_x_through_both_scores(triple: tuple[Tensor, Tensor, Tensor]) -> None:
    x = triple[0].requires_grad_()
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64, requires_grad=True)

    def gradient(through_real: bool, through_fake: bool) -> Tensor:
        real, fake = torch.tanh(weights[0] * x), torch.sin(weights[1] * x)
        real, fake = (v if keep else v.detach() for v, keep in ((real, through_real), (fake, through_fake)))
        (grad,) = torch.autograd.grad(sid_loss(x, real, fake), x)
        return grad

    both = gradient(True, True)
    assert (both - gradient(False, True)).abs().max() > 1e-4
    assert (both - gradient(True, False)).abs().max() > 1e-4
    assert both[:, :, 0].abs().max() == 0


def test_a_sample_that_blows_up_counts_as_zero(triple: tuple[Tensor, Tensor, Tensor]) -> None:
    x, real, fake = (v.clone() for v in triple)
    real[0, 0, 1, 0, 0] = float("nan")
    assert torch.isfinite(sid_loss(x, real, fake))


def test_dmd_moves_x_towards_the_real_score(triple: tuple[Tensor, Tensor, Tensor]) -> None:
    x, real, fake = triple
    x = x.requires_grad_()
    (grad,) = torch.autograd.grad(dmd_loss(x, real, fake), x)
    step = -grad[:, :, 1:]
    assert (step * (real - fake)[:, :, 1:]).sum() > 0


def test_critic_is_zero_at_the_truth_and_ignores_the_reference(triple: tuple[Tensor, Tensor, Tensor]) -> None:
    x, noise, _ = triple
    sigma = torch.full((2, 4), 0.4, dtype=torch.float64)
    sigma[:, 0] = 0
    noised = add_noise(x, noise, sigma)
    assert critic_loss(x, noised, x, noise, sigma) < 1e-12
    wrong = x.clone()
    wrong[:, :, 0] += 1
    assert critic_loss(wrong, noised, x, noise, sigma) < 1e-12
    assert critic_loss(wrong + 0.1, noised, x, noise, sigma) > 1e-3


def test_guidance() -> None:
    c, u = torch.tensor(2.0), torch.tensor(1.0)
    assert guided(c, u, 0.0) == 2
    assert guided(c, u, 3.0) == 5
