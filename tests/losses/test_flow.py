"""The regression loss: what counts, and how much."""

from __future__ import annotations

import torch
from torch import Tensor

from streamavatar.losses.flow import sample_loss


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
