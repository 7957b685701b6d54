"""Eyes, brows, nose, mouth and glasses: polygons on a curved face, drawn anew in every frame.

Coordinates are head coordinates in frame widths (origin in the middle of the head, y down).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from streamavatar.synth.artwork import Picture, Points, curve, ellipse, fill, stroke
from streamavatar.synth.body import MOUTH_Y
from streamavatar.synth.identity import Color, PuppetIdentity, mix, shade
from streamavatar.synth.performance import Performance

GAIN = 1.5  # a puppet has little depth: angles are exaggerated so that a nod of 5 degrees reads
EYE_Y = -0.012
NOSE_Y = 0.088
JAW_SPLIT = 0.07  # the face stretches below this row when the jaw drops
MOUTH_GAP = 0.074  # height of the opening at mouth_open 1
_DEPTH = 0.22
_INSIDE: Color = (62, 14, 24)
_TEETH: Color = (250, 246, 240)
_TONGUE: Color = (206, 88, 98)

_T = np.linspace(-1.0, 1.0, 17)
_ARCH = np.sqrt(np.clip(1 - _T**2, 0, 1))  # an ellipse
_FLAT = np.clip(1 - _T**2, 0, 1) ** 0.72


@dataclass(frozen=True)
class Pose:
    """One frame of a performance as plain numbers; angles in radians, not yet exaggerated."""

    yaw: float
    pitch: float
    roll: float
    mouth_open: float
    mouth_wide: float
    press: float
    blink: float
    gaze_x: float
    gaze_y: float
    brow: float
    smile: float
    raise_: float
    sway: float
    rotation: float
    breath: float

    @staticmethod
    def of(performance: Performance, index: int) -> Pose:
        yaw, pitch, roll = np.radians(performance.head[index].astype(np.float64))
        raise_, sway, turn = (float(v) for v in performance.hand[index])
        gaze = performance.gaze[index]
        return Pose(
            float(yaw), float(pitch), float(roll), float(performance.mouth_open[index]),
            float(performance.mouth_wide[index]), float(performance.visemes[index, 1]), float(performance.blink[index]),
            float(gaze[0]), float(gaze[1]), float(performance.brow[index]), float(performance.smile[index]),
            raise_, sway, float(np.radians(turn)), float(performance.breath[index]),
        )  # fmt: skip

    @property
    def jaw(self) -> float:
        """Share by which the lower face is longer."""
        return 0.11 * self.mouth_open


def turned(points: Points, pose: Pose) -> Points:
    """Points [N,2] of the neutral face where the turned face shows them (jaw included)."""
    x, y = points[:, 0], points[:, 1]
    y = y + np.maximum(y - JAW_SPLIT, 0.0) * pose.jaw
    z = _DEPTH * np.sqrt(np.maximum(1 - x * x * (1 / 0.27**2) - y * y * (1 / 0.38**2), 0.05))
    yaw, pitch = GAIN * pose.yaw, GAIN * pose.pitch
    out = np.empty_like(points)
    out[:, 0] = x * math.cos(yaw) + z * math.sin(yaw)
    out[:, 1] = y * math.cos(pitch) + z * math.sin(pitch)
    return out


class _Pen:
    """Draws neutral-face shapes on the head's picture."""

    def __init__(self, image: Picture, pose: Pose, scale: float, left: float, top: float) -> None:
        self.image, self.pose, self.scale = image, pose, scale
        self.origin = np.array([left, top])

    def fill(self, points: Points, color: Color) -> None:
        fill(self.image, turned(points, self.pose) - self.origin, (*color, 255), self.scale)

    def stroke(self, points: Points, color: Color, width: float) -> None:
        stroke(self.image, turned(points, self.pose) - self.origin, (*color, 255), width, self.scale)


def draw(image: Picture, who: PuppetIdentity, pose: Pose, scale: float, left: float, top: float) -> None:
    """All features on premultiplied RGBA `image`, whose corner is (left, top) in head coordinates."""
    pen = _Pen(image, pose, scale, left, top)
    for side in (-1, 1):
        _eye(pen, who, pose, side)
        _brow(pen, who, pose, side)
    _nose(pen, who)
    _mouth(pen, who, pose)


