"""Hair: one painter for the layer behind the head, one for the layer in front, in head coordinates.

Head coordinates have their origin in the middle of the head, y down, in frame widths.
"""

from __future__ import annotations

import numpy as np

from streamavatar.synth.artwork import Canvas, Layer, Points, curve, ellipse, mirrored
from streamavatar.synth.identity import PuppetIdentity, shade

Point = tuple[float, float]

# Styles whose hair falls behind the shoulders, or stands around the head.
_BEHIND = frozenset(("long", "wavy", "bob", "curly", "fringe", "pony", "bun"))


def skull(who: PuppetIdentity, grow: float, low: float = -0.02) -> list[Point]:
    """The outline of the upper head, grown by `grow`: from the right side over the top to the left side."""
    w = who.face_width
    right = [
        (0.0, -0.306 - grow), (0.10, -0.292 - grow * 0.95), (w * 0.80 + grow * 0.6, -0.225 - grow * 0.7),
        (w * 0.97 + grow * 0.9, -0.12), (w + grow * 0.8, low),
    ]  # fmt: skip
    return [*reversed(right), *[(-x, y) for x, y in right[1:]]]


def back_hair(who: PuppetIdentity, scale: float) -> Layer | None:
    """What hangs or stands behind the head, or None."""
    if who.hair not in _BEHIND:
        return None
    canvas = Canvas(scale, -0.46, -0.44, 0.46, 0.60)
    dark = shade(who.hair_color, 0.72)
    w = who.face_width
    if who.hair == "curly":
        reach = 2.85 if who.woman else 1.95
        for x, y, r in _curls(who, 0.275, 0.30, 22 if who.woman else 15, -reach, reach):
            canvas.paint(canvas.mask(ellipse(x, y + 0.03, r, r)), dark)
    elif who.hair == "bun":
        canvas.paint(canvas.mask(ellipse(0, -0.352, 0.082, 0.070)), who.hair_color)
        canvas.tint(canvas.mask(ellipse(0, -0.315, 0.09, 0.03), 0.012), dark, 0.8)
        canvas.tint(canvas.mask(ellipse(-0.02, -0.385, 0.035, 0.012, -0.3), 0.008), shade(who.hair_color, 1.25), 0.7)
    elif who.hair == "pony":
        tail = curve(
            [(0.10, -0.20), (w + 0.07, -0.14), (w + 0.10, 0.06), (w + 0.06, 0.26), (w + 0.02, 0.36), (w - 0.02, 0.20)]
        )
        canvas.paint(canvas.mask(tail), dark)
        canvas.tint(
            canvas.line(curve([(w + 0.05, -0.1), (w + 0.07, 0.06), (w + 0.04, 0.24)], False), 0.02, 0.01),
            who.hair_color,
            0.7,
        )
    else:
        canvas.paint(canvas.mask(curve(mirrored(_fall(who)))), dark)
        glow = canvas.mask(curve(mirrored([(x * 0.97, y * 0.97) for x, y in _fall(who)])), 0.03)
        canvas.tint(glow * (canvas.mask(ellipse(0, 0, w + 0.02, 0.34), 0.03) * -0.75 + 1), who.hair_color, 0.75)
        _strands(canvas, who, [_side(s, x, who) for s in (-1, 1) for x in (0.02, 0.05, 0.08)], 0.35)
    return canvas.layer()


def _fall(who: PuppetIdentity) -> list[Point]:
    """The right half of hair that falls down: from the top to its lower end."""
    w = who.face_width
    if who.hair == "bob":
        return [
            (0, -0.33),
            (0.15, -0.29),
            (w + 0.04, -0.12),
            (w + 0.06, 0.08),
            (w + 0.05, 0.22),
            (w - 0.03, 0.29),
            (0.0, 0.27),
        ]
    if who.hair == "fringe":
        return [
            (0, -0.33),
            (0.15, -0.29),
            (w + 0.045, -0.12),
            (w + 0.055, 0.10),
            (w + 0.06, 0.30),
            (w + 0.01, 0.40),
            (0.0, 0.38),
        ]
    wave = 0.022 if who.hair == "wavy" else 0.0
    return [
        (0, -0.33), (0.15, -0.295), (w + 0.04, -0.13), (w + 0.045 + wave, 0.02), (w + 0.05 - wave, 0.14),
        (w + 0.065 + wave, 0.27), (w + 0.06 - wave, 0.40), (w + 0.05 + wave, 0.50), (w - 0.05, 0.57), (0.0, 0.57),
    ]  # fmt: skip


