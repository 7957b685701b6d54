"""Painting tools and the still layers of a puppet: backdrop, body, back hair, head, beard, front hair, hand.

Layers are painted once per identity with soft shading, premultiplied RGBA uint8, and only moved afterwards:
that is what makes a frame cost about a millisecond. Coordinates are frame widths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from streamavatar.synth.identity import Color

Picture = NDArray[np.uint8]
Points = NDArray[np.float64]

_BITS = 5  # sub-pixel bits of polygon corners


def as_picture(array: NDArray[Any]) -> Picture:
    """OpenCV's stubs do not say that uint8 in is uint8 out."""
    return cast(Picture, array)


def curve(points: list[tuple[float, float]] | Points, closed: bool = True, steps: int = 8) -> Points:
    """A Catmull-Rom curve through the points, [N*steps, 2] (open curves keep their two ends)."""
    p = np.asarray(points, np.float64)
    if closed:
        before, after, last = np.roll(p, 1, 0), np.roll(p, -1, 0), np.roll(p, -2, 0)
    else:
        padded = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
        before, p, after, last = padded[:-3], padded[1:-2], padded[2:-1], padded[3:]
    t = (np.arange(steps) / steps)[None, :, None]
    a, b, c, d = (v[:, None, :] for v in (before, p, after, last))
    out = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    flat = out.reshape(-1, 2)
    return flat if closed else np.concatenate([flat, np.asarray(points, np.float64)[-1:]])


def mirrored(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Right half from top to bottom -> the closed outline; points on the axis are not doubled."""
    return points + [(-x, y) for x, y in reversed(points) if abs(x) > 1e-9]


def ellipse(x: float, y: float, rx: float, ry: float, turn: float = 0.0, count: int = 28) -> Points:
    """An ellipse, turned by `turn` radians."""
    circle = _circle(count)
    px, py = rx * circle[:, 0], ry * circle[:, 1]
    c, s = math.cos(turn), math.sin(turn)
    out = np.empty_like(circle)
    out[:, 0] = x + px * c - py * s
    out[:, 1] = y + px * s + py * c
    return out


@lru_cache(maxsize=8)
def _circle(count: int) -> Points:
    t = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([np.cos(t), np.sin(t)], axis=1)


def fixed(points: Points, scale: float) -> NDArray[np.int32]:
    """Frame widths -> OpenCV's fixed-point pixels at `scale` pixels per frame width (pixel centres at .5)."""
    return np.round((points * scale - 0.5) * (1 << _BITS)).astype(np.int32)


def fill(image: Picture, points: Points, color: tuple[float, ...], scale: float) -> None:
    """Fill a polygon with anti-aliased edges, in place."""
    cv2.fillPoly(image, [fixed(points, scale)], color, cv2.LINE_AA, _BITS)


def stroke(image: Picture, points: Points, color: tuple[float, ...], width: float, scale: float) -> None:
    """An open line of constant width (frame widths)."""
    thick = max(1, round(width * scale))
    cv2.polylines(image, [fixed(points, scale)], False, color, thick, cv2.LINE_AA, _BITS)


@dataclass(frozen=True)
class Layer:
    """Premultiplied RGBA [h,w,4] whose pixel (0, 0) lies at (x, y) pixels of the working picture."""

    pixels: Picture
    x: int
    y: int


class Canvas:
    """A float RGBA picture to paint one layer on; origin (ox, oy) in frame widths is its top-left corner."""

    def __init__(self, scale: float, left: float, top: float, right: float, bottom: float) -> None:
        self.scale = scale
        self.x, self.y = int(np.floor(left * scale)), int(np.floor(top * scale))
        self.width, self.height = int(np.ceil(right * scale)) - self.x, int(np.ceil(bottom * scale)) - self.y
        self.color = np.zeros((self.height, self.width, 3), np.float32)
        self.alpha = np.zeros((self.height, self.width), np.float32)

    def mask(self, points: Points, blur: float = 0.0) -> NDArray[np.float32]:
        """Coverage 0..1 of a polygon, softened by `blur` (frame widths)."""
        out = np.zeros((self.height, self.width), np.uint8)
        moved = points - np.array([self.x, self.y]) / self.scale
        cv2.fillPoly(out, [fixed(moved, self.scale)], (255,), cv2.LINE_AA, _BITS)
        return self._soften(out, blur)

    def line(self, points: Points, width: float, blur: float = 0.0) -> NDArray[np.float32]:
        """Coverage 0..1 of an open line."""
        out = np.zeros((self.height, self.width), np.uint8)
        moved = points - np.array([self.x, self.y]) / self.scale
        thick = max(1, round(width * self.scale))
        cv2.polylines(out, [fixed(moved, self.scale)], False, (255,), thick, cv2.LINE_AA, _BITS)
        return self._soften(out, blur)

    def _soften(self, mask: Picture, blur: float) -> NDArray[np.float32]:
        sigma = blur * self.scale
        if sigma > 6:
            # A wide blur has no fine detail left: a quarter of the size looks the same at a tenth of the cost.
            small = cv2.resize(mask, (-(-self.width // 4), -(-self.height // 4)), interpolation=cv2.INTER_AREA)
            small = cv2.GaussianBlur(small, (0, 0), sigma / 4)
            mask = as_picture(cv2.resize(small, (self.width, self.height), interpolation=cv2.INTER_LINEAR))
        elif sigma > 0:
            mask = as_picture(cv2.GaussianBlur(mask, (0, 0), max(0.5, sigma)))
        return mask.astype(np.float32) * np.float32(1 / 255)

    def paint(self, mask: NDArray[np.float32], color: Color, opacity: float = 1.0) -> None:
        """Cover with `color` where the mask is; makes empty places solid."""
        window = _window(mask)
        share = mask[window] * np.float32(opacity)
        before = self.alpha[window] * (1 - share)
        after = share + before
        share = (share / np.maximum(after, 1e-6))[..., None]
        self.color[window] += (np.asarray(color, np.float32) - self.color[window]) * share
        self.alpha[window] = after

    def tint(self, mask: NDArray[np.float32], color: Color, opacity: float = 1.0) -> None:
        """Shift what is painted towards `color`; never makes empty places solid."""
        window = _window(mask)
        share = (mask[window] * np.float32(opacity))[..., None]
        self.color[window] += (np.asarray(color, np.float32) - self.color[window]) * share

    def layer(self) -> Layer:
        rgba = np.concatenate([self.color * self.alpha[..., None], 255 * self.alpha[..., None]], axis=2)
        return Layer(np.clip(np.round(rgba), 0, 255).astype(np.uint8), self.x, self.y)


def _window(mask: NDArray[np.float32]) -> tuple[slice, slice]:
    """The part of the mask that is not empty: painting only there keeps an identity cheap."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def blend(target: Picture, source: Picture) -> None:
    """Lay premultiplied RGBA `source` over `target` (RGB or RGBA, same height and width), in place."""
    channels = target.shape[2]
    keep = cv2.bitwise_not(cv2.extractChannel(source, 3))
    top = source if channels == 4 else cv2.cvtColor(source, cv2.COLOR_RGBA2RGB)
    kept = cv2.multiply(target, cv2.merge([keep] * channels), scale=1 / 255)
    cv2.add(kept, top, dst=target)