def _eye(pen: _Pen, who: PuppetIdentity, pose: Pose, side: int) -> None:
    wide = 0.046 * who.eye_size
    up, down = 0.031 * who.eye_size, 0.021 * who.eye_size * (1 - 0.18 * pose.smile)
    xs = side * who.eye_gap + wide * _T
    slant = -who.eye_slant * _T * side
    lid = EYE_Y + slant - up * _ARCH
    low = EYE_Y + slant + down * _FLAT
    shut = EYE_Y + slant + 0.65 * down * _FLAT
    edge = lid + (shut - lid) * pose.blink
    deep = mix(shade(who.skin, 0.62), (110, 50, 50), 0.25)
    # The eyelid: visible as a soft crease when open, as a whole lid when closed.
    crease = np.stack([xs + side * 0.002, lid - 0.008 * _ARCH], axis=1)
    pen.fill(np.concatenate([crease, np.stack([xs, shut], axis=1)[::-1]]), mix(who.skin, deep, 0.35))
    white = np.concatenate([np.stack([xs, edge], axis=1), np.stack([xs, np.maximum(low, edge)], axis=1)[::-1]])
    pen.fill(white, (250, 249, 247))
    if pose.blink < 0.95:
        _iris(pen, who, pose, side, xs, edge, low)
    line: Color = (44, 28, 28) if who.lashes else shade(deep, 0.62)
    pen.stroke(np.stack([xs, edge], axis=1), line, 0.0115 if who.lashes else 0.0085)
    if who.lashes:
        tip = 15 if side > 0 else 1
        flick = np.array([(xs[tip], edge[tip]), (xs[tip] + side * 0.013, edge[tip] - 0.012 * (1 - 1.6 * pose.blink))])
        pen.stroke(flick, line, 0.008)


def _iris(pen: _Pen, who: PuppetIdentity, pose: Pose, side: int, xs: Points, edge: Points, low: Points) -> None:
    """Iris and pupil, cut exactly by the eyelids: their rows are clipped to the opening."""
    x = side * who.eye_gap + 0.017 * pose.gaze_x
    y = EYE_Y - 0.003 + 0.012 * pose.gaze_y

    def disc(radius: float, color: Color) -> None:
        shape = ellipse(x, y, radius, radius, count=20)
        upper = np.interp(shape[:, 0], xs, edge)
        lower = np.maximum(np.interp(shape[:, 0], xs, low), upper)
        shape[:, 1] = np.clip(shape[:, 1], upper, lower)
        pen.fill(shape, color)

    radius = 0.0245 * who.eye_size
    disc(radius, shade(who.iris, 0.6))
    disc(radius * 0.84, who.iris)
    disc(radius * 0.48, (18, 14, 16))
    if pose.blink < 0.3:
        pen.fill(ellipse(x - 0.008, y - 0.009, 0.0065, 0.0065, count=12), (255, 255, 255))


@lru_cache(maxsize=64)
def _still_shapes(who: PuppetIdentity) -> tuple[Points, Points, Points]:
    """Right brow at rest, shaded side and base of the nose: curves that never change within an identity."""
    y, thick, tilt = -0.080 - who.brow_height, who.brow_thick, 0.3 * who.brow_tilt
    top = [(0.046, y + 0.001 - tilt), (0.092, y - 0.013), (0.132, y - 0.007), (0.160, y + 0.016 + tilt)]
    low = [(0.138, y - 0.003 + thick * 0.6), (0.095, y - 0.011 + thick), (0.050, y + 0.001 - tilt + thick * 1.1)]
    s, w, n = who.nose_size, who.nose_width, NOSE_Y
    side = [
        (0.014 * w, 0.0),
        (0.026 * w, 0.055 * s),
        (0.040 * w * s, n),
        (0.026 * w, n + 0.008),
        (0.014 * w, n - 0.012),
    ]
    base = [
        (-0.040 * w * s, n), (-0.022 * w, n + 0.010), (0.0, n + 0.016 * s), (0.022 * w, n + 0.010), (0.040 * w * s, n),
        (0.020 * w, n + 0.002), (0.0, n + 0.006), (-0.020 * w, n + 0.002),
    ]  # fmt: skip
    return curve([*top, *low], steps=4), curve(side, steps=4), curve(base, steps=4)


def _brow(pen: _Pen, who: PuppetIdentity, pose: Pose, side: int) -> None:
    pen.fill((_still_shapes(who)[0] - np.array([0.0, 0.024 * pose.brow])) * np.array([side, 1.0]), who.brow_color)


def _nose(pen: _Pen, who: PuppetIdentity) -> None:
    _, side, base = _still_shapes(who)
    deep = mix(shade(who.skin, 0.72), (150, 70, 60), 0.2)
    pen.fill(side, mix(who.skin, deep, 0.42))
    pen.fill(base, deep)
    pen.fill(ellipse(-0.007, NOSE_Y - 0.022, 0.011, 0.013, count=14), mix(who.skin, (255, 255, 255), 0.30))


