"""Mixed-noise clips from trajectories: every chunk from its own level, whole."""

from __future__ import annotations

import torch

from streamavatar.losses.ode import pick_levels


def test_every_chunk_takes_its_own_level() -> None:
    sigmas = torch.tensor([1.0, 0.75, 0.5])
    # Every value says which clip, level, channel and latent it comes from.
    clip, level, channel, latent = torch.meshgrid(
        torch.arange(2), torch.arange(3), torch.arange(2), torch.arange(7), indexing="ij"
    )
    trajectory = (
        (1000 * clip + 100 * level + 10 * channel + latent).float()[..., None, None].expand(-1, -1, -1, -1, 2, 3)
    )
    x, sigma = pick_levels(trajectory, sigmas, torch.tensor([[2, 0], [1, 1]]), 3)
    assert x.shape == (2, 2, 7, 2, 3)
    assert sigma.tolist() == [[0, 0.5, 0.5, 0.5, 1, 1, 1], [0, 0.75, 0.75, 0.75, 0.75, 0.75, 0.75]]
    assert x[0, 0, 1:, 0, 0].tolist() == [201, 202, 203, 4, 5, 6]
    assert x[0, 1, 1:, 1, 2].tolist() == [211, 212, 213, 14, 15, 16]
    assert x[1, 0, 1:, 0, 0].tolist() == [1101, 1102, 1103, 1104, 1105, 1106]
    assert (x[:, 0, 0, 0, 0] % 100).tolist() == [0, 0]


def test_the_levels_are_not_written_to() -> None:
    sigmas = torch.tensor([1.0, 0.5])
    _, sigma = pick_levels(torch.zeros(1, 2, 1, 4, 1, 1), sigmas, torch.tensor([[0]]), 3)
    sigma += 1
    assert sigmas.tolist() == [1.0, 0.5]
