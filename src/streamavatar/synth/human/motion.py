"""A performance becomes morph weights and bone matrices.

The lips' opening is solved rather than styled: morphs open the mouth by different amounts, so the jaw makes up the
rest of what the performance asks for, and a mouth that should be shut is shut on every face.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamavatar.synth.human.arms import arm_rotations
from streamavatar.synth.human.drift import drift
from streamavatar.synth.human.figure import Figure, Motion
from streamavatar.synth.human.rotations import Matrices, X, Y, Z, about
from streamavatar.synth.human.tracked import LID_EDGES, LIP_CONTACT, LOWER_LIP, UPPER_LIP, Points
from streamavatar.synth.performance import Performance
from streamavatar.synth.visemes import VISEMES

Curve = NDArray[np.float64]

WIDE_OPEN = 0.016  # metres between the lips at mouth_open 1
_PRESS = 0.0005  # metres by which shut lips or lids overlap, so that no gap shows
GAZE = np.radians((24.0, 14.0))  # right and down at gaze 1
EYE_REACH = np.radians((30.0, 22.0))  # further the eyeball does not turn in the head
CROSSED = np.radians(1.5)  # each eye turns in this much to meet the camera
# How far the eyeball turns where a look morph of the lids is at full weight.
_LID_TURN = {"In": np.radians(24.0), "Out": np.radians(24.0), "Up": np.radians(16.0), "Down": np.radians(20.0)}
_HEAD_SHARE = {"neck01": 0.15, "neck02": 0.15, "neck03": 0.2, "head": 0.5}
_TORSO_SHARE = {"spine04": 0.3, "spine03": 0.3, "spine02": 0.2, "spine01": 0.2}


def move(figure: Figure, performance: Performance, seed: int) -> Motion:
    """How `figure` moves over the F frames; `seed` draws habits: which hand, small idle motion, a crooked smile."""
    rng = np.random.default_rng((seed, 0x3072))
    turns = _rotations(figure, performance, rng)
    shapes = _face(figure, performance, turns, rng)
    weights = np.zeros((len(performance), len(figure.expressions)), np.float32)
    for name, curve in shapes.items():
        if name in figure.expressions:
            weights[:, figure.expressions.index(name)] = curve
    return Motion(weights, _bones(figure, turns, len(performance)))


# bones -----------------------------------------------------------------------------------------------


def _rotations(figure: Figure, performance: Performance, rng: np.random.Generator) -> dict[str, Matrices]:
    """What each bone adds to its parent's rotation, about its head and in the axes of the rest pose."""
    frames = len(performance)
    head = np.radians(performance.head.astype(np.float64))
    idle = np.radians(0.5) * np.stack([drift(frames, rng) for _ in range(3)], axis=1)
    # The trunk follows the head late and little, and sways by itself; the neck takes that back.
    torso = 0.14 * _late(head) * (1.0, 0.5, 0.8) + np.radians(0.9) * np.stack([drift(frames, rng) for _ in range(3)], 1)
    breath = performance.breath.astype(np.float64)
    turns = {name: _turn(share * torso) for name, share in _TORSO_SHARE.items()}
    turns["spine01"] = turns["spine01"] @ about(X, np.radians(-0.35) * breath)
    own = head + idle - torso
    turns |= {name: _turn(share * own) for name, share in _HEAD_SHARE.items()}
    turns |= arm_rotations(figure, performance, rng)
    gaze = performance.gaze.astype(np.float64) * GAZE
    # Eyes hold what they look at while the head turns.
    yaw, pitch = (gaze - (head + idle)[:, :2]).T
    for side, inward in (("L", -CROSSED), ("R", CROSSED)):
        across = np.clip(yaw + inward, -EYE_REACH[0], EYE_REACH[0])
        turns[f"eye.{side}"] = about(Y, across) @ about(X, np.clip(pitch, -EYE_REACH[1], EYE_REACH[1]))
    return turns


def _turn(angles: Curve) -> Matrices:
    """Yaw to the viewer's right, pitch down, roll clockwise [F,3]."""
    return about(Y, angles[:, 0]) @ about(X, angles[:, 1]) @ about(Z, -angles[:, 2])


def _late(curves: Curve) -> Curve:
    """Smoothed over the past second or so; starts where the curve starts."""
    found = np.empty_like(curves)
    held = curves[0]
    for index, value in enumerate(curves):
        held = held + 0.12 * (value - held)
        found[index] = held
    return found


def _bones(figure: Figure, turns: dict[str, Matrices], frames: int) -> NDArray[np.float32]:
    """[F,B,3,4] from the rotations that the bones add."""
    skeleton = figure.skeleton
    still = np.broadcast_to(np.eye(3), (frames, 3, 3))
    found = np.empty((frames, len(skeleton.names), 3, 4))
    for bone, (name, parent) in enumerate(zip(skeleton.names, skeleton.parents, strict=True)):
        head = skeleton.heads[bone].astype(np.float64)
        turn, place = still, np.broadcast_to(head, (frames, 3))
        if parent >= 0:
            turn = found[:, parent, :, :3]
            place = turn @ head + found[:, parent, :, 3]
        if name in turns:
            turn = turn @ turns[name]
        found[:, bone, :, :3] = turn
        found[:, bone, :, 3] = place - turn @ head
    return found.astype(np.float32)