def mouth_curves(who: PuppetIdentity, pose: Pose) -> tuple[Points, Points, Points, Points, Points]:
    """Columns, then rows of the outer upper, inner upper, inner lower and outer lower edge, each [17].

    Inner edges use columns x 0.88: the corners of the lips stay closed.
    """
    spread = (
        0.20 * max(pose.mouth_wide, 0) + 0.40 * min(pose.mouth_wide, 0) + 0.07 * pose.smile * (pose.mouth_open < 0.2)
    )
    half = who.mouth_width * (1 + spread - 0.06 * pose.mouth_open)
    gap = MOUTH_GAP * pose.mouth_open
    # Corners rise with a smile; the middle of the upper lip dips a little.
    rest = MOUTH_Y - (0.004 + 0.026 * pose.smile) * (1 - 0.5 * pose.mouth_open) * (_T**2 - 0.35)
    full = (
        who.lip_full * (1 - 0.15 * pose.press) * (1 - 0.12 * max(pose.mouth_wide, 0) - 0.22 * min(pose.mouth_wide, 0))
    )
    upper = rest - 0.30 * gap * _ARCH
    lower = rest + 0.70 * gap * _ARCH
    cupid = (1 - _T**2) ** 1.15 * (
        0.90 + 0.28 * np.exp(-(((np.abs(_T) - 0.24) / 0.16) ** 2)) - 0.10 * np.exp(-((_T / 0.1) ** 2))
    )
    return half * _T, upper - 0.0195 * full * cupid, upper, lower, lower + 0.0255 * full * _ARCH


def _mouth(pen: _Pen, who: PuppetIdentity, pose: Pose) -> None:
    xs, top, upper, lower, bottom = mouth_curves(who, pose)
    inner = xs * 0.88
    pen.fill(np.stack([xs, bottom + 0.010 * _ARCH], axis=1), mix(who.skin, shade(who.skin, 0.72), 0.5))
    pen.fill(_band(xs, top, xs, bottom), who.lip)
    pen.fill(_band(xs, top, xs, upper), shade(who.lip, 0.86))
    glow = np.linspace(2, 14, 13).astype(int)
    shine = lower + (bottom - lower) * 0.35
    pen.stroke(
        np.stack([xs * 0.45, np.interp(xs * 0.45, xs, shine)], axis=1)[glow], mix(who.lip, (255, 255, 255), 0.28), 0.007
    )
    line = shade(mix(who.lip, _INSIDE, 0.6), 0.85)
    pen.stroke(np.stack([xs * 0.97, (upper + lower) / 2], axis=1), line, 0.0075)
    gap = MOUTH_GAP * pose.mouth_open
    if gap < 0.003:
        return
    pen.fill(_band(inner, upper, inner, lower), _INSIDE)
    if gap > 0.022:
        tongue = np.maximum(lower - 0.45 * (gap - 0.012) * _ARCH, upper)
        pen.fill(_band(inner * 0.74, tongue, inner * 0.74, lower - 0.002), _TONGUE)
    if gap > 0.007:
        # Rounded lips cover the teeth.
        shown = min(0.018, 0.42 * gap) * (1 + 0.8 * min(pose.mouth_wide, 0))
        teeth = np.minimum(upper + shown * _ARCH**0.5, lower)
        pen.fill(_band(inner * 0.86, upper, inner * 0.86, teeth), _TEETH)


def _band(xa: Points, a: Points, xb: Points, b: Points) -> Points:
    """The area between two edges."""
    return np.concatenate([np.stack([xa, a], axis=1), np.stack([xb, b], axis=1)[::-1]])


def draw_glasses(image: Picture, who: PuppetIdentity, pose: Pose, scale: float, left: float, top: float) -> None:
    """Frames only: lenses would hide the eyes that are measured."""
    if who.glasses == "none":
        return
    pen = _Pen(image, pose, scale, left, top)
    for side in (-1, 1):
        x, y = side * who.eye_gap, EYE_Y + 0.004
        if who.glasses == "round":
            rim = ellipse(x, y, 0.068, 0.062, count=28)
        else:
            t = np.linspace(0, 2 * np.pi, 28, endpoint=False)
            c, s = np.cos(t), np.sin(t)
            rim = np.stack(
                [x + 0.070 * np.sign(c) * np.abs(c) ** 0.5, y + 0.054 * np.sign(s) * np.abs(s) ** 0.5], axis=1
            )
        pen.stroke(np.concatenate([rim, rim[:1]]), who.glasses_color, 0.0095)
        pen.stroke(
            np.array([(x + side * 0.068, y - 0.01), (side * (who.face_width - 0.002), y - 0.014)]),
            who.glasses_color,
            0.009,
        )
    bridge = np.array([(-who.eye_gap + 0.066, EYE_Y), (0.0, EYE_Y - 0.006), (who.eye_gap - 0.066, EYE_Y)])
    pen.stroke(bridge, who.glasses_color, 0.009)
