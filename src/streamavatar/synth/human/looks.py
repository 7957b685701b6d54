"""Textures and tints: what a person's parts look like.

Hair and tinted clothes are made grey first, so that one texture gives every colour.
"""

from __future__ import annotations

import numpy as np

from streamavatar.synth.human.assets import TEXTURE, Assets, Piece, texture
from streamavatar.synth.human.figure import Array, Kind, Material, Pixels
from streamavatar.synth.human.identity import HumanIdentity

_WHITE = (1.0, 1.0, 1.0)
_GLOSS: dict[Kind, float] = {
    "skin": 0.3, "eye": 1.0, "teeth": 0.7, "tongue": 0.5, "lashes": 0.0, "brows": 0.05, "hair": 0.35, "cloth": 0.08,
}  # fmt: skip
# Mean colour of the trunk that light and dark skin textures are brought to; packs differ, some are orange.
_LIGHT, _DARK = (218.0, 175.0, 147.0), (100.0, 62.0, 42.0)


class Look:
    """Materials of one identity."""

    def __init__(self, assets: Assets, identity: HumanIdentity) -> None:
        self.assets = assets
        self.identity = identity

    def skin(self) -> Material:
        """Light and dark texture mixed: all share one layout."""
        who, skins = self.identity, self.assets.skins
        light = _toned(texture(skins[who.light_skin]), _LIGHT)
        dark = _toned(texture(skins[who.dark_skin]), _DARK)
        pixels = np.clip(light + who.darkness * (dark - light), 0, 255).round().astype(np.uint8)
        return Material("skin", pixels, who.skin_tint, gloss=_GLOSS["skin"])

    def eyes(self) -> Material:
        pixels = texture(self.assets.eyes[self.identity.eyes]).copy()
        pixels[..., 3] = 255
        pixels[..., :3] = _iris_tinted(pixels[..., :3], self.identity.eye_tint)
        return Material("eye", pixels, gloss=_GLOSS["eye"])

    def worn(self, kind: Kind, piece: Piece) -> Material:
        """The material of a piece in this person's colours."""
        who = self.identity
        tint = {"hair": who.hair_tint, "brows": who.brow_tint, "cloth": who.clothes_tint}.get(kind)
        if piece.diffuse is not None and not (kind == "cloth" and who.plain):
            pixels = texture(piece.diffuse)
        else:
            pixels = _strands(who.hair.startswith("afro")) if kind == "hair" else np.full((4, 4, 4), 255, np.uint8)
        if tint is not None:
            # Locks painted nearly black should still take the colour.
            pixels = _grey(pixels, 0.6 if kind == "hair" else 1.0)
        if kind in ("teeth", "tongue"):
            pixels = pixels.copy()
            pixels[..., 3] = 255
        return Material(
            kind, pixels, tint or _WHITE,
            cutout=bool(pixels[..., 3].min() < 128), double_sided=kind in ("hair", "cloth", "lashes", "brows"),
            normals=texture(piece.normals)[..., :3] if piece.normals is not None else None,
            occlusion=texture(piece.occlusion)[..., 0] if piece.occlusion is not None else None,
            gloss=_GLOSS[kind],
        )  # fmt: skip


def _toned(pixels: Pixels, colour: tuple[float, float, float]) -> Array:
    """A skin texture [h,w,4] whose trunk has this mean colour."""
    height, width = pixels.shape[:2]
    trunk = pixels[height // 10 : height // 2, width // 5 : width * 3 // 5, :3].mean(axis=(0, 1))
    return pixels.astype(np.float32) * np.append(np.array(colour) / trunk, 1.0).astype(np.float32)


def _grey(pixels: Pixels, gamma: float) -> Pixels:
    """The texture without colour; nearly its brightest visible spot becomes white, and a gamma below 1 lifts shades."""
    solid = pixels[..., 3] > 128
    light = pixels[..., :3].astype(np.float32) @ np.array([0.30, 0.59, 0.11], np.float32)
    top = float(np.percentile(light[solid], 95)) if solid.any() else 0.0
    grey = 255 * np.clip(light / top, 0, 1) ** gamma if top > 25 else np.full_like(light, 255)
    return np.dstack([grey, grey, grey, pixels[..., 3]]).round().astype(np.uint8)


def _iris_tinted(pixels: Pixels, tint: tuple[float, float, float]) -> Pixels:
    """Only the coloured part of the texture; the white of the eye has hardly any colour."""
    colour = pixels.astype(np.float32)
    spread = colour.max(axis=-1, keepdims=True) - colour.min(axis=-1, keepdims=True)
    share = np.clip((spread - 24) / 40, 0, 1)
    return (colour * (1 + share * (np.array(tint, np.float32) - 1))).round().astype(np.uint8)


def _strands(curly: bool) -> Pixels:
    """A stand-in for hair whose pack came without a texture: strands that run downwards, or curls."""
    size = TEXTURE // 2
    spectrum = np.fft.rfft2(np.random.default_rng(7).normal(0, 1, (size, size)))
    rows, columns = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]
    # A strand changes slowly along itself and quickly across; a curl is as long as it is wide.
    along, across = (5.0, 5.0) if curly else (60.0, 3.0)
    smooth = np.fft.irfft2(spectrum * np.exp(-((rows * along) ** 2) - (columns * across) ** 2), s=(size, size))
    light = np.clip(165 + 38 * smooth / smooth.std(), 40, 255)
    return np.dstack([light, light, light, np.full_like(light, 255)]).round().astype(np.uint8)
