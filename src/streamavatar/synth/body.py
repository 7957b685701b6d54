"""The still layers that are not hair: backdrop, body, head, beard and hand.

The head and the beard are in head coordinates (origin in the middle of the head), the hand's origin is its
wrist, backdrop and body are in picture coordinates. All in frame widths.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from streamavatar.synth.artwork import Canvas, Layer, Picture, Points, curve, ellipse, mirrored
from streamavatar.synth.identity import PuppetIdentity, mix, shade

Mask = NDArray[np.float32]

HEAD_X, HEAD_Y = 0.5, 0.435  # middle of the head in the picture
MOUTH_Y = 0.170  # middle of the mouth, from the middle of the head


def face_outline(who: PuppetIdentity, grow: float = 0.0) -> Points:
    """The closed outline of the face."""
    w, h = who.face_width + grow, who.face_height
    right = [
        (0.0, -0.300 - grow), (0.11, -0.285 - grow), (w * 0.84, -0.215), (w * 0.975, -0.11), (w, 0.0),
        (w * 0.955, 0.09 * h),
        (w * 0.80 * who.jaw, 0.185 * h), (0.100 * who.chin * who.jaw, 0.262 * h + grow),
        (0.046 * who.chin, 0.286 * h + grow),
        (0.0, 0.290 * h + grow),
    ]  # fmt: skip
    return curve(mirrored(right))


def backdrop(who: PuppetIdentity, scale: float) -> Picture:
    """A vertical gradient with a soft light behind the head, RGB [S,S,3]."""
    size = round(scale)
    y, x = (np.mgrid[0 : size // 4, 0 : size // 4] + 0.5) * (4 / size)
    down = np.clip(y * 1.1, 0, 1)[..., None]
    base = np.asarray(who.backdrop) * (1 - down) + np.asarray(who.backdrop_low) * down
    glow = np.exp(-(((x - 0.4) / 0.42) ** 2 + ((y - 0.35) / 0.45) ** 2))[..., None]
    out = base + (np.array([255.0, 252.0, 246.0]) - base) * 0.38 * glow
    full = cv2.resize(out.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)
    return np.clip(np.round(full), 0, 255).astype(np.uint8)


def body(who: PuppetIdentity, scale: float) -> Layer:
    """Neck, shoulders and clothes; reaches below the picture, so that breathing shows no gap."""
    canvas = Canvas(scale, 0.0, 0.60, 1.0, 1.04)
    n = 0.092 * (0.92 if who.woman else 1.08)
    s = 0.40 * who.shoulder
    shoulders = [
        (n * 0.9, 0.795), (n + 0.05, 0.825), (n + 0.16, 0.862), (s * 0.85, 0.905), (s, 0.975), (s + 0.02, 1.10),
        (0.0, 1.12),
    ]  # fmt: skip
    torso = curve([(0.5 + x, y) for x, y in mirrored([(0.0, 0.80), *shoulders])])
    neck = curve(
        [
            (0.5 + x, y)
            for x, y in mirrored(
                [
                    (0.0, 0.60),
                    (n, 0.62),
                    (n * 0.96, 0.72),
                    (n * 1.02, 0.80),
                    (n * 1.16, 0.845),
                    (n * 1.0, 0.92),
                    (0.0, 0.99),
                ]
            )
        ]
    )
    cloth = canvas.mask(torso)
    canvas.paint(cloth, who.top)
    canvas.tint(canvas.mask(ellipse(0.70, 1.04, 0.26, 0.15), 0.05), shade(who.top, 0.72), 0.6)
    canvas.tint(canvas.mask(ellipse(0.27, 0.92, 0.13, 0.05, 0.3), 0.035), shade(who.top, 1.25), 0.5)
    skin = canvas.mask(neck)
    shadow = canvas.mask(ellipse(0.512, 0.700, 0.15, 0.085), 0.018)
    _neckline(canvas, who, n, skin, shadow)
    return canvas.layer()


class _Neck:
    """Paints the neck where clothes leave it open; `half` is half its width."""

    def __init__(self, canvas: Canvas, who: PuppetIdentity, half: float, skin: Mask, shadow: Mask) -> None:
        self.canvas, self.who, self.half = canvas, who, half
        self.skin, self.shadow = skin, shadow

    def show(self, opening: Mask) -> None:
        self.canvas.paint(self.skin * opening, shade(self.who.skin, 0.94))
        deep = mix(shade(self.who.skin, 0.62), (120, 50, 40), 0.2)
        self.canvas.tint(self.skin * opening * self.shadow, deep, 0.75)

    def shape(self, half: list[tuple[float, float]]) -> Mask:
        return self.canvas.mask(curve([(0.5 + x, y) for x, y in mirrored(half)]))

    def polygon(self, *corners: tuple[float, float]) -> Points:
        """Corners whose columns count in half neck widths from the middle."""
        return np.array([(0.5 + x * self.half, y) for x, y in corners])


def _neckline(canvas: Canvas, who: PuppetIdentity, n: float, skin: Mask, shadow: Mask) -> None:
    """The neck in its opening, and the collar around it."""
    neck = _Neck(canvas, who, n, skin, shadow)
    if who.clothes == "turtle":
        _turtleneck(neck)
    elif who.clothes == "vee":
        neck.show(canvas.mask(neck.polygon((-1.6, 0.5), (1.6, 0.5), (1.42, 0.83), (0, 0.985), (-1.42, 0.83))))
        for side in (-1, 1):
            edge = neck.polygon((side * 1.42, 0.825), (0, 0.985))
            canvas.tint(canvas.line(edge, 0.014, 0.002), shade(who.top, 0.78), 0.9)
    elif who.clothes in ("collar", "blazer"):
        _collar(neck)
    else:
        neck.show(neck.shape([(0.0, 0.55), (n * 1.9, 0.55), (n * 1.45, 0.835), (n * 0.9, 0.872), (0.0, 0.885)]))
        rim = curve(neck.polygon((-1.5, 0.828), (-0.9, 0.875), (0, 0.889), (0.9, 0.875), (1.5, 0.828)), False)
        canvas.tint(canvas.line(rim, 0.016), shade(who.top, 0.82), 1.0)


def _turtleneck(neck: _Neck) -> None:
    canvas, top, n = neck.canvas, neck.who.top, neck.half
    neck.show(neck.shape([(0.0, 0.55), (n * 1.9, 0.55), (n * 1.3, 0.80), (0.0, 0.80)]))
    roll = neck.shape([(0.0, 0.768), (n * 1.12, 0.760), (n * 1.28, 0.795), (n * 1.32, 0.845), (0.0, 0.868)])
    canvas.paint(roll, shade(top, 1.10))
    canvas.tint(roll * canvas.mask(ellipse(0.515, 0.757, 0.16, 0.035), 0.014), shade(top, 0.6), 0.8)


def _collar(neck: _Neck) -> None:
    """A shirt collar; a blazer has lapels over it."""
    canvas, who, n = neck.canvas, neck.who, neck.half
    blazer = who.clothes == "blazer"
    if blazer:
        canvas.paint(canvas.mask(neck.polygon((-1.55, 0.80), (1.55, 0.80), (0, 1.12))), who.under)
    neck.show(canvas.mask(neck.polygon((-1.6, 0.5), (1.6, 0.5), (1.3, 0.825), (0, 0.925), (-1.3, 0.825))))
    for side in (-1, 1):
        corners = ((1.02, 0.775), (1.55, 0.82), (0.95, 0.935), (0.004 / n, 0.915), (0.75, 0.86))
        flap = neck.polygon(*[(side * x, y) for x, y in corners])
        canvas.tint(canvas.mask(flap + np.array([0.004, 0.010]), 0.008), shade(who.top, 0.55), 0.5)
        canvas.paint(canvas.mask(flap), who.under if blazer else shade(who.top, 1.22))
        if blazer:
            lapel = ((1.55, 0.82), (2.3, 0.90), (0.03 / n, 1.12), (0.01 / n, 1.08))
            canvas.paint(canvas.mask(neck.polygon(*[(side * x, y) for x, y in lapel])), shade(who.top, 0.86))


def head(who: PuppetIdentity, scale: float) -> Layer:
    """Ears and face with soft shading, without features."""
    canvas = Canvas(scale, -0.36, -0.43, 0.36, 0.36)
    w = who.face_width
    deep = mix(shade(who.skin, 0.70), (150, 60, 50), 0.18)
    for side in (-1, 1):
        ear = ellipse(side * (w + 0.008), 0.025, 0.028 * who.ear_size, 0.054 * who.ear_size, side * 0.15)
        canvas.paint(canvas.mask(ear), shade(who.skin, 0.93))
        inner = ellipse(side * (w + 0.012), 0.025, 0.013 * who.ear_size, 0.032 * who.ear_size, side * 0.15)
        canvas.tint(canvas.mask(inner, 0.006), deep, 0.7)
        if who.earrings:
            canvas.paint(canvas.mask(ellipse(side * (w + 0.012), 0.092, 0.012, 0.012)), (236, 200, 110))
    outline = face_outline(who)
    face = canvas.mask(outline)
    canvas.paint(face, who.skin)
    # One soft light from the upper left: darker right edge and jaw, lighter forehead and left cheek.
    edge = 1 - canvas.mask(outline * np.array([0.90, 0.93]) + np.array([-0.014, -0.012]), 0.035)
    canvas.tint(face * edge, deep, 0.55)
    canvas.tint(canvas.mask(ellipse(-0.06, -0.16, 0.11, 0.07), 0.05), shade(who.skin, 1.3), 0.45)
    canvas.tint(canvas.mask(ellipse(-0.11, 0.055, 0.05, 0.03, -0.3), 0.025), shade(who.skin, 1.25), 0.35)
    for side in (-1, 1):
        canvas.tint(
            canvas.mask(ellipse(side * 0.125, 0.095, 0.048, 0.034), 0.022), mix(who.skin, (226, 84, 84), 0.6), who.blush
        )
    canvas.tint(canvas.mask(ellipse(0.0, 0.232, 0.045, 0.012), 0.010), deep, 0.35)
    if who.hair == "bald":
        canvas.tint(canvas.mask(ellipse(-0.05, -0.235, 0.07, 0.025, -0.25), 0.02), (255, 255, 255), 0.28)
    else:
        canvas.tint(face * canvas.mask(ellipse(0, -0.26, 0.24, 0.09), 0.03), deep, 0.40)
    if who.freckles:
        rng = np.random.default_rng((who.seed, 3))
        for _ in range(10):
            x, y = rng.uniform(0.04, 0.14) * rng.choice((-1, 1)), rng.uniform(0.05, 0.11)
            canvas.tint(canvas.mask(ellipse(x, y, 0.0042, 0.0042), 0.001), mix(who.skin, (150, 100, 60), 0.4), 0.6)
    return canvas.layer()


def beard(who: PuppetIdentity, scale: float) -> Layer | None:
    """Facial hair, or None; it moves with the features and the jaw."""
    if who.beard == "none":
        return None
    canvas = Canvas(scale, -0.36, -0.43, 0.36, 0.36)
    color = shade(mix(who.hair_color, who.skin, 0.10), 0.88)
    lips = canvas.mask(ellipse(0, MOUTH_Y + 0.004, 0.090, 0.034), 0.006)
    tash = curve([(0.0, 0.118), (0.045, 0.122), (0.095, 0.152), (0.105, 0.178), (0.085, 0.166), (0.03, 0.150),
                  (0.0, 0.150),
                  (-0.03, 0.150), (-0.085, 0.166), (-0.105, 0.178), (-0.095, 0.152), (-0.045, 0.122)])  # fmt: skip
    face = canvas.mask(face_outline(who, 0.006))
    if who.beard == "moustache":
        canvas.paint(canvas.mask(tash), color)
    elif who.beard == "goatee":
        canvas.paint(canvas.mask(ellipse(0, 0.254, 0.064, 0.046), 0.003) * face * (1 - lips), color)
        canvas.paint(canvas.mask(tash), color)
    else:
        w = who.face_width
        low = curve([(-w - 0.02, 0.02), (-w * 0.86, 0.06), (-0.150, 0.125), (-0.09, 0.122), (0, 0.118),
                     (0.09, 0.122), (0.150, 0.125),
                     (w * 0.86, 0.06), (w + 0.02, 0.02), (w + 0.02, 0.34), (-w - 0.02, 0.34)])  # fmt: skip
        soft, opacity = (0.010, 0.38) if who.beard == "stubble" else (0.005, 0.95)
        canvas.paint(canvas.mask(low, soft) * face * (1 - lips), color, opacity)
        if who.beard == "full":
            canvas.tint(canvas.mask(ellipse(-0.03, 0.25, 0.09, 0.03), 0.02), shade(color, 1.2), 0.5)
    return canvas.layer()


def hand(who: PuppetIdentity, scale: float) -> Layer:
    """An open hand with four fingers and a thumb, its sleeve below; the origin is the wrist."""
    canvas = Canvas(scale, -0.15, -0.24, 0.15, 0.34)
    line = mix(shade(who.skin, 0.58), (130, 50, 40), 0.2)
    palm_color = mix(who.skin, (255, 214, 190), 0.12)
    fingers = ((-0.046, 0.082, -0.26), (-0.017, 0.100, -0.08), (0.014, 0.095, 0.08), (0.043, 0.074, 0.26))
    capsules = [_capsule(x, -0.100, length, 0.0155, lean) for x, length, lean in fingers]
    thumb = _capsule(-0.058, -0.035, 0.082, 0.017, -0.85)
    palm = curve(
        [
            (-0.058, -0.115),
            (0.0, -0.128),
            (0.056, -0.112),
            (0.060, -0.05),
            (0.042, 0.012),
            (-0.040, 0.012),
            (-0.064, -0.045),
        ]
    )
    for shape in (*capsules, thumb, palm):
        middle = shape.mean(axis=0)
        canvas.paint(canvas.mask((shape - middle) * np.array([1.0, 1.0]) + middle), line)
    rim = 0.0055
    for shape in (*capsules, thumb):
        middle = shape.mean(axis=0)
        span = np.ptp(shape, axis=0)
        canvas.paint(canvas.mask((shape - middle) * (1 - 2 * rim / span) + middle), palm_color)
    span = np.ptp(palm, axis=0)
    canvas.paint(canvas.mask((palm - palm.mean(axis=0)) * (1 - 2 * rim / span) + palm.mean(axis=0)), palm_color)
    canvas.tint(canvas.mask(ellipse(0.022, -0.05, 0.025, 0.045), 0.014), shade(who.skin, 0.80), 0.5)
    crease = curve([(-0.040, -0.075), (-0.012, -0.052), (-0.014, -0.010)], False)
    canvas.tint(canvas.line(crease, 0.005, 0.002), line, 0.7)
    wrist = np.array([(-0.041, -0.005), (0.041, -0.005), (0.040, 0.06), (-0.040, 0.06)])
    canvas.paint(canvas.mask(wrist), palm_color)
    sleeve = curve(
        [(-0.060, 0.036), (0.0, 0.044), (0.060, 0.036), (0.070, 0.14), (0.095, 0.33), (-0.065, 0.33), (-0.066, 0.14)]
    )
    canvas.paint(canvas.mask(sleeve), shade(who.top, 0.92))
    canvas.tint(canvas.mask(ellipse(0.045, 0.2, 0.03, 0.15), 0.02), shade(who.top, 0.7), 0.6)
    cuff = curve([(-0.060, 0.044), (0.0, 0.052), (0.060, 0.044)], False)
    canvas.tint(canvas.line(cuff, 0.012), shade(who.top, 0.74), 0.9)
    return canvas.layer()


def _capsule(x: float, y: float, length: float, radius: float, lean: float) -> Points:
    """A finger: rounded bar from its root at (x, y) upwards, leaning by `lean` radians to the right."""
    t = np.linspace(-np.pi / 2, np.pi / 2, 9)
    top = np.stack([radius * np.sin(t), -length - radius * 0.2 - radius * np.cos(t)], axis=1)
    points = np.concatenate([top, [(radius * 1.05, 0.02), (-radius * 1.05, 0.02)]])
    c, s = np.cos(lean), np.sin(lean)
    return np.stack([x + points[:, 0] * c - points[:, 1] * s, y + points[:, 0] * s + points[:, 1] * c], axis=1)
