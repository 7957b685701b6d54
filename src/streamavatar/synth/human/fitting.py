"""How hair, clothes, teeth and so on follow the body: MakeHuman's `.mhclo` files.

Every vertex of such a mesh hangs on three vertices of the base mesh, with barycentric weights and an offset that
grows with the body.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streamavatar.synth.human.figure import Array
from streamavatar.synth.human.mesh import numbers


@dataclass(frozen=True)
class Fitting:
    """Attributes:
    anchors: int32 [N,3], vertices of the base mesh.
    weights: [N,3].
    offsets: [N,3] decimetres on the body that the mesh was made for.
    rulers: per axis the two base vertices whose distance along it was `lengths` on that body, int32 [3,2].
    lengths: [3].
    hidden: int32 [H], base vertices that lie under the mesh.
    """

    anchors: NDArray[np.int32]
    weights: Array
    offsets: Array
    rulers: NDArray[np.int32]
    lengths: Array
    hidden: NDArray[np.int32]

    def fit(self, body: Array) -> Array:
        """Vertices [N,3] on a body [V,3], decimetres."""
        axes = np.arange(3)
        measured = np.abs(body[self.rulers[:, 0], axes] - body[self.rulers[:, 1], axes])
        growth = np.divide(measured, self.lengths, out=np.ones_like(measured), where=self.lengths > 0)
        return self.spread(body) + self.offsets * growth

    def spread(self, values: Array) -> Array:
        """Per-vertex values of the body [...,V,C] carried to the mesh [...,N,C]."""
        return np.einsum("...nkc,nk->...nc", values[..., self.anchors, :], self.weights, dtype=np.float32)


def read_fitting(path: Path, base_vertices: int) -> Fitting:
    """The fitting in `path`. Raises ValueError where the file is damaged."""
    rulers, lengths = np.zeros((3, 2), np.int32), np.zeros(3, np.float32)
    rows: list[str] = []
    hidden: list[str] = []
    section: list[str] | None = None
    for line in path.read_text("utf-8").splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0] in ("verts", "delete_verts"):
            section = rows if words[0] == "verts" else hidden
        elif words[0] in ("x_scale", "y_scale", "z_scale"):
            axis = "xyz".index(words[0][0])
            rulers[axis], lengths[axis] = [int(w) for w in words[1:3]], float(words[3])
        elif section is not None and (words[0].isdigit() or words[0] == "-"):
            # Some packs put a keyword between `verts` and its rows; it does not end them.
            section.append(line)
    # A vertex that coincides with one of the base mesh is written as that vertex alone.
    full = " ".join(row if len(row.split()) > 1 else f"{row} 0 0 1 0 0 0 0 0" for row in rows)
    table = numbers(full, (len(rows), 9))
    fitting = Fitting(
        table[:, :3].astype(np.int32), table[:, 3:6], table[:, 6:], rulers, lengths, _ranges(" ".join(hidden))
    )
    for indices in (fitting.anchors, rulers, fitting.hidden):
        if indices.size and (indices.min() < 0 or indices.max() >= base_vertices):
            raise ValueError("it names a vertex that the base mesh does not have")
    if not rows:
        raise ValueError("it fits no vertices")
    return fitting


def _ranges(text: str) -> NDArray[np.int32]:
    """`1 4 - 6 9` as 1, 4, 5, 6, 9."""
    found: list[int] = []
    words = iter(text.split())
    for word in words:
        found.extend(range(found[-1] + 1, int(next(words)) + 1) if word == "-" else [int(word)])
    return np.array(found, np.int32)
