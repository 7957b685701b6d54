"""Single points of a figure's skin, followed through expressions and bones without drawing anything."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from streamavatar.synth.human.figure import Array, Figure, Motion

# Vertices of MakeHuman's base mesh; left is the person's.
UPPER_LIP, LOWER_LIP = 474, 493  # where the lips meet, in the middle
LIP_CONTACT = 0.0007  # metres from one to the other where the lips just touch
UPPER_LIDS, LOWER_LIDS = (6785, 1), (11479, 4861)  # edge of each lid above and below the pupil, left and right
# Upper and lower edge at three places of each eye, the inner one first.
LID_EDGES = {"Left": ((6838, 11480), (6785, 11479), (6790, 11477)), "Right": ((54, 4862), (1, 4861), (6, 4859))}


class Points:
    """P vertices of the base mesh as they are on one figure.

    Attributes:
        rest: [P,3] metres.
        deltas: [E,P,3].
    """

    def __init__(self, figure: Figure, vertices: Sequence[int]) -> None:
        """Raises ValueError where the figure's skin lacks one of the vertices (those of face and hands are there)."""
        skin = next(part for part in figure.parts if part.name == "body")
        order = np.argsort(skin.smooth, kind="stable")
        wanted = np.asarray(vertices)
        at = np.minimum(np.searchsorted(skin.smooth[order], wanted), len(order) - 1)
        rows = order[at]
        if not np.array_equal(skin.smooth[rows], wanted):
            raise ValueError("the figure's skin lacks some of the vertices")
        self.rest = skin.vertices[rows]
        self.deltas = _deltas(skin.moved, skin.deltas, rows)
        self._bones, self._weights = skin.bones[rows], skin.weights[rows]

    def shaped(self, expressions: Array) -> Array:
        """[F,P,3] with expressions [F,E] but without bones."""
        return np.asarray(self.rest + np.tensordot(expressions, self.deltas, axes=1), np.float32)

    def placed(self, motion: Motion) -> Array:
        """[F,P,3] where the renderer draws them."""
        points = self.shaped(motion.expressions)
        blend = np.einsum("pk,fpkij->fpij", self._weights, motion.bones[:, self._bones])
        return np.asarray(np.einsum("fpij,fpj->fpi", blend[..., :3], points) + blend[..., 3], np.float32)


def _deltas(moved: NDArray[np.int32], deltas: Array, rows: NDArray[np.int64]) -> Array:
    """[E,P,3]: zero for what no expression moves."""
    found = np.zeros((len(deltas), len(rows), 3), np.float32)
    place = {int(vertex): index for index, vertex in enumerate(moved)}
    for point, row in enumerate(rows):
        if int(row) in place:
            found[:, point] = deltas[:, place[int(row)]]
    return found
