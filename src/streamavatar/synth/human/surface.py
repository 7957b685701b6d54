"""A figure as one mesh whose expressions are applied for many frames at once.

Expressions move a few thousand of some twenty-five thousand vertices. Those, and their neighbours whose normals
follow, come first ("live"), so that a frame uploads one short run of vertices. The morphs are one matrix product for
all frames; normals are summed anew from the faces, since added normal deltas go wrong around an open mouth.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from streamavatar.synth.human.figure import Array, Figure

Ints = NDArray[np.int64]


class Surface:
    """All parts of a figure in one run of N vertices, the L live ones first.

    Attributes:
        order: [N] from this order to the parts' vertices one part after the other.
        live: L, the number of vertices that `at` gives.
        vertices, normals: [N,3] at rest.
        triangles: per part int32 [M,3] in this order.
    """

    def __init__(self, figure: Figure) -> None:
        parts = figure.parts
        starts = np.cumsum([0] + [len(p.vertices) for p in parts])
        vertices = np.concatenate([p.vertices for p in parts]).astype(np.float32)
        triangles = [p.triangles.astype(np.int64) + start for p, start in zip(parts, starts[:-1], strict=True)]
        points = _points([p.smooth for p in parts])
        moved = np.concatenate([p.moved + start for p, start in zip(parts, starts[:-1], strict=True)]).astype(np.int64)
        deltas = np.concatenate([p.deltas for p in parts], axis=1).astype(np.float32)

        faces = np.concatenate(triangles)
        is_moved = np.zeros(len(vertices), bool)
        is_moved[moved] = True
        moving = is_moved[faces].any(axis=1)
        is_live = is_moved | np.isin(points, points[faces[moving]])
        self.order = np.concatenate([np.flatnonzero(is_live), np.flatnonzero(~is_live)])
        self.live = int(is_live.sum())
        place = np.empty_like(self.order)
        place[self.order] = np.arange(len(self.order))

        self.vertices = vertices[self.order]
        self.triangles = [place[t].astype(np.int32) for t in triangles]
        self._moved = place[moved]
        self._deltas = deltas.reshape(len(deltas), -1)

        sums = _sum_at_points(points, faces) @ _face_normals(vertices[None], faces)[0]
        self.normals = _unit(sums[points])[self.order]
        # What the faces that stay give to the normals of live vertices never changes.
        self._points, self._live_points = np.unique(points[self.order[: self.live]], return_inverse=True)
        still = _sum_at_points(points, faces[~moving])[self._points]
        self._still_normals = (still @ _face_normals(vertices[None], faces[~moving])[0]).astype(np.float32)
        self._moving_faces = place[faces[moving]]
        self._to_points = _sum_at_points(points, faces[moving])[self._points]

    def at(self, weights: Array) -> tuple[Array, Array]:
        """Positions and normals, each [F,L,3], of the live vertices under the morph weights [F,E]."""
        frames = len(weights)
        used = np.flatnonzero(weights.any(axis=0))
        positions = np.repeat(self.vertices[None, : self.live], frames, axis=0)
        if used.size:
            positions[:, self._moved] += (weights[:, used] @ self._deltas[used]).reshape(frames, -1, 3)
        faces = _face_normals(positions, self._moving_faces)
        sums = self._to_points @ faces.transpose(1, 0, 2).reshape(len(self._moving_faces), frames * 3)
        normals = sums.reshape(-1, frames, 3).transpose(1, 0, 2) + self._still_normals
        return positions, _unit(normals[:, self._live_points])

    def share(self, expression: Array) -> Array:
        """[E], how much of one expression ([E] one-hot or a mix) is in each: least squares over all moved vertices."""
        wanted = expression @ self._deltas
        scale = float(wanted @ wanted)
        return (self._deltas @ wanted / scale if scale else np.zeros(len(self._deltas))).astype(np.float32)


def _points(smooth: list[NDArray[np.int32]]) -> Ints:
    """[N], one number per point of the surface, 0.. without gaps; parts share none."""
    numbers, start = [], 0
    for part in smooth:
        unique, inverse = np.unique(part, return_inverse=True)
        numbers.append(inverse.astype(np.int64) + start)
        start += len(unique)
    return np.concatenate(numbers)


def _face_normals(vertices: Array, faces: Ints) -> Array:
    """[F,M,3], as long as twice the area, so that their sum weighs faces by area."""
    first = vertices[:, faces[:, 0]]
    return np.cross(vertices[:, faces[:, 1]] - first, vertices[:, faces[:, 2]] - first)


def _sum_at_points(points: Ints, faces: Ints) -> csr_matrix:
    """[P,M] of ones where a face touches a point."""
    rows = points[faces].ravel()
    columns = np.repeat(np.arange(len(faces)), 3)
    return csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=(int(points.max()) + 1, len(faces)))


def _unit(vectors: Array) -> Array:
    return (vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)).astype(np.float32)
