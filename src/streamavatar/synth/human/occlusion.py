"""How open to the light around each vertex is: ambient occlusion, once per figure.

Depth pictures are taken from directions all around; a vertex that most of them see is open, one inside a nostril is
not. It is done for the figure at rest and with its mouth wide open, since teeth lie in the dark until then.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamavatar.synth.human import shaders
from streamavatar.synth.human.figure import Array, Figure
from streamavatar.synth.human.surface import Surface

DIRECTIONS = 32
SIDE = 512  # of a depth picture, pixels
REACH = 0.5  # metres around the middle of the head and chest; what lies further counts as open
SLACK = 0.005  # metres a vertex may lie behind the seen surface: its own triangles pass at a slant
MOUTH = "jawOpen"

Flags = NDArray[np.bool_]
Matrix = NDArray[np.float64]


def bake(gl: Any, figure: Figure, mesh: Surface) -> tuple[Array, Array, Array]:
    """Openness 0..1 of each vertex at rest and with the mouth open, both [N] in the order of `mesh`.

    The third, [E], is by how much each expression opens the mouth; all zero for a figure without `MOUTH`.
    """
    everywhere = np.concatenate([np.full(len(p.vertices), p.material.double_sided) for p in figure.parts])[mesh.order]
    kinds = [p.material.kind for p in figure.parts]
    opaque = [t for t, kind in zip(mesh.triangles, kinds, strict=True) if kind not in ("lashes", "brows")]
    depths = _Depths(gl, len(mesh.vertices), np.concatenate(opaque or mesh.triangles))
    rest = depths.openness(mesh.vertices, mesh.normals, everywhere)
    opened, opening = rest, np.zeros(len(figure.expressions), np.float32)
    if MOUTH in figure.expressions:
        only = np.eye(len(figure.expressions), dtype=np.float32)[figure.expressions.index(MOUTH)]
        opening = np.maximum(mesh.share(only), 0.0)
        positions, normals = mesh.vertices.copy(), mesh.normals.copy()
        positions[: mesh.live], normals[: mesh.live] = (moved[0] for moved in mesh.at(only[None]))
        opened = depths.openness(positions, normals, everywhere)
    depths.release()
    return rest, opened, opening


class _Depths:
    """Takes depth pictures of a mesh."""

    def __init__(self, gl: Any, vertices: int, triangles: NDArray[np.int32]) -> None:
        self._gl = gl
        self._program = gl.program(shaders.DEPTH_VERTEX, shaders.SHADOW_FRAGMENT)
        self._positions = gl.buffer(reserve=vertices * 12)
        self._index = gl.buffer(np.ascontiguousarray(triangles, np.int32).tobytes())
        self._array = gl.vertex_array(self._program, [(self._positions, "3f", "position")], self._index)
        self._depth = gl.depth_texture((SIDE, SIDE))
        self._target = gl.framebuffer(depth_attachment=self._depth)

    def openness(self, positions: Array, normals: Array, everywhere: Flags) -> Array:
        """Share of light that arrives; where `everywhere`, from all sides (cards of hair), else from the outside."""
        self._positions.write(np.ascontiguousarray(positions, np.float32))
        middle = (positions.min(axis=0) + positions.max(axis=0)) / 2
        middle[1] = positions[:, 1].max() - 0.6 * REACH
        arriving, possible = np.zeros(len(positions)), np.zeros(len(positions))
        for direction in _sphere(DIRECTIONS):
            turn = _frame(direction) / np.array([[REACH], [REACH], [4 * REACH]])
            seen = self._seen((positions - middle) @ turn.T, turn, middle)
            share = np.where(everywhere, 0.5, np.maximum(normals @ direction, 0.0))
            arriving += share * seen
            possible += share
        # Half of the sphere lies behind even a free card.
        return np.clip(arriving / np.maximum(possible * np.where(everywhere, 0.6, 1.0), 1e-6), 0, 1).astype(np.float32)

    def _seen(self, points: Matrix, turn: Matrix, middle: Array) -> Flags:
        """[N] bool, which points (x, y, depth in -1..1) the depth picture shows."""
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = turn, -turn @ middle
        self._program["to_clip"].write(matrix.T.astype(np.float32).tobytes())
        self._target.use()
        self._target.clear(depth=1.0)
        self._gl.enable_only(self._gl.DEPTH_TEST)
        self._array.render()
        depth = np.frombuffer(self._depth.read(), np.float32).reshape(SIDE, SIDE)
        columns, rows = ((points[:, :2] * 0.5 + 0.5) * SIDE).astype(int).T
        inside = (columns >= 0) & (columns < SIDE) & (rows >= 0) & (rows < SIDE)
        nearest = np.where(inside, depth[rows % SIDE, columns % SIDE] * 2 - 1, 1.0)
        return points[:, 2] <= nearest + SLACK / (4 * REACH)

    def release(self) -> None:
        for thing in (self._array, self._program, self._positions, self._index, self._target, self._depth):
            thing.release()


def _sphere(count: int) -> Matrix:
    """[count,3] directions spread evenly over the sphere (golden spiral)."""
    place = np.arange(count) + 0.5
    height, angle = 1 - 2 * place / count, np.pi * (1 + 5**0.5) * place
    ring = np.sqrt(1 - height**2)
    return np.stack([ring * np.cos(angle), height, ring * np.sin(angle)], axis=1)


def _frame(direction: Matrix) -> Matrix:
    """[3,3], rows right, up and away from a light that shines from `direction`."""
    side = np.cross(-direction, (0.0, 1.0, 0.0))
    right = side / np.linalg.norm(side)
    return np.stack([right, np.cross(right, -direction), -direction])
