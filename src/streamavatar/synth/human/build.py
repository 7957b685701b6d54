"""From an identity to a `Figure`: body, eyes, teeth, tongue, lashes, brows, hair and clothes, all of one skeleton.

Everything but the eyeballs hangs on the base mesh: what is worn is carried by fitting, and so are its morphs and its
skin weights. Lengths are decimetres until the very end.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamavatar.synth.human.assets import Assets, Piece
from streamavatar.synth.human.eyeballs import eyeballs
from streamavatar.synth.human.figure import Array, Figure, Kind, Material, Part
from streamavatar.synth.human.identity import HumanIdentity
from streamavatar.synth.human.looks import Look
from streamavatar.synth.human.mesh import Mesh
from streamavatar.synth.human.shape import body_shape
from streamavatar.synth.human.tuck import tucked

METRES = 0.1  # MakeHuman's unit
BONES = 4  # per vertex
_STILL = 1e-3  # decimetres: a vertex that no expression moves further stays

Rows = NDArray[np.int32]


def build_figure(assets: Assets, identity: HumanIdentity) -> Figure:
    """The person, at rest.

    Raises:
        UserError: a file that this person needs is missing or damaged.
    """
    body = body_shape(assets, identity)
    rig, (expressions, morphs) = assets.rig, assets.expressions
    look = Look(assets, identity)
    clothes = assets.piece("clothes", identity.clothes)
    worn: list[tuple[str, Kind, Piece]] = [
        ("teeth", "teeth", assets.piece("teeth", identity.teeth)),
        ("tongue", "tongue", assets.piece("tongue", assets.pieces["tongue"][0])),
        ("lashes", "lashes", assets.piece("eyelashes", identity.lashes)),
        ("brows", "brows", assets.piece("eyebrows", identity.brows)),
        ("clothes", "cloth", clothes),
    ]
    if identity.hair:
        worn.append(("hair", "hair", assets.piece("hair", identity.hair)))
    shown = _shown(assets.base, clothes, rig.legs)
    skin = tucked(body, assets.base.faces[shown], clothes.fitting.fit(body), clothes.mesh.faces)
    parts = [_part("body", assets.base, shown, skin, rig.weights, morphs, look.skin())]
    skeleton = rig.skeleton(body * METRES)
    parts.append(eyeballs(body, skeleton, len(expressions), look.eyes()))
    for name, kind, piece in worn:
        fitting = piece.fitting
        vertices, weights = fitting.fit(body), fitting.spread(rig.weights.T[..., None])[..., 0].T
        legs = fitting.spread(rig.legs[None, :, None])[0, :, 0]
        keep = np.asarray((legs[piece.mesh.faces] < 0.5).any(axis=1))
        material = look.worn(kind, piece)
        parts.append(_part(name, piece.mesh, keep, vertices, weights, fitting.spread(morphs), material))
    return Figure(tuple(parts), skeleton, expressions)


def _shown(base: Mesh, clothes: Piece, legs: Array) -> NDArray[np.bool_]:
    """Faces of the skin that are neither under clothes nor below the hips."""
    visible = np.ones(len(base.vertices), bool)
    visible[clothes.fitting.hidden] = False
    skin = base.groups == "body"
    return np.asarray(skin & visible[base.faces].any(axis=1) & (legs[base.faces] < 0.5).any(axis=1))


def _part(
    name: str, mesh: Mesh, keep: NDArray[np.bool_], vertices: Array, weights: Array, morphs: Array, material: Material
) -> Part:
    """The faces to `keep`, with one vertex per side of a texture seam.

    Args:
        vertices: [V,3] decimetres.
        weights: [V,B].
        morphs: [E,V,3] decimetres.
    """
    corners, uv_corners = mesh.triangles(keep)
    pairs = corners.astype(np.int64) * len(mesh.uv) + uv_corners
    unique, triangles = np.unique(pairs, return_inverse=True)
    source, uv_source = unique // len(mesh.uv), unique % len(mesh.uv)
    deltas = morphs[:, source]
    moved = np.flatnonzero((np.abs(deltas) > _STILL).any(axis=(0, 2)))
    bones, shares = _strongest(weights[source])
    return Part(
        name, vertices[source] * np.float32(METRES), mesh.uv[uv_source],
        triangles.reshape(-1, 3).astype(np.int32), bones, shares,
        moved.astype(np.int32), deltas[:, moved] * np.float32(METRES), source.astype(np.int32), material,
    )  # fmt: skip


def _strongest(weights: Array) -> tuple[Rows, Array]:
    """The `BONES` strongest bones per vertex and their shares, which sum to 1."""
    bones = np.argpartition(weights, -BONES, axis=1)[:, -BONES:]
    shares = np.maximum(np.take_along_axis(weights, bones, axis=1), 0)
    return bones.astype(np.int32), (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)
