"""What is true of each frame, in pixels of the picture: landmarks of face and hands, head pose, lips and lids.

Computed from a few points of the skin and the joints, so it costs next to nothing beside rendering.

Face landmarks are 68 points in the usual order, "left" as the viewer sees it: 0-16 jaw from left to right, 17-21 and
22-26 brows, 27-30 ridge of the nose, 31-35 its base, 36-41 and 42-47 eyes, each from its left corner along the upper
lid and back along the lower, 48-59 outer lips from the left corner over the upper lip and back, 60-67 inner lips.
Hand landmarks are 21 points per hand: wrist, then four joints from root to tip for thumb, index, middle, ring and
little finger; hand 0 is the person's left.
"""

from __future__ import annotations

import numpy as np

from streamavatar.synth.human.figure import Array, Camera, Figure, Motion
from streamavatar.synth.human.tracked import LIP_CONTACT, LOWER_LIDS, LOWER_LIP, UPPER_LIDS, UPPER_LIP, Points

# Vertices of MakeHuman's base mesh, in the order of the landmarks.
FACE = (
    5195, 5201, 5204, 5242, 5240, 892, 784, 5292, 732, 11898, 7501, 7594, 11849, 11851, 11815, 11812, 11806,
    212, 178, 177, 180, 181, 6957, 6956, 6953, 6954, 6987,
    132, 131, 201, 297, 358, 314, 317, 7077, 7119,
    4854, 6, 54, 6764, 4862, 4859, 13360, 6838, 6790, 11472, 11477, 11480,
    3734, 410, 456, 455, 7215, 7170, 10402, 7133, 7239, 496, 484, 373,
    416, 470, UPPER_LIP, 7226, 7176, 7236, LOWER_LIP, 481,
)  # fmt: skip
_MOUTH_CORNERS = (3734, 10402)
_EYE_CORNERS = {"eye_left": (4854, 6764), "eye_right": (13360, 11472)}
_CHEEKS = (5201, 11812)  # the face is as wide as from one to the other
_NOSE, _BROW, _CHIN = 297, 5320, 732
_MOUTH_BOX = (1.45, 1.0, 0.24)  # half width, half height and how far below the lips its middle is, in half mouths
_EYE_BOX = (0.95, 0.75)  # half width and half height, in lengths of the eye's opening


def face_frame(figure: Figure) -> tuple[Array, float]:
    """The middle of the face [3] and its width from cheek to cheek, in metres, at rest."""
    left, right, brow, chin = Points(figure, (*_CHEEKS, _BROW, _CHIN)).rest
    middle = np.array([0.0, (brow[1] + chin[1]) / 2, (left[2] + right[2]) / 2 + 0.03], np.float32)
    return middle, float(right[0] - left[0])


def landmarks(figure: Figure, motion: Motion, camera: Camera, size: int) -> dict[str, Array]:
    """Truth per frame for a square picture of `size` pixels.

    Returns:
        `face_points` [F,68,2] and `lips` [F,20,2] (its last 20) in pixels.
        `mouth_center` [F,2], and boxes (x0, y0, x1, y1) [F,4]: `mouth`, `eye_left`, `eye_right` (as the
            viewer sees them), which keep their size while mouth and lids move, and `face`.
        `lip_gap` [F] metres between the lips, `lip_gap_relative` [F] in face widths, and
            `mouth_gap` [F] in pixels.
        `eye_opening` [F,2] metres between the lids (viewer's left eye first), `eye_open` [F,2] as a share of the rest.
        `head_pose` [F,3] degrees against the camera: yaw to the viewer's right, pitch down, roll clockwise.
        `hands` [F,2,21,2] pixels, `hand_visible` [F,2] 1 where at least half of the hand is in the picture, and
            `hand_boxes` [F,2,4], zeros where it is not.
    """
    found = _face(figure, motion, camera, size)
    found |= _openings(figure, motion, camera, size)
    found["head_pose"] = head_pose(figure, motion, camera)
    found |= _hands(figure, motion, camera, size)
    return {name: np.asarray(values, np.float32) for name, values in found.items()}


def head_pose(figure: Figure, motion: Motion, camera: Camera) -> Array:
    """[F,3] degrees: yaw to the viewer's right, pitch down, roll clockwise; 0 looks at the camera."""
    turn = motion.bones[:, figure.skeleton.names.index("head"), :, :3].astype(np.float64)
    back = np.asarray(camera.eye, np.float64) - np.asarray(camera.target, np.float64)
    back /= np.linalg.norm(back)
    right = np.cross((0.0, 1.0, 0.0), back)
    right /= np.linalg.norm(right)
    seen = np.stack([right, np.cross(back, right), back]) @ turn
    yaw, pitch = np.arctan2(seen[:, 0, 2], seen[:, 2, 2]), -np.arcsin(np.clip(seen[:, 1, 2], -1, 1))
    roll = -np.arctan2(seen[:, 1, 0], seen[:, 1, 1])
    return np.degrees(np.stack([yaw, pitch, roll], axis=1)).astype(np.float32)


