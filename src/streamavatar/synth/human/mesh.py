"""Meshes of the asset folder: Wavefront OBJ as MakeHuman's packs write it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streamavatar.synth.human.figure import Array


@dataclass(frozen=True)
class Mesh:
    """A mesh in MakeHuman's units (decimetres).

    Attributes:
        vertices: [V,3].
        uv: [T,2].
        faces: int32 [M,4] rows of `vertices`; a triangle repeats its last corner.
        face_uv: int32 [M,4] rows of `uv`.
        groups: the group's name per face.
    """

    vertices: Array
    uv: Array
    faces: NDArray[np.int32]
    face_uv: NDArray[np.int32]
    groups: NDArray[np.str_]

    def triangles(self, keep: NDArray[np.bool_] | None = None) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Triangles [K,3] of the faces to `keep` [M], as rows of `vertices` and as rows of `uv`."""
        faces, face_uv = (self.faces, self.face_uv) if keep is None else (self.faces[keep], self.face_uv[keep])
        solid = faces[:, 2] != faces[:, 3]
        halves = [(slice(None), [0, 1, 2]), (solid, [0, 2, 3])]
        return tuple(np.concatenate([part[rows][:, corners] for rows, corners in halves]) for part in (faces, face_uv))  # type: ignore[return-value]


def read_obj(path: Path) -> Mesh:
    """The mesh in `path`. Raises ValueError where the file is damaged."""
    points: list[str] = []
    coordinates: list[str] = []
    faces: list[str] = []
    groups: list[str] = []
    group = ""
    for line in path.read_text("utf-8").splitlines():
        if line.startswith("v "):
            points.append(line[2:])
        elif line.startswith("vt "):
            coordinates.append(line[3:])
        elif line.startswith("f "):
            faces.append(line[2:])
            groups.append(group)
        elif line.startswith("g "):
            group = line[2:].strip()
    corners = np.empty((len(faces), 4, 2), np.int32)
    sizes = np.array([face.count("/") for face in faces])
    for size in (3, 4):
        chosen = np.flatnonzero(sizes == size)
        text = " ".join(faces[row] for row in chosen).replace("/", " ")
        corners[chosen, :size] = numbers(text, (len(chosen), size, 2))
        corners[chosen, size:] = corners[chosen, size - 1 : size]
    if not faces or not np.isin(sizes, (3, 4)).all():
        raise ValueError("it has no faces, or faces that are not three or four corners with texture coordinates")
    mesh = Mesh(
        numbers(" ".join(points), (len(points), 3)),
        numbers(" ".join(" ".join(c.split()[:2]) for c in coordinates), (len(coordinates), 2)),
        corners[..., 0] - 1, corners[..., 1] - 1, np.array(groups),
    )  # fmt: skip
    for rows, size in ((mesh.faces, len(points)), (mesh.face_uv, len(coordinates))):
        if rows.min() < 0 or rows.max() >= size:
            raise ValueError("a face names a vertex that is not there")
    return mesh


def numbers(text: str, shape: tuple[int, ...]) -> Array:
    """The numbers in `text` as float32 of `shape`; ValueError if there are more, fewer, or something else."""
    found = np.array(text.split(), np.float32)
    if found.size != np.prod(shape):
        raise ValueError(f"{found.size} numbers where {int(np.prod(shape))} belong")
    return found.reshape(shape)
