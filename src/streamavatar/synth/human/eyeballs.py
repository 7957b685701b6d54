"""The eyeballs: two domes that look ahead, with the iris in the middle of the texture's first eye.

MakeHuman's own eye is a coarse ball without a usable texture layout, so it gives only centre and size.
"""

from __future__ import annotations

import numpy as np

from streamavatar.synth.human.figure import Array, Material, Part, Skeleton

_BALLS = {"eye.L": slice(14598, 14670), "eye.R": slice(14670, 14742)}  # vertices of the base mesh
_RINGS, _SECTORS = 20, 32
_BACK = np.radians(125.0)  # how far the dome reaches back; the rest is never seen
_IRIS = np.radians(25.5)  # half the angle of the iris
_BULGE = 0.05  # of the radius, at the middle of the cornea
_IRIS_AT = (0.2925, 0.2965)  # its middle in the texture (u right, v up), and its radius
_IRIS_UV = 0.1155


def eyeballs(body: Array, skeleton: Skeleton, expressions: int, material: Material) -> Part:
    """Both eyes as one part in metres. `body`: the base mesh in decimetres, `skeleton` in metres."""
    polar = _BACK * np.linspace(0, 1, _RINGS + 1)[:, None] ** 1.1
    turn = np.linspace(0, 2 * np.pi, _SECTORS + 1)[None]
    x, y, z = np.sin(polar) * np.cos(turn), np.sin(polar) * np.sin(turn), np.cos(polar) + 0 * turn
    swell = 1 + _BULGE * np.clip(1 - (polar / (1.15 * _IRIS)) ** 2, 0, 1)
    dome = np.stack([x, y, z], axis=-1).reshape(-1, 3) * np.broadcast_to(swell, x.shape).reshape(-1, 1)
    # Beyond the equator the texture is not known: its rim goes on.
    reach = np.sin(np.minimum(polar, np.pi / 2)) * _IRIS_UV / np.sin(_IRIS)
    uv = np.stack([_IRIS_AT[0] + reach * np.cos(turn), _IRIS_AT[1] + reach * np.sin(turn)], axis=-1).reshape(-1, 2)
    triangles = _grid(_RINGS, _SECTORS)
    size = len(dome)
    vertices = np.empty((2 * size, 3), np.float32)
    bones = np.zeros((2 * size, 4), np.int32)
    for index, (name, ball) in enumerate(_BALLS.items()):
        bone = skeleton.names.index(name)
        centre = skeleton.heads[bone]
        radius = float(np.median(np.linalg.norm(body[ball] * 0.1 - centre, axis=1)))
        rows = slice(index * size, (index + 1) * size)
        vertices[rows] = centre + radius * dome
        bones[rows] = bone
    weights = np.tile(np.array([1, 0, 0, 0], np.float32), (2 * size, 1))
    return Part(
        "eyes", vertices, np.tile(uv, (2, 1)).astype(np.float32),
        np.concatenate([triangles, triangles + size]).astype(np.int32), bones, weights,
        np.zeros(0, np.int32), np.zeros((expressions, 0, 3), np.float32), _welded(vertices), material,
    )  # fmt: skip


def _grid(rings: int, sectors: int) -> np.ndarray:
    """Triangles of a grid of (rings + 1) x (sectors + 1) vertices, counter-clockwise seen from ahead."""
    row, column = np.meshgrid(np.arange(rings), np.arange(sectors), indexing="ij")
    a = (row * (sectors + 1) + column).ravel()
    b, c, d = a + 1, a + sectors + 1, a + sectors + 2
    return np.concatenate([np.stack([a, c, d], axis=1), np.stack([a, d, b], axis=1)])


def _welded(vertices: Array) -> np.ndarray:
    """One number per place."""
    return np.unique(np.round(vertices * 1e6).astype(np.int64), axis=0, return_inverse=True)[1].ravel().astype(np.int32)