def _side(side: int, inset: float, who: PuppetIdentity) -> Points:
    w = who.face_width
    end = 0.22 if who.hair == "bob" else 0.34 if who.hair == "fringe" else 0.5
    return curve(
        [(side * (w + 0.03 - inset), -0.1), (side * (w + 0.045 - inset), 0.1), (side * (w + 0.05 - inset), end)], False
    )


def _curls(
    who: PuppetIdentity, rx: float, ry: float, count: int, low: float, high: float
) -> list[tuple[float, float, float]]:
    """Circles along an ellipse; angles count from the top."""
    rng = np.random.default_rng((who.seed, 7))
    out = []
    for a in np.linspace(low, high, count):
        k = rng.uniform(0.94, 1.04)
        out.append((rx * k * np.sin(a), -ry * k * np.cos(a) * 1.0, float(rng.uniform(0.062, 0.085))))
    return out


def _strands(canvas: Canvas, who: PuppetIdentity, lines: list[Points], opacity: float) -> None:
    """Fine lines, alternately lighter and darker, on painted hair."""
    for index, line in enumerate(lines):
        color = shade(who.hair_color, 1.22 if index % 2 else 0.68)
        canvas.tint(canvas.line(line, 0.006, 0.003), color, opacity)


def front_hair(who: PuppetIdentity, scale: float) -> Layer | None:
    """Hair that frames the forehead, or None for a bald head."""
    if who.hair == "bald":
        return None
    canvas = Canvas(scale, -0.36, -0.43, 0.36, 0.36)
    if who.hair == "curly":
        _front_curls(canvas, who)
        return canvas.layer()
    outline, strands = _SHAPES[who.hair](who)
    mask = canvas.mask(curve(outline, steps=6))
    canvas.paint(mask, who.hair_color)
    # Soft volume: light from the upper left, darker towards the lower edges and the parting.
    canvas.tint(canvas.mask(ellipse(0.06, -0.05, 0.30, 0.22), 0.05), shade(who.hair_color, 0.74), 0.75)
    gloss = curve([(-0.17, -0.20), (-0.09, -0.268), (0.02, -0.285), (0.02, -0.262), (-0.08, -0.242), (-0.15, -0.185)])
    canvas.tint(canvas.mask(gloss, 0.012), shade(who.hair_color, 1.35), 0.6)
    _strands(canvas, who, strands, 0.55)
    return canvas.layer()


def _front_curls(canvas: Canvas, who: PuppetIdentity) -> None:
    mask = canvas.mask(
        curve([*skull(who, 0.03, -0.06), (-0.19, -0.13), (-0.10, -0.19), (0.0, -0.205), (0.10, -0.19), (0.19, -0.13)])
    )
    canvas.paint(mask, shade(who.hair_color, 0.85))
    rng = np.random.default_rng((who.seed, 9))
    for rx, ry, count, reach in ((0.255, 0.315, 17, 1.75), (0.195, 0.245, 13, 1.35)):
        for x, y, r in _curls(who, rx, ry, count, -reach, reach):
            canvas.paint(
                canvas.mask(ellipse(x, y, r * 0.72, r * 0.72)), shade(who.hair_color, float(rng.uniform(0.84, 1.04)))
            )
            canvas.tint(
                canvas.mask(ellipse(x - 0.012, y - 0.014, r * 0.35, r * 0.30), 0.012), shade(who.hair_color, 1.22), 0.6
            )


def _short(who: PuppetIdentity) -> tuple[list[Point], list[Points]]:
    w = who.face_width
    line = [
        (-w - 0.004, 0.02),
        (-w + 0.012, -0.07),
        (-0.165, -0.165),
        (-0.09, -0.205),
        (0.02, -0.195),
        (0.12, -0.20),
        (0.175, -0.15),
        (w - 0.012, -0.07),
        (w + 0.004, 0.02),
    ]
    strands = [curve([(x, -0.205), (x - 0.02, -0.26), (x - 0.06, -0.31)], False) for x in (-0.06, 0.0, 0.06, 0.12)]
    return [*skull(who, 0.034, -0.04), *line], strands


