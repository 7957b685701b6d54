"""Arms and hands: hanging at rest, and a gesture that brings the hand up beside the chest.

Everything is worked out for a left arm; a right arm is its mirror image. The elbow is found from where the wrist
should be, so that the hand's path is what is designed, not angles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamavatar.synth.human.drift import drift
from streamavatar.synth.human.figure import Figure
from streamavatar.synth.human.rotations import Matrices, Vectors, Z, about, about_each, frame, transposed, unit
from streamavatar.synth.performance import Performance

Curve = NDArray[np.float64]

_MIRROR = np.diag([-1.0, 1.0, 1.0])
_SWAY, _BEAT = 0.045, 0.02  # metres that the hand moves at sway 1, and that idle motion moves it
_SLOPE = 6.0  # degrees that the collarbone sinks when the arm hangs; the assets' rest pose holds it out
_LIFT = 0.9  # degrees that a breath lifts it
_CLEARANCE = 0.055  # metres between the side of the trunk and the middle of the arm
# Degrees that the three joints of a finger bend: hanging, and in a gesture (a relaxed, open hand).
_CURL = {
    "1": ((4, 6, 8), (0, 4, 6)), "2": ((12, 16, 10), (2, 6, 4)), "3": ((16, 20, 12), (6, 10, 8)),
    "4": ((18, 22, 14), (10, 15, 10)), "5": ((18, 22, 14), (12, 16, 12)),
}  # fmt: skip


@dataclass(frozen=True)
class _Arm:
    """Joints of one arm at rest as a left arm, [3] each, and where the trunk ends beside it."""

    side: str
    shoulder: Vectors
    elbow: Vectors
    wrist: Vectors
    hand: Vectors  # where the middle finger starts
    across: Vectors  # from the little finger to the index finger
    width: float  # of the trunk beside the hanging arm, metres from the middle


def arm_rotations(figure: Figure, performance: Performance, rng: np.random.Generator) -> dict[str, Matrices]:
    """What the bones of arms, hands and fingers add to their parents' rotation.

    Which hand rises is drawn per performance: one of them or both.
    """
    share = {"left": (1.0, 0.0), "right": (0.0, 1.0), "both": (1.0, 1.0)}[str(rng.choice(("left", "right", "both")))]
    turns: dict[str, Matrices] = {}
    for side, amount in zip("LR", share, strict=True):
        arm = _arm(figure, side)
        reach = rng.uniform((-0.015, -0.02, -0.01), (0.03, 0.02, 0.03))
        turns |= _arm_turns(figure, arm, performance, amount, reach, rng)
    return turns


def _arm(figure: Figure, side: str) -> _Arm:
    names, heads = figure.skeleton.names, figure.skeleton.heads.astype(np.float64)
    flip = np.array([1.0, 1.0, 1.0]) if side == "L" else np.diag(_MIRROR)

    def joint(bone: str) -> Vectors:
        return np.asarray(heads[names.index(f"{bone}.{side}")] * flip)

    shoulder, wrist = joint("upperarm01"), joint("wrist")
    across = joint("finger2-1") - joint("finger5-1")
    elbow = joint("lowerarm01")
    reach = np.linalg.norm(elbow - shoulder) + np.linalg.norm(wrist - elbow)
    return _Arm(
        side, shoulder, elbow, wrist, joint("finger3-1"), across, _trunk_width(figure, shoulder[1], float(reach))
    )


def _trunk_width(figure: Figure, shoulder: float, reach: float) -> float:
    """Half the width of trunk and clothes from below the armpits down to the hanging hands."""
    limbs = np.array([n.startswith(("upperarm", "lowerarm", "wrist", "meta", "finger")) for n in figure.skeleton.names])
    widest = 0.0
    for part in figure.parts:
        if part.material.kind in ("skin", "cloth"):
            below = (part.vertices[:, 1] < shoulder - 0.4 * reach) & (part.vertices[:, 1] > shoulder - 1.1 * reach)
            trunk = below & ((part.weights * limbs[part.bones]).sum(axis=1) < 0.3)
            widest = max(widest, float(np.abs(part.vertices[trunk, 0]).max(initial=0.0)))
    return widest


def _arm_turns(
    figure: Figure, arm: _Arm, performance: Performance, amount: float, reach: Vectors, rng: np.random.Generator
) -> dict[str, Matrices]:
    """One arm through the performance; `amount` scales its gesture, `reach` [3] shifts the raised hand (metres)."""
    frames = len(performance)
    mirror = 1.0 if arm.side == "L" else -1.0
    raised = amount * performance.hand[:, 0].astype(np.float64)
    raised = 1 - (1 - raised) ** 3  # beats dip the hand; they should not take it out of the picture
    sway = mirror * raised * performance.hand[:, 1]
    turn = mirror * np.radians(performance.hand[:, 2]) * amount
    idle = np.stack([drift(frames, rng) for _ in range(3)], axis=1)
    wrist = _wrist_path(arm, raised, reach) + (_SWAY * sway)[:, None] * (1.0, 0.0, 0.3)
    wrist += _BEAT * (0.15 + 0.6 * raised)[:, None] * idle * (0.6, 0.6, 0.3)
    upper, lower, hinge = _bent(arm, wrist)
    rest_upper, rest_lower = arm.elbow - arm.shoulder, arm.wrist - arm.elbow
    rest_hinge = np.cross(rest_upper, rest_lower)
    upper_turn = frame(upper, hinge) @ transposed(frame(rest_upper, rest_hinge))
    lower_turn = frame(lower, hinge) @ transposed(frame(rest_lower, rest_hinge))
    hand_turn = _hand_turn(arm, lower, raised, turn)
    # The forearm's twist is shared by its two bones, so that the sleeve does not wring.
    twist = _twist(hand_turn @ transposed(lower_turn), unit(lower))
    world = {
        "clavicle": about(Z, np.radians(_LIFT * performance.breath - _SLOPE * (1 - 0.5 * raised))),
        "upperarm01": upper_turn, "upperarm02": upper_turn,
        "lowerarm01": about_each(lower, 0.25 * twist) @ lower_turn,
        "lowerarm02": about_each(lower, 0.75 * twist) @ lower_turn,
        "wrist": hand_turn,
    }  # fmt: skip
    found: dict[str, Matrices] = {}
    above = np.broadcast_to(np.eye(3), (frames, 3, 3))
    for name, rotation in world.items():
        found[name] = transposed(above) @ rotation
        above = rotation
    found |= _fingers(figure, arm, raised, idle[:, 0], rng)
    if arm.side == "R":
        found = {name: _MIRROR @ rotation @ _MIRROR for name, rotation in found.items()}
    return {f"{name}.{arm.side}": rotation for name, rotation in found.items()}


def _wrist_path(arm: _Arm, raised: Curve, reach: Vectors) -> Vectors:
    """Where the wrist is [F,3]: an arc from beside the hip, in front of the body, to beside the chest."""
    length = np.linalg.norm(arm.elbow - arm.shoulder) + np.linalg.norm(arm.wrist - arm.elbow)
    out = max(arm.width + _CLEARANCE - arm.shoulder[0], 0.02)
    low = arm.shoulder + np.array([out, -0.965 * length, 0.12 * length])
    top = arm.shoulder + np.array([0.0, 0.05 * length, 0.42 * length]) + reach
    bend = arm.shoulder + np.array([0.03, -0.80 * length, 0.66 * length])
    s = raised[:, None]
    return np.asarray((1 - s) ** 2 * low + 2 * s * (1 - s) * bend + s**2 * top)


def _bent(arm: _Arm, wrist: Vectors) -> tuple[Vectors, Vectors, Vectors]:
    """Directions of upper arm and forearm and the axis of the elbow, [F,3] each, for a wrist at [F,3]."""
    a, b = np.linalg.norm(arm.elbow - arm.shoulder), np.linalg.norm(arm.wrist - arm.elbow)
    line = wrist - arm.shoulder
    distance = np.clip(np.linalg.norm(line, axis=1), abs(a - b) * 1.05, (a + b) * 0.995)
    ahead = unit(line)
    # The elbow points down, back and a little out.
    pole = np.array([0.40, -0.75, -0.55])
    beside = unit(pole - (ahead @ pole)[:, None] * ahead)
    cosine = np.clip((a**2 + distance**2 - b**2) / (2 * a * distance), -1, 1)
    upper = ahead * cosine[:, None] + beside * np.sqrt(1 - cosine**2)[:, None]
    lower = ahead * distance[:, None] - a * upper
    return upper, lower, np.cross(upper, lower)


def _hand_turn(arm: _Arm, lower: Vectors, raised: Curve, turn: Curve) -> Matrices:
    """Rotation of the hand: in line with the forearm, palm to the thigh at rest, half to the viewer when raised."""
    s = raised[:, None]
    along = unit(lower) + s * np.array([-0.12, 0.05, 0.12]) + (1 - s) * np.array([0.0, 0.0, -0.08])
    palm = (1 - s) * np.array([-1.0, 0.0, -0.15]) + s * np.array([-0.75, 0.0, 0.65])
    rest_along = arm.hand - arm.wrist
    rest_palm = np.cross(rest_along, arm.across)
    wave = about(Z, -turn)
    return np.asarray(wave @ frame(along, palm) @ frame(rest_along, rest_palm).T)


def _twist(rotation: Matrices, axis: Vectors) -> Curve:
    """The angle [F] by which a rotation turns about an axis [F,3]."""
    vector = np.stack(
        [
            rotation[:, 2, 1] - rotation[:, 1, 2],
            rotation[:, 0, 2] - rotation[:, 2, 0],
            rotation[:, 1, 0] - rotation[:, 0, 1],
        ],
        axis=1,
    )
    trace = np.trace(rotation, axis1=1, axis2=2)
    return np.asarray(2 * np.arctan2((vector * axis).sum(axis=1), 1 + trace))


def _fingers(figure: Figure, arm: _Arm, raised: Curve, idle: Curve, rng: np.random.Generator) -> dict[str, Matrices]:
    """Fingers bend towards the palm, less so in a gesture, and are never quite still."""
    names, skeleton = figure.skeleton.names, figure.skeleton
    flip = np.ones(3) if arm.side == "L" else np.diag(_MIRROR)
    palm = np.cross(arm.hand - arm.wrist, arm.across)
    found: dict[str, Matrices] = {}
    for finger, (hanging, open_) in _CURL.items():
        loose = rng.uniform(0.8, 1.25)
        for joint in range(3):
            bone = names.index(f"finger{finger}-{joint + 1}.{arm.side}")
            along = (skeleton.tails[bone] - skeleton.heads[bone]) * flip
            degrees = (1 - raised) * hanging[joint] + raised * open_[joint] * loose
            play = raised * (3.0 * drift(len(raised), rng, 0.2, 0.6) + 2.0 * idle)
            found[f"finger{finger}-{joint + 1}"] = about(np.cross(along, palm), np.radians(degrees + play))
    return found