def _face(figure: Figure, motion: Motion, camera: Camera, size: int) -> dict[str, Array]:
    points = camera.project(Points(figure, FACE).placed(motion), size)
    low, high = points.min(axis=1), points.max(axis=1)
    return {"face_points": points, "lips": points[:, 48:], "face": np.concatenate([low, high], axis=1)}


def _openings(figure: Figure, motion: Motion, camera: Camera, size: int) -> dict[str, Array]:
    """Lips and lids: how far apart, and boxes that follow the head but not the opening."""
    scale = _pixels_per_metre(figure, motion, camera, size)
    lips = Points(figure, (UPPER_LIP, LOWER_LIP))
    gap = _apart(lips.shaped(motion.expressions), LIP_CONTACT)
    lids = [Points(figure, pair) for pair in zip(UPPER_LIDS[::-1], LOWER_LIDS[::-1], strict=True)]
    opening = np.stack([_apart(lid.shaped(motion.expressions)) for lid in lids], axis=1)
    rest = np.stack([_apart(lid.rest[None]) for lid in lids], axis=1)
    middle, width = _span(figure, motion, camera, size, _MOUTH_CORNERS)
    half = width / 2 * scale
    wide, tall, below = _MOUTH_BOX
    found: dict[str, Array] = {
        "mouth_center": middle,
        "mouth": _box(middle + np.stack([0 * half, below * half], axis=1), wide * half, tall * half),
        "lip_gap": gap, "lip_gap_relative": gap / face_frame(figure)[1], "mouth_gap": gap * scale,
        "eye_opening": opening, "eye_open": opening / rest,
    }  # fmt: skip
    for name, corners in _EYE_CORNERS.items():
        middle, width = _span(figure, motion, camera, size, corners)
        found[name] = _box(middle, _EYE_BOX[0] * width * scale, _EYE_BOX[1] * width * scale)
    return found


def _span(figure: Figure, motion: Motion, camera: Camera, size: int, corners: tuple[int, int]) -> tuple[Array, float]:
    """The middle of two points in pixels [F,2], moved by the bones alone, and how far apart they rest in metres."""
    points = Points(figure, corners)
    ends = camera.project(points.placed(_calm(motion)), size)
    return ends.mean(axis=1), float(np.linalg.norm(points.rest[1] - points.rest[0]))


def _calm(motion: Motion) -> Motion:
    """The motion without expressions."""
    return Motion(np.zeros_like(motion.expressions), motion.bones)


def _apart(pairs: Array, contact: float = 0.0) -> Array:
    """How much further than `contact` the first of two points is above the second, [F]; never below zero."""
    return np.maximum(pairs[:, 0, 1] - pairs[:, 1, 1] - contact, 0)


def _box(centre: Array, half_width: Array, half_height: Array) -> Array:
    half = np.stack([half_width, half_height], axis=1)
    return np.concatenate([centre - half, centre + half], axis=1)


def _pixels_per_metre(figure: Figure, motion: Motion, camera: Camera, size: int) -> Array:
    """[F] at the nose."""
    nose = Points(figure, (_NOSE,)).placed(_calm(motion))[:, 0]
    ahead = np.asarray(camera.target) - np.asarray(camera.eye)
    depth = (nose - np.asarray(camera.eye)) @ (ahead / np.linalg.norm(ahead))
    return np.asarray(size / 2 / np.tan(np.radians(camera.fov) / 2) / depth, np.float32)


def _hands(figure: Figure, motion: Motion, camera: Camera, size: int) -> dict[str, Array]:
    hands = np.stack([camera.project(_joints(figure, motion, side), size) for side in "LR"], axis=1)
    inside = ((hands >= 0) & (hands < size)).all(axis=-1)
    visible = inside.mean(axis=-1) >= 0.5
    clipped = np.clip(hands, 0, size)
    boxes = np.concatenate([clipped.min(axis=2), clipped.max(axis=2)], axis=-1)
    return {"hands": hands, "hand_visible": visible, "hand_boxes": boxes * visible[..., None]}


def _joints(figure: Figure, motion: Motion, side: str) -> Array:
    """The 21 joints of a hand [F,21,3] in metres."""
    skeleton = figure.skeleton
    rows = [skeleton.names.index(f"wrist.{side}")]
    rest = [skeleton.heads[rows[0]]]
    for finger in range(1, 6):
        joints = [skeleton.names.index(f"finger{finger}-{joint}.{side}") for joint in (1, 2, 3)]
        rows += [*joints, joints[-1]]
        rest += [*skeleton.heads[joints], skeleton.tails[joints[-1]]]
    bones = motion.bones[:, rows]
    return np.asarray(np.einsum("fpij,pj->fpi", bones[..., :3], np.stack(rest)) + bones[..., 3], np.float32)
