"""Where a person is shown: camera, light and background, drawn from a seed.

The camera is placed by the head, so that a face is as wide in every picture of a framing however tall the person is.
Light always comes from the viewer's side: a face that is trained on must be seen. Backgrounds are painted here, in
display colours, and out of focus like a lens with a wide aperture shows them.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from streamavatar.synth.human.figure import Array, Camera, Figure, Light, Pixels, Scene

Framing = Literal["bust", "half"]

# How far the camera stands (metres), and how tall the picture is where the face is, in heads (chin to crown).
DISTANCE = {"bust": 1.6, "half": 2.6}
HEADS = {"bust": 1.62, "half": 3.7}
HEAD_ROOM = {"bust": 0.09, "half": 0.3}  # above the highest hair, in heads
OVERSIZE = 2  # backgrounds are painted at this many times their size, so that edges are smooth


def random_scene(seed: int, figure: Figure, framing: Framing, size: int) -> Scene:
    """A scene as varied as video calls are; the same for the same seed, figure, framing and size."""
    draw = np.random.default_rng(seed)
    camera = _camera(
        figure,
        framing,
        turn=float(draw.uniform(-9, 9)),
        tilt=float(draw.uniform(-6, 4)),
        zoom=float(draw.uniform(0.95, 1.06)),
        shift=(float(draw.uniform(-0.08, 0.08)), float(draw.uniform(-0.01, 0.05))),
    )
    warmth = float(draw.normal(0, 0.5))
    return Scene(camera, _light(draw, warmth), _background(draw, size))


def studio_scene(figure: Figure, framing: Framing, size: int) -> Scene:
    """The same plain scene for everyone: for sheets and comparisons."""
    light = Light((0.45, 0.55, 0.85), (1.15, 1.1, 1.04), (0.32, 0.33, 0.36), (0.34, 0.36, 0.4), (0.2, 0.18, 0.17))
    return Scene(_camera(figure, framing), light, _shaded(size, (0.62, 0.65, 0.68), (0.42, 0.45, 0.49)))


def head_box(figure: Figure) -> tuple[Array, float]:
    """The middle of the head [3] and its height from chin to crown in metres, at rest.

    The head is the skin that hangs mostly on the bone "head" or its children, without what hangs on the neck.
    """
    names = list(figure.skeleton.names)
    if "head" not in names:
        raise ValueError("the skeleton has no bone named head")
    under = np.zeros(len(names), bool)
    under[names.index("head")] = True
    for bone, parent in enumerate(figure.skeleton.parents):
        under[bone] |= parent >= 0 and under[parent]
    skins = [p for p in figure.parts if p.material.kind == "skin"]
    points = np.concatenate([p.vertices[(p.weights * under[p.bones]).sum(axis=1) > 0.5] for p in skins])
    if not len(points):
        raise ValueError("no skin hangs on the bone head")
    low, high = points.min(axis=0), points.max(axis=0)
    return ((low + high) / 2).astype(np.float32), float(high[1] - low[1])


def _camera(
    figure: Figure,
    framing: Framing,
    turn: float = 0.0,
    tilt: float = -1.0,
    zoom: float = 1.0,
    shift: tuple[float, float] = (0.0, 0.0),
) -> Camera:
    """Turn (to the person's left) and tilt (from below) in degrees around the head; shift in heads; zoom in."""
    middle, tall = head_box(figure)
    span = HEADS[framing] * tall / zoom
    highest = max(float(p.vertices[:, 1].max()) for p in figure.parts)
    top = min(highest, middle[1] + 0.7 * tall) + HEAD_ROOM[framing] * tall  # a towering hat may be cut
    target = np.array([middle[0] + shift[0] * tall, top - span / 2 + shift[1] * tall, middle[2]])
    yaw, pitch = np.radians(turn), np.radians(-tilt)
    away = np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
    distance = DISTANCE[framing]
    eye = target + away * distance
    fov = 2 * np.degrees(np.arctan(span / 2 / distance))
    return Camera(_three(eye), _three(target), float(fov))


def _light(draw: np.random.Generator, warmth: float) -> Light:
    """Key from the front half, 15 to 50 degrees up; the softer the fill, the stronger the key."""
    side = float(draw.choice([-1, 1]) * draw.uniform(10, 60))
    rise = float(draw.uniform(15, 50))
    yaw, pitch = np.radians(side), np.radians(rise)
    direction = (np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch))
    key, fill, around = draw.uniform(0.85, 1.3), draw.uniform(0.2, 0.45), draw.uniform(0.28, 0.45)
    other = warmth - float(draw.normal(0.4, 0.4))  # the fill is as a rule cooler than the key
    ground = _tone(warmth + 0.5) * around * draw.uniform(0.45, 0.7)
    return Light(
        _three(direction),
        _three(key * _tone(warmth)),
        _three(fill * _tone(other)),
        _three(around * _tone(0.5 * (warmth + other))),
        _three(ground),
    )