def _crop(who: PuppetIdentity) -> tuple[list[Point], list[Points]]:
    w = who.face_width
    line = [
        (-w - 0.002, 0.03),
        (-w + 0.016, -0.09),
        (-0.165, -0.17),
        (-0.14, -0.205),
        (0.0, -0.215),
        (0.14, -0.205),
        (0.165, -0.17),
        (w - 0.016, -0.09),
        (w + 0.002, 0.03),
    ]
    return [*skull(who, 0.012, -0.03), *line], []


def _swoop(who: PuppetIdentity) -> tuple[list[Point], list[Points]]:
    w = who.face_width
    line = [
        (-w - 0.002, 0.03),
        (-w + 0.014, -0.06),
        (-0.175, -0.125),
        (-0.08, -0.155),
        (0.05, -0.205),
        (0.105, -0.245),
        (0.15, -0.20),
        (w - 0.014, -0.08),
        (w + 0.002, 0.02),
    ]
    strands = [
        curve([(0.10, -0.25), (0.0 - k, -0.25 + k * 0.4), (-0.19 + k * 0.2, -0.13 - k * 0.6)], False)
        for k in (0.0, 0.04, 0.08)
    ]
    return [*skull(who, 0.045, -0.03), *line], strands


def _part(who: PuppetIdentity, part: float, low: float, width: float = 0.0) -> tuple[list[Point], list[Points]]:
    """Hair parted at x = `part` that frames the face down to y = `low`."""
    w = who.face_width
    side = w + 0.045 + width
    outline = [
        *skull(who, 0.04, -0.04), (-side, 0.06), (-side, low), (-w + 0.012, low + 0.02), (-w + 0.004, 0.02),
        (-w + 0.03, -0.09),
        (-0.14, -0.165), (part - 0.03, -0.235), (part, -0.262), (part + 0.03, -0.235), (0.14, -0.165),
        (w - 0.03, -0.09),
        (w - 0.004, 0.02), (w - 0.012, low + 0.02), (side, low), (side, 0.06),
    ]  # fmt: skip
    strands = [
        curve([(part + s * 0.01, -0.30), (s * (0.13 + k), -0.22 + k), (s * (w + 0.012 + k * 0.4), -0.04),
              (s * (w + 0.02), low * 0.8)], False)
        for s in (-1, 1) for k in (0.0, 0.03)
    ]  # fmt: skip
    return outline, strands


def _fringe(who: PuppetIdentity) -> tuple[list[Point], list[Points]]:
    w = who.face_width
    side = w + 0.05
    outline = [
        *skull(who, 0.042, -0.04), (-side, 0.10), (-side - 0.002, 0.27), (-w + 0.0, 0.29), (-w + 0.01, 0.05),
        (-w + 0.022, -0.085),
        (-0.13, -0.105), (0.0, -0.112), (0.13, -0.105), (w - 0.022, -0.085), (w - 0.01, 0.05), (w, 0.29),
        (side + 0.002, 0.27), (side, 0.10),
    ]  # fmt: skip
    strands = [
        curve([(x * 0.5, -0.30), (x * 0.9, -0.2), (x, -0.115)], False)
        for x in (-0.14, -0.09, -0.045, 0.0, 0.045, 0.09, 0.14)
    ]
    return outline, strands


def _tied(who: PuppetIdentity) -> tuple[list[Point], list[Points]]:
    w = who.face_width
    line = [
        (-w, 0.0),
        (-w + 0.016, -0.08),
        (-0.155, -0.175),
        (-0.06, -0.225),
        (0.05, -0.232),
        (0.155, -0.175),
        (w - 0.016, -0.08),
        (w, 0.0),
    ]
    strands = [curve([(x, -0.20), (x * 0.6, -0.26), (x * 0.2, -0.325)], False) for x in (-0.16, -0.08, 0.0, 0.08, 0.16)]
    return [*skull(who, 0.022, -0.04), *line], strands


_SHAPES = {
    "short": _short,
    "crop": _crop,
    "swoop": _swoop,
    "long": lambda who: _part(who, 0.0, 0.30),
    "wavy": lambda who: _part(who, 0.06, 0.26, 0.012) if who.woman else _part(who, 0.07, 0.12),
    "bob": lambda who: _part(who, -0.07, 0.20, 0.012),
    "fringe": _fringe,
    "bun": _tied,
    "pony": _tied,
}
