"""Flow matching: the conversions undo one another."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamavatar.schedule import (
    add_noise,
    sample_from_velocity,
    shift_sigma,
    solver_sigmas,
    velocity_from_sample,
)

levels = st.floats(0.05, 1.0)


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 2, 3, 4, 2, 2, generator=generator)
    return x0, noise


@given(st.lists(levels, min_size=8, max_size=8))
def test_velocity_and_sample_are_two_ways_to_say_the_same(sigmas: list[float]) -> None:
    x0, noise = pair()
    sigma = torch.tensor(sigmas).view(2, 4)
    x = add_noise(x0, noise, sigma)
    torch.testing.assert_close(sample_from_velocity(x, noise - x0, sigma), x0, atol=1e-5, rtol=0)
    torch.testing.assert_close(velocity_from_sample(x, x0, sigma), noise - x0, atol=1e-4, rtol=1e-4)


def test_ends_of_the_path_are_exact() -> None:
    x0, noise = pair()
    assert torch.equal(add_noise(x0, noise, torch.zeros(2, 4)), x0)
    assert torch.equal(add_noise(x0, noise, torch.ones(2, 4)), noise)


def test_sigma_is_per_latent() -> None:
    x0, noise = pair()
    sigma = torch.tensor([[0.0, 1.0, 0.5, 0.25], [1.0, 0.0, 0.0, 1.0]])
    x = add_noise(x0, noise, sigma)
    assert torch.equal(x[0, :, 0], x0[0, :, 0])
    assert torch.equal(x[0, :, 1], noise[0, :, 1])
    torch.testing.assert_close(x[0, :, 3], 0.75 * x0[0, :, 3] + 0.25 * noise[0, :, 3])
    assert torch.equal(x[1, :, 3], noise[1, :, 3])


def test_velocity_of_a_clean_latent_is_zero() -> None:
    x0, noise = pair()
    velocity = velocity_from_sample(x0, noise, torch.zeros(2, 4))
    assert torch.equal(velocity, torch.zeros_like(x0))


@given(levels, st.floats(0.1, 20))
def test_shift_keeps_the_ends_and_is_undone_by_its_inverse(sigma: float, shift: float) -> None:
    value = torch.tensor(sigma, dtype=torch.float64)
    moved = shift_sigma(value, shift)
    assert 0 < float(moved) <= 1 + 1e-12
    assert (float(moved) - sigma) * (shift - 1) >= -1e-12
    torch.testing.assert_close(shift_sigma(moved, 1 / shift), value)


@given(st.integers(1, 100), st.floats(0.5, 12))
def test_solver_levels_fall_from_one_to_zero(steps: int, shift: float) -> None:
    sigmas = solver_sigmas(steps, shift)
    assert sigmas.shape == (steps + 1,)
    assert float(sigmas[0]) == pytest.approx(1)
    assert sigmas[-1] == 0
    assert bool((sigmas.diff() < 0).all())


def test_three_uniform_steps_of_wan() -> None:
    assert solver_sigmas(3, 5.0).tolist() == pytest.approx([1.0, 0.909, 0.714, 0.0], abs=1e-3)  # paper notes, 2.6


def test_a_solver_needs_a_step() -> None:
    with pytest.raises(ValueError, match="at least one step, got 0"):
        solver_sigmas(0, 5.0)
