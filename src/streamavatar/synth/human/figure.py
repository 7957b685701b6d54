"""What the renderer draws: one person at rest, how the person moves, and how the camera looks at them.

Plain data, so that building a person, moving it and drawing it know nothing of each other. Units are metres in
MakeHuman's axes: y up, z towards the viewer, x to the person's left (the viewer's right).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Pixels = NDArray[np.uint8]

Kind = Literal["skin", "eye", "teeth", "tongue", "lashes", "brows", "hair", "cloth"]


@dataclass(frozen=True)
class Material:
    """How a part's surface looks.

    Attributes:
        kind: which shading it gets.
        texture: uint8 RGBA [h,w,4], first row is the top; uv (0,0) is the lower left corner.
        tint: multiplies the texture's colour (sRGB factors), [3].
        cutout: the texture's alpha says where there is surface (hair cards, lashes, brows).
        double_sided: seen from behind too.
        normals: tangent-space normal map uint8 RGB [h,w,3], or None.
        occlusion: ambient occlusion map uint8 [h,w], or None.
        gloss: 0 dull .. 1 wet; scales the highlight.
    """

    kind: Kind
    texture: Pixels
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    cutout: bool = False
    double_sided: bool = False
    normals: Pixels | None = None
    occlusion: Pixels | None = None
    gloss: float = 0.3


@dataclass(frozen=True)
class Part:
    """One mesh with one material. A vertex that lies on a seam of the texture is there once per side.

    Attributes:
        name: "body", "eyes", "teeth", "hair", ...
        vertices: [N,3] at rest, without expression.
        uv: [N,2].
        triangles: int32 [M,3], counter-clockwise from outside.
        bones: int32 [N,4], rows of `Skeleton`.
        weights: [N,4], rows sum to 1.
        moved: int32 [K], the vertices that any expression moves.
        deltas: [E,K,3], offset of those vertices at full weight of each expression.
        smooth: int32 [N], vertices with the same number are one point of the surface (shared normal across seams).
        material: its look.
    """

    name: str
    vertices: Array
    uv: Array
    triangles: NDArray[np.int32]
    bones: NDArray[np.int32]
    weights: Array
    moved: NDArray[np.int32]
    deltas: Array
    smooth: NDArray[np.int32]
    material: Material


@dataclass(frozen=True)
class Skeleton:
    """Bones at rest: `names` and `parents` (row, -1 for the root; parents come first), `heads` and `tails` [B,3]."""

    names: tuple[str, ...]
    parents: NDArray[np.int32]
    heads: Array
    tails: Array


@dataclass(frozen=True)
class Figure:
    """One person, ready to be moved and drawn. `expressions` names the E morphs, in the order of `Part.deltas`."""

    parts: tuple[Part, ...]
    skeleton: Skeleton
    expressions: tuple[str, ...]


@dataclass(frozen=True)
class Motion:
    """F frames: `expressions` [F,E] morph weights, `bones` [F,B,3,4] taking points at rest to their place."""

    expressions: Array
    bones: Array

    def __len__(self) -> int:
        return len(self.expressions)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera without roll: `eye` looks at `target`; `fov` is the vertical angle of view in degrees."""

    eye: tuple[float, float, float]
    target: tuple[float, float, float]
    fov: float = 20.0

    def project(self, points: Array, size: int) -> Array:
        """Pixels [...,2] (x right, y down, pixel centres at .5) of points [...,3] in a square picture."""
        eye, target = np.asarray(self.eye, np.float64), np.asarray(self.target, np.float64)
        ahead = (target - eye) / np.linalg.norm(target - eye)
        right = np.cross(ahead, (0.0, 1.0, 0.0))
        right /= np.linalg.norm(right)
        up = np.cross(right, ahead)
        offset = np.asarray(points, np.float64) - eye
        scale = size / 2 / np.tan(np.radians(self.fov) / 2) / (offset @ ahead)
        return np.stack([size / 2 + offset @ right * scale, size / 2 - offset @ up * scale], axis=-1).astype(np.float32)


@dataclass(frozen=True)
class Light:
    """Key light from `direction` (towards the light), fill from the other side, sky and ground light all around.

    Colours are linear RGB and may exceed 1.
    """

    direction: tuple[float, float, float]
    key: tuple[float, float, float]
    fill: tuple[float, float, float]
    sky: tuple[float, float, float]
    ground: tuple[float, float, float]


@dataclass(frozen=True)
class Scene:
    """What is around the person. `background` is uint8 RGB [size,size,3], already in display colours."""

    camera: Camera
    light: Light
    background: Pixels