def _tone(warmth: float) -> NDArray[np.float64]:
    """A white of brightness 1, warmer above 0 and cooler below."""
    colour = np.array([1 + 0.1 * warmth, 1.0, 1 - 0.14 * warmth])
    return np.clip(colour, 0.5, 1.6) / colour.mean()


def _three(values: object) -> tuple[float, float, float]:
    x, y, z = np.asarray(values, np.float64).tolist()
    return x, y, z


def _background(draw: np.random.Generator, size: int) -> Pixels:
    painters = (_studio, _wall, _window, _shelves, _lights, _outdoors)
    return painters[int(draw.integers(len(painters)))](draw, size)


def _colour(draw: np.random.Generator, value: tuple[float, float], most: float = 0.35) -> NDArray[np.float64]:
    """A random hue [3] in 0..1 whose saturation is at most `most` and whose brightness lies in `value`."""
    hue, saturation, bright = draw.uniform(), draw.uniform(0, most), draw.uniform(*value)
    wheel = np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return bright * (1 - saturation + saturation * wheel)


def _shaded(size: int, top: object, bottom: object, glow: tuple[float, float, float] = (0.5, 0.4, 0.08)) -> Pixels:
    """From one colour to the other, with a round glow (x, y, strength) and a faint grain against banding."""
    y, x = np.mgrid[0:size, 0:size] / size
    mix = y[..., None]
    picture = np.asarray(top) * (1 - mix) + np.asarray(bottom) * mix
    picture = picture + glow[2] * np.exp(-((x - glow[0]) ** 2 + (y - glow[1]) ** 2) / 0.12)[..., None]
    grain = np.random.default_rng(0).uniform(-0.6, 0.6, (size, size, 1))
    return np.clip(picture * 255 + grain, 0, 255).round().astype(np.uint8)


def _blurred(picture: Image.Image, size: int, blur: float) -> Pixels:
    """Out of focus by `blur`, as a share of the picture's width."""
    soft = picture.filter(ImageFilter.GaussianBlur(blur * picture.width))
    return np.asarray(soft.resize((size, size), Image.Resampling.BOX), np.uint8).copy()


def _canvas(size: int, top: object, bottom: object) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    picture = Image.fromarray(_shaded(size * OVERSIZE, top, bottom))
    return picture, ImageDraw.Draw(picture)


def _ink(colour: NDArray[np.float64]) -> tuple[int, int, int]:
    red, green, blue = np.clip(colour * 255, 0, 255).astype(int).tolist()
    return red, green, blue


def _studio(draw: np.random.Generator, size: int) -> Pixels:
    base = _colour(draw, (0.25, 0.9), 0.5)
    return _shaded(size, base, base * draw.uniform(0.6, 0.95), (draw.uniform(0.2, 0.8), 0.45, draw.uniform(0.03, 0.15)))


def _wall(draw: np.random.Generator, size: int) -> Pixels:
    """A plain wall with a picture or two and the shade of a corner."""
    base = _colour(draw, (0.5, 0.92), 0.2)
    picture, pen = _canvas(size, base, base * 0.82)
    side = picture.width
    corner = draw.uniform(-0.3, 1.3) * side
    pen.rectangle((corner, 0, 2 * side, side), fill=_ink(base * draw.uniform(0.72, 0.92)))
    for _ in range(int(draw.integers(0, 3))):
        x, y = draw.uniform(-0.1, 0.9) * side, draw.uniform(-0.1, 0.35) * side
        width, height = draw.uniform(0.15, 0.35, 2) * side
        pen.rectangle((x, y, x + width, y + height), fill=_ink(_colour(draw, (0.1, 0.5))))
        inset = 0.02 * side
        pen.rectangle(
            (x + inset, y + inset, x + width - inset, y + height - inset), fill=_ink(_colour(draw, (0.4, 0.9)))
        )
    return _blurred(picture, size, draw.uniform(0.008, 0.025))


