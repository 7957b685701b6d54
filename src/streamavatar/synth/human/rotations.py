"""Rotations of many frames at once. Angles in radians, matrices [F,3,3] that multiply column vectors."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Matrices = NDArray[np.float64]
Vectors = NDArray[np.float64]

X, Y, Z = np.eye(3)


def about(axis: ArrayLike, angle: ArrayLike) -> Matrices:
    """By `angle` [F] about one axis [3]."""
    x, y, z = unit(np.asarray(axis, np.float64))
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turn = np.asarray(angle, np.float64)[..., None, None]
    return np.eye(3) + np.sin(turn) * cross + (1 - np.cos(turn)) * (cross @ cross)


def about_each(axis: Vectors, angle: ArrayLike) -> Matrices:
    """By `angle` [F] about the axis [F,3] of each frame."""
    axis = unit(axis)
    cross = np.zeros((*axis.shape, 3))
    for row, column, entry, sign in ((0, 1, 2, -1), (0, 2, 1, 1), (1, 2, 0, -1)):
        cross[..., row, column] = sign * axis[..., entry]
        cross[..., column, row] = -sign * axis[..., entry]
    turn = np.asarray(angle, np.float64)[..., None, None]
    return np.asarray(np.eye(3) + np.sin(turn) * cross + (1 - np.cos(turn)) * (cross @ cross))


def unit(vectors: Vectors) -> Vectors:
    """Scaled to length 1, along the last axis."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


def frame(first: Vectors, second: Vectors) -> Matrices:
    """Axes in columns [...,3,3]: `first`, the part of `second` across it, and what is across both."""
    a = unit(first)
    b = unit(second - (second * a).sum(axis=-1, keepdims=True) * a)
    return np.stack([a, b, np.cross(a, b)], axis=-1)


def transposed(matrices: Matrices) -> Matrices:
    return np.swapaxes(matrices, -1, -2)
