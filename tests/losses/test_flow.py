"""The regression loss: what counts, and how much."""

from __future__ import annotations

import torch
from torch import Tensor

from streamavatar.losses.flow import sample_loss, velocity_loss
from streamavatar.schedule import add_noise, sample_from_velocity


def clips() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    estimate, x0 = torch.randn(2, 3, 4, 5, 2, 6, generator=generator)
    return estimate, x0


def test_without_mask_or_weight_it_is_the_mean_square() -> None:
    estimate, x0 = clips()
    loss = sample_loss(estimate, x0, torch.ones(3, 5))
    torch.testing.assert_close(loss, (estimate - x0).square().mean())


def test_given_latents_do_not_count() -> None:
    estimate, x0 = clips()
    keep = torch.ones(3, 5)
    keep[:, 0], keep[1, 3:] = 0, 0
    kept = torch.cat([(estimate - x0).square()[b, :, t].flatten() for b, t in keep.nonzero().tolist()])
    loss = sample_loss(estimate, x0, keep)
    torch.testing.assert_close(loss, kept.mean())
    wrong = torch.where(keep[:, None, :, None, None] > 0, estimate, 1e6)
    torch.testing.assert_close(sample_loss(wrong, x0, keep), loss)


def test_weights_share_out() -> None:
    estimate, x0 = clips()
    weight = torch.rand(3, 5, 2, 6, generator=torch.Generator().manual_seed(1)) + 0.1
    keep = torch.ones(3, 5)
    keep[:, 0] = 0
    share = (keep[:, :, None, None] * weight)[:, None].expand_as(estimate)
    expected = ((estimate - x0).square() * share).sum() / share.sum()
    torch.testing.assert_close(sample_loss(estimate, x0, keep, weight), expected)
    torch.testing.assert_close(sample_loss(estimate, x0, keep, 7 * weight), expected)


def test_nothing_counts() -> None:
    estimate, x0 = clips()
    loss = sample_loss(estimate.requires_grad_(), x0, torch.zeros(3, 5))
    assert loss.item() == 0
    loss.backward()
    assert estimate.grad is not None
    assert not estimate.grad.any()


def test_low_precision_is_summed_in_float32() -> None:
    estimate, x0 = (x.bfloat16() for x in clips())
    assert sample_loss(estimate, x0, torch.ones(3, 5)).dtype == torch.float32


def test_the_velocity_s_error_is_the_sample_s_over_sigma_squared() -> None:
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(2, 3, 4, 2, 2, generator=generator) for _ in range(2))
    sigma = torch.tensor([[0.0, 0.3, 0.3, 0.9], [0.0, 0.5, 0.0, 1.0]])
    x = add_noise(x0, noise, sigma)
    velocity = noise - x0 + torch.randn(x0.shape, generator=generator)
    estimate = sample_from_velocity(x, velocity, sigma)
    noisy = sigma > 0
    error = (velocity - (noise - x0)).square().mean(dim=(1, 3, 4))
    torch.testing.assert_close(velocity_loss(estimate, x0, sigma), error[noisy].mean())
    weight = torch.rand(2, 4, 2, 2, generator=generator)
    spread = (velocity - (noise - x0)).square().mean(1) * weight
    torch.testing.assert_close(velocity_loss(estimate, x0, sigma, weight), spread[noisy].sum() / weight[noisy].sum())
