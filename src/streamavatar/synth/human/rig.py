"""The bones that a performance moves, cut down from MakeHuman's 163.

Faces are moved by morphs and legs are never in the picture, so a bone of face, leg or foot hands its weights to the
nearest ancestor that is kept.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streamavatar.synth.human.figure import Array, Skeleton

_KEPT = re.compile(
    r"root|spine\d+|neck\d+|head|(clavicle|shoulder01|upperarm\d+|lowerarm\d+|wrist|metacarpal\d|finger\d-\d|eye|pelvis"
    r"|upperleg01)\.[LR]"
)
_LEG = re.compile(r"(upperleg02|lowerleg\d+|foot|toe\d-\d)\.[LR]")


@dataclass(frozen=True)
class Rig:
    """Attributes:
    names: B bones, parents first; `parents` gives their rows, -1 for the root.
    heads, tails: the base vertices whose mean is the joint, per bone.
    weights: [V,B] of the base mesh.
    legs: [V] the share of bones below the hips in each vertex.
    """

    names: tuple[str, ...]
    parents: NDArray[np.int32]
    heads: tuple[NDArray[np.int32], ...]
    tails: tuple[NDArray[np.int32], ...]
    weights: Array
    legs: Array

    def skeleton(self, body: Array) -> Skeleton:
        """Joints on a body [V,3], in its unit."""
        heads, tails = (np.stack([body[i].mean(axis=0) for i in side]) for side in (self.heads, self.tails))
        return Skeleton(self.names, self.parents, heads.astype(np.float32), tails.astype(np.float32))


def read_rig(skeleton: Path, weights: Path, vertices: int) -> Rig:
    """The rig of the base mesh. Raises ValueError or KeyError where a file is damaged."""
    document = json.loads(skeleton.read_text("utf-8"))
    bones, joints = document["bones"], document["joints"]
    kept = {name for name in bones if _KEPT.fullmatch(name)}

    def keeper(name: str | None) -> str | None:
        """The bone itself or its nearest kept ancestor."""
        while name is not None and name not in kept:
            name = bones[name]["parent"]
        return name

    parent = {name: keeper(bones[name]["parent"]) for name in kept}
    names = _parents_first(parent)
    dense = np.zeros((vertices, len(names)), np.float32)
    legs = np.zeros(vertices, np.float32)
    for name, pairs in json.loads(weights.read_text("utf-8"))["weights"].items():
        table = np.array(pairs, np.float64).reshape(-1, 2)
        rows, amount = table[:, 0].astype(int), table[:, 1]
        if _LEG.fullmatch(name):
            legs[rows] += amount
        dense[rows, names.index(keeper(name) or names[0])] += amount
    ends = [
        tuple(np.array(joints[bones[name][end]], np.int32).reshape(-1) for name in names) for end in ("head", "tail")
    ]
    if max(i.max() for side in ends for i in side) >= vertices:
        raise ValueError("a joint names a vertex that the base mesh does not have")
    parents = np.array([names.index(p) if (p := parent[n]) else -1 for n in names], np.int32)
    return Rig(tuple(names), parents, ends[0], ends[1], dense, legs)


def _parents_first(parent: dict[str, str | None]) -> list[str]:
    names: list[str] = []
    while len(names) < len(parent):
        ready = sorted(n for n, p in parent.items() if n not in names and (p is None or p in names))
        if not ready:
            raise ValueError("its bones do not form a tree")
        names += ready
    return names