# face ------------------------------------------------------------------------------------------------


def _face(
    figure: Figure, performance: Performance, turns: dict[str, Matrices], rng: np.random.Generator
) -> dict[str, Curve]:
    """Morph weights by name."""
    p = performance
    shapes: dict[str, Curve] = {
        f"viseme_{name}": p.visemes[:, column].astype(np.float64) for column, name in enumerate(VISEMES)
    }
    smile, brow, wide = (curve.astype(np.float64) for curve in (p.smile, p.brow, p.mouth_wide))
    crooked = rng.uniform(0.88, 1.12)
    small = [0.03 * drift(len(p), rng) for _ in range(2)]
    for side, bias in (("Left", crooked), ("Right", 2 - crooked)):
        shapes[f"mouthSmile{side}"] = np.clip(0.75 * bias * smile, 0, 1)
        shapes[f"cheekSquint{side}"] = 0.45 * bias * smile
        shapes[f"browOuterUp{side}"] = np.clip(0.75 * bias * brow + small[0], 0, 1)
        shapes[f"browDown{side}"] = 0.7 * np.clip(-brow, 0, 1)
        shapes[f"mouthStretch{side}"] = 0.22 * np.clip(wide, 0, 1)
        shapes[f"mouthUpperUp{side}"] = 0.75 * p.mouth_open.astype(np.float64)  # upper teeth show in open vowels
        shapes[f"eyeWide{side}"] = 0.3 * np.clip(brow, 0, 1)
        shapes[f"eyeSquint{side}"] = 0.2 * smile
    shapes["browInnerUp"] = np.clip(0.7 * brow + small[1], 0, 1)
    shapes["mouthPucker"] = 0.32 * np.clip(-wide, 0, 1)
    shapes |= _lids(figure, p.blink.astype(np.float64), turns)
    return _parted(figure, shapes, p.mouth_open.astype(np.float64))


def _lids(figure: Figure, blink: Curve, turns: dict[str, Matrices]) -> dict[str, Curve]:
    """Lids follow the eyeball, and a closing lid no longer does."""
    shapes: dict[str, Curve] = {}
    for side, bone, outward in (("Left", "eye.L", 1.0), ("Right", "eye.R", -1.0)):
        ahead = turns[bone][:, :, 2]
        out, down = np.arctan2(ahead[:, 0], ahead[:, 2]) * outward, -np.arcsin(ahead[:, 1])
        for name, angle in (("Out", out), ("In", -out), ("Down", down), ("Up", -down)):
            shapes[f"eyeLook{name}{side}"] = np.clip(angle / _LID_TURN[name], 0, 1) * (1 - blink)
        shapes[f"eyeBlink{side}"] = _closing(figure, side) * blink
    return shapes


def _closing(figure: Figure, side: str) -> float:
    """The weight of the blink at which the lids of this face meet: the morph is made for another, larger eye."""
    edges = Points(figure, [vertex for pair in LID_EDGES[side] for vertex in pair])
    heights = edges.rest[:, 1].reshape(-1, 2)
    travel = edges.deltas[figure.expressions.index(f"eyeBlink{side}"), :, 1].reshape(-1, 2)
    needed = (heights[:, 0] - heights[:, 1] + _PRESS) / (travel[:, 1] - travel[:, 0])
    return float(np.clip(needed.max(), 0.4, 1.3))


def _parted(figure: Figure, shapes: dict[str, Curve], mouth_open: Curve) -> dict[str, Curve]:
    """The shapes with the lips as far apart as `mouth_open` says.

    Visemes that alone would open the mouth too far are lessened; the jaw adds what is missing.
    """
    lips = Points(figure, (UPPER_LIP, LOWER_LIP))
    upper, lower = lips.deltas.transpose(1, 0, 2)
    parting = dict(zip(figure.expressions, (upper - lower)[:, 1].tolist(), strict=True))
    resting = lips.rest[0, 1] - lips.rest[1, 1] - LIP_CONTACT + _PRESS
    wanted = WIDE_OPEN * mouth_open - resting
    opening = {name: parting[name] for name in shapes if name.startswith("viseme_") and parting.get(name, 0.0) > 0}
    spoken = sum((shapes[name] * amount for name, amount in opening.items()), np.zeros_like(wanted))
    share = np.clip(wanted / np.maximum(spoken, 1e-6), 0, 1)
    found = shapes | {name: share * shapes[name] for name in opening}
    others = sum(curve * parting.get(name, 0.0) for name, curve in found.items())
    found["jawOpen"] = np.clip((wanted - others) / parting["jawOpen"], -0.12, 1.0)
    return found
