"""How a head moves as a whole: one affine map per frame, which holds on the face and fades away around it.

A talking head moves its mouth far more by turning than by speaking. With the head's own motion taken away, what is left
at the mouth is speech, always in the same place. Estimated from optical flow between eyes and nose, which neither jaw
nor lips move, by iteratively reweighted least squares.
"""

from __future__ import annotations

import torch
from torch import Tensor

from streamavatar.models.codec.light import warp

NUMBERS = 6
"""Of an affine map: how far each axis is moved per unit to the right, per unit down, and at the middle."""
MIDDLE, UNIT = (0.5, 0.47), 0.25
"""Origin and unit of the map's coordinates, as shares of the window."""
RIGID = (0.28, 0.72, 0.19, 0.53)
"""Left, right, top and bottom of the part of a face that moves as a whole."""
ACROSS, DOWN = (0.31, 0.5), (0.72, 1.0)
"""Shares of the window, from its middle sideways and from its top down, up to which the map holds and where it ends."""
FACE_ACROSS, FACE_UP, FACE_DOWN = (0.27, 0.42), (0.4, 0.5), (0.36, 0.5)
"""Shares of the window, from its middle sideways, up and down, up to which everything is face and where nothing is."""
ROUNDS, KNEE = 2, 0.1
"""Reweightings; error in cells beyond which a cell counts less."""
INVERSIONS = 4


def _axes(height: int, width: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Shares of a grid's cells, down and to the right."""
    down, right = ((torch.arange(n, device=device) + 0.5) / n for n in (height, width))
    rows, columns = torch.meshgrid(down, right, indexing="ij")
    return rows, columns


def _terms(down: Tensor, right: Tensor) -> Tensor:
    """What the map's numbers are multiplied with, [..., 3]."""
    return torch.stack(((right - MIDDLE[0]) / UNIT, (down - MIDDLE[1]) / UNIT, torch.ones_like(down)), dim=-1)


def fit_pose(flow: Tensor) -> Tensor:
    """Flow to the reference [2, F, h, w] in cells to affine maps [F, 2, 3] in cells."""
    down, right = _axes(*flow.shape[-2:])
    left_edge, right_edge, top, bottom = RIGID
    rigid = (right > left_edge) & (right < right_edge) & (down > top) & (down < bottom)
    terms, seen = _terms(down, right)[rigid], flow[..., rigid]
    weight = torch.ones_like(seen[0])
    pose = flow.new_zeros(flow.shape[1], 2, 3)
    for _ in range(1 + ROUNDS):
        normal = torch.einsum("fn,ni,nj->fij", weight, terms, terms)
        pose = torch.linalg.solve(normal[:, None], torch.einsum("fn,cfn,ni->fci", weight, seen, terms)[..., None])[
            ..., 0
        ]
        error = (seen - torch.einsum("fci,ni->cfn", pose, terms)).square().sum(0).sqrt()
        weight = 1 / (error + KNEE)
    return pose


def field(pose: Tensor, height: int, width: int) -> Tensor:
    """Affine maps [..., 2, 3] to flow [..., 2, height, width], in the unit of the maps."""
    down, right = _axes(height, width, pose.device)
    fade = _smooth((right - 0.5).abs(), *ACROSS) * _smooth(down, *DOWN)
    return torch.einsum("...ci,yxi->...cyx", pose, (_terms(down, right) * fade[..., None]).to(pose))


def face(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """How far cells of a window belong to the face of an unmoved head, 0 to 1, [height, width]."""
    down, right = _axes(height, width, device)
    upright = _smooth(0.5 - down, *FACE_UP) * _smooth(down - 0.5, *FACE_DOWN)
    return _smooth((right - 0.5).abs(), *FACE_ACROSS) * upright


def _smooth(place: Tensor, begin: float, end: float) -> Tensor:
    """1 up to `begin`, smoothly to 0 at `end`."""
    share = ((end - place) / (end - begin)).clamp(0, 1)
    return share * share * (3 - 2 * share)


def steadied(frames: Tensor, motion: Tensor) -> Tensor:
    """Frames [N, C, H, W] as they would be had the head not moved; `motion` is its flow in pixels [N, 2, H, W]."""
    back = -motion
    for _ in range(INVERSIONS):
        back = -warp(motion, back[:, None])[:, 0]
    return warp(frames, back[:, None])[:, 0]
