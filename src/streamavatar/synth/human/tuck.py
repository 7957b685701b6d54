"""Skin that lies under clothes is drawn in a little, so that it does not show through when arms and trunk move."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from streamavatar.synth.human.figure import Array

_NEAR = 0.25  # decimetres: cloth further from the skin than this does not matter
_DEPTH = 0.07  # decimetres that the skin gives way
_INSIDE = 0.6  # cosine: cloth beside or below the skin, as at the rim of a collar, does not cover it

Rows = NDArray[np.int32]


def tucked(body: Array, skin: Rows, cloth: Array, cloth_faces: Rows) -> Array:
    """The body [V,3] with those vertices of the `skin` faces [M,4] drawn in that the cloth covers (decimetres)."""
    inward = normals(body, skin)
    outward = normals(cloth, cloth_faces)
    rows = np.unique(skin)
    distance, nearest = cKDTree(cloth).query(body[rows], distance_upper_bound=_NEAR)
    found = np.isfinite(distance)
    rows, nearest, distance = rows[found], nearest[found], distance[found]
    gap = ((cloth[nearest] - body[rows]) * inward[rows]).sum(axis=1)
    facing = (outward[nearest] * inward[rows]).sum(axis=1)
    covered = (facing > 0.3) & (gap > _INSIDE * distance - 0.03)
    away = np.zeros_like(body)
    away[rows[covered]] = _DEPTH * inward[rows[covered]]
    return body - away


def normals(vertices: Array, faces: Rows) -> Array:
    """Unit normals [V,3] of a mesh of quads; zero where no face is."""
    corners = vertices[faces]
    across = np.cross(corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1])
    summed = np.zeros_like(vertices)
    for corner in range(4):
        np.add.at(summed, faces[:, corner], across)
    length = np.linalg.norm(summed, axis=1, keepdims=True)
    return np.asarray(summed / np.maximum(length, 1e-9), np.float32)
