"""What the camera and the key light see: matrices for the shaders, and which bones are out of the picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamavatar.synth.human.figure import Array, Camera, Scene

NEAR, FAR = 0.05, 20.0  # metres
VIEW_BYTES = 4 * (2 * 16 + 7 * 4)  # of `view_block`

Matrix = NDArray[np.float64]


def bone_spheres(vertices: Array, joints: NDArray[np.int32], weights: Array, bones: int) -> Array:
    """[B,4]: at rest, the centre and radius of a ball around all vertices that a bone moves; radius -1 where none."""
    spheres = np.full((bones, 4), -1.0, np.float32)
    for bone in np.unique(joints[weights > 0]):
        own = vertices[((joints == bone) & (weights > 0)).any(axis=1)]
        centre = (own.min(axis=0) + own.max(axis=0)) / 2
        spheres[bone] = [*centre, np.linalg.norm(own - centre, axis=1).max()]
    return spheres


def unseen_bones(spheres: Array, bones: Array, camera: Camera) -> NDArray[np.bool_]:
    """[B], bones whose vertices lie below the picture in all frames (with room for what expressions move)."""
    ahead, _, up = _axes(np.subtract(camera.target, camera.eye, dtype=np.float64))
    half = np.radians(camera.fov) / 2
    inward = up * np.cos(half) + ahead * np.sin(half)  # normal of the lower edge's plane
    centres = bones[..., :3] @ spheres[None, :, :3, None]
    height = (centres[..., 0] + bones[..., 3] - np.asarray(camera.eye)) @ inward
    return (height + spheres[:, 3] < -0.05).all(axis=0)


def _axes(ahead: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """Unit vectors ahead, right and up of someone who looks along `ahead` without roll."""
    ahead = ahead / np.linalg.norm(ahead)
    side = np.cross(ahead, (0.0, 1.0, 0.0) if abs(ahead[1]) < 0.99 else (0.0, 0.0, -1.0))
    right = side / np.linalg.norm(side)
    return ahead, right, np.cross(right, ahead)


def _look(eye: Matrix, ahead: Matrix) -> Matrix:
    """[4,4] from the world to x right, y up, z ahead."""
    forward, right, up = _axes(ahead)
    rotation = np.stack([right, up, forward])
    return np.vstack([np.column_stack([rotation, -rotation @ eye]), [0, 0, 0, 1]])


def _perspective(camera: Camera) -> Matrix:
    eye, target = np.asarray(camera.eye, np.float64), np.asarray(camera.target, np.float64)
    scale = 1 / np.tan(np.radians(camera.fov) / 2)
    depth = (FAR + NEAR) / (FAR - NEAR)
    lens = np.diag([scale, scale, depth, 0.0])
    lens[2, 3], lens[3, 2] = -2 * FAR * NEAR / (FAR - NEAR), 1.0
    return lens @ _look(eye, target - eye)


def _shadow_matrix(camera: Camera, direction: Matrix) -> Matrix:
    """To [0,1] in x, y (map) and z (depth) for a light from `direction`, around what the camera sees at its target."""
    eye, target = np.asarray(camera.eye, np.float64), np.asarray(camera.target, np.float64)
    radius = 1.5 * np.linalg.norm(target - eye) * np.tan(np.radians(camera.fov) / 2)
    deep = radius + 1.0  # casters this far towards the light still count
    fit = np.diag([0.5 / radius, 0.5 / radius, 0.5 / deep, 1.0])
    fit[:3, 3] = 0.5
    return fit @ _look(target, -direction)


def view_block(scene: Scene) -> bytes:
    """The uniform block `View` of the shaders."""
    light = scene.light
    direction = np.asarray(light.direction, np.float64) / np.linalg.norm(light.direction)
    # The fill comes from the other side of the viewer's line of sight, lower than the key.
    fill = np.array([-direction[0], 0.3 * direction[1], max(direction[2], 0.3)])
    rows = [scene.camera.eye, direction, fill / np.linalg.norm(fill), light.key, light.fill, light.sky, light.ground]
    matrices = [_perspective(scene.camera).T, _shadow_matrix(scene.camera, direction).T]  # GL reads columns
    vectors = np.column_stack([np.asarray(rows), np.zeros(len(rows))])
    return np.concatenate([*(m.ravel() for m in matrices), vectors.ravel()]).astype(np.float32).tobytes()