def _window(draw: np.random.Generator, size: int) -> Pixels:
    """A bright window with bars and, as a rule, curtains."""
    wall = _colour(draw, (0.3, 0.6), 0.25)
    picture, pen = _canvas(size, wall, wall * 0.75)
    side = picture.width
    left, width = draw.uniform(-0.2, 0.55) * side, draw.uniform(0.4, 0.7) * side
    top, bottom = draw.uniform(-0.2, 0.1) * side, draw.uniform(0.5, 0.9) * side
    pen.rectangle((left, top, left + width, bottom), fill=_ink(np.array([0.86, 0.92, 0.96]) * draw.uniform(0.85, 1.03)))
    green = np.array([0.5, 0.62, 0.45]) * draw.uniform(0.7, 1.2)
    pen.rectangle((left, bottom - 0.3 * (bottom - top), left + width, bottom), fill=_ink(green))
    bar = 0.018 * side
    for share in np.linspace(0, 1, int(draw.integers(2, 4))):
        pen.rectangle((left + share * width - bar, top, left + share * width + bar, bottom), fill=_ink(wall * 1.25))
    for edge in (left - 0.12 * side, left + width - 0.05 * side):
        pen.rectangle((edge, 0, edge + 0.17 * side, side), fill=_ink(_colour(draw, (0.45, 0.85), 0.25)))
    return _blurred(picture, size, draw.uniform(0.015, 0.035))


def _shelves(draw: np.random.Generator, size: int) -> Pixels:
    wood = np.array([0.42, 0.3, 0.2]) * draw.uniform(0.4, 1.7)
    picture, pen = _canvas(size, wood * 0.55, wood * 0.45)
    side = picture.width
    rows = int(draw.integers(3, 6))
    height = side / rows
    for row in range(rows):
        floor, x = (row + 1) * height, -0.02 * side
        while x < side:
            width, tall = draw.uniform(0.02, 0.06) * side, draw.uniform(0.55, 0.85) * height
            if draw.uniform() < 0.85:
                pen.rectangle((x, floor - tall, x + width, floor), fill=_ink(_colour(draw, (0.15, 0.75), 0.55)))
            x += width
        pen.rectangle((0, floor - 0.07 * height, side, floor), fill=_ink(wood))
    return _blurred(picture, size, draw.uniform(0.008, 0.022))


def _lights(draw: np.random.Generator, size: int) -> Pixels:
    """A dim room or street whose lamps are out of focus."""
    base = _colour(draw, (0.1, 0.3), 0.5)
    picture, _ = _canvas(size, base, base * 0.6)
    side = picture.width
    light = np.asarray(picture, np.float64)
    for _ in range(int(draw.integers(8, 22))):
        disc = Image.new("L", picture.size)
        x, y, radius = *(draw.uniform(0, 1, 2) * side), draw.uniform(0.02, 0.06) * side
        ImageDraw.Draw(disc).ellipse((x - radius, y - radius, x + radius, y + radius), fill=int(draw.uniform(40, 150)))
        light += np.asarray(disc, np.float64)[..., None] * _colour(draw, (0.6, 1.0), 0.6)
    return _blurred(Image.fromarray(np.clip(light, 0, 255).astype(np.uint8)), size, 0.004)


def _outdoors(draw: np.random.Generator, size: int) -> Pixels:
    """Sky above, leaves or a street below, far out of focus."""
    sky = np.array([0.62, 0.76, 0.9]) * draw.uniform(0.8, 1.08)
    land = np.array([0.36, 0.46, 0.26]) * draw.uniform(0.6, 1.2) + draw.uniform(0, 0.2)
    picture, pen = _canvas(size, sky, sky * 1.05)
    side = picture.width
    horizon = draw.uniform(0.3, 0.7) * side
    pen.rectangle((0, horizon, side, side), fill=_ink(land))
    for _ in range(60):
        x, y = draw.uniform(0, side), horizon + draw.normal(0, 0.16) * side
        radius = draw.uniform(0.03, 0.1) * side
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_ink(land * draw.uniform(0.6, 1.45)))
    return _blurred(picture, size, draw.uniform(0.02, 0.04))
