"""Who a puppet is: proportions, colours, hair and accessories, drawn from a seed.

Lengths are in *frame widths* (1.0 is the width of the picture), colours are RGB 0..255. Ranges are narrow
on purpose: every combination should be a pleasant, clean illustration with features large enough to read
at 128 pixels.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

Color = tuple[float, float, float]

HAIR_STYLES = ("short", "crop", "bald", "long", "wavy", "bob", "bun", "curly", "fringe", "pony", "swoop")
_WOMEN = ("long", "wavy", "bob", "bun", "curly", "fringe", "pony", "swoop", "long", "bob")
_MEN = ("short", "crop", "bald", "curly", "swoop", "short", "crop", "short")
BEARDS = ("none", "stubble", "full", "moustache", "goatee")
CLOTHES = ("crew", "vee", "collar", "turtle", "blazer")

_SKINS: tuple[Color, ...] = (
    (252, 226, 205), (247, 211, 184), (240, 197, 165), (228, 180, 144), (212, 160, 122),
    (190, 136, 98), (163, 111, 78), (136, 90, 63), (110, 72, 52),
)  # fmt: skip
_HAIRS: tuple[Color, ...] = (
    (38, 30, 32), (58, 40, 34), (86, 56, 40), (120, 78, 48), (160, 108, 62), (205, 160, 96),
    (226, 190, 130), (150, 72, 44), (186, 92, 52), (150, 146, 148), (205, 202, 200),
)  # fmt: skip
_IRISES: tuple[Color, ...] = (
    (84, 54, 34), (110, 72, 40), (70, 100, 130), (86, 132, 168), (84, 122, 84), (120, 118, 78), (60, 42, 32),
)  # fmt: skip


def mix(a: Color, b: Color, share: float) -> Color:
    """`a` with `share` of `b`."""
    return tuple(x * (1 - share) + y * share for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def shade(color: Color, factor: float) -> Color:
    """Darker (below 1) or lighter (above 1)."""
    target: Color = (0, 0, 0) if factor < 1 else (255, 255, 255)
    return mix(color, target, abs(1 - factor))


def _hsv(hue: float, saturation: float, value: float) -> Color:
    r, g, b = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return 255 * r, 255 * g, 255 * b


@dataclass(frozen=True)
class PuppetIdentity:
    """A person. Lengths in frame widths, factors around 1, colours RGB 0..255."""

    seed: int
    woman: bool
    skin: Color
    blush: float
    face_width: float  # half the width of the face
    face_height: float  # factor on heights
    jaw: float  # factor: 1 is oval, larger is squarer
    chin: float  # factor on the width of the chin
    hair: str
    hair_color: Color
    brow_thick: float
    brow_tilt: float
    brow_height: float
    brow_color: Color
    iris: Color
    eye_size: float
    eye_gap: float
    eye_slant: float
    lashes: float
    nose_size: float
    nose_width: float
    lip: Color
    lip_full: float
    mouth_width: float  # half the width of the resting mouth
    glasses: str  # none, round, square
    glasses_color: Color
    beard: str
    ear_size: float
    earrings: bool
    freckles: bool
    clothes: str
    top: Color
    under: Color
    backdrop: Color
    backdrop_low: Color
    shoulder: float  # factor on the width of the shoulders

    @staticmethod
    def random(seed: int) -> PuppetIdentity:
        """The identity of `seed`; the same on every machine."""
        rng = np.random.default_rng((seed, 0x1D))

        def pick(options: tuple[str, ...]) -> str:
            return options[int(rng.integers(len(options)))]

        def between(low: float, high: float) -> float:
            return float(rng.uniform(low, high))

        woman = bool(rng.random() < 0.5)
        tone = between(0, len(_SKINS) - 1)
        low = int(tone)
        skin = mix(_SKINS[low], _SKINS[min(low + 1, len(_SKINS) - 1)], tone - low)
        hair_color = _HAIRS[int(rng.choice(11, p=(0.14, 0.14, 0.14, 0.12, 0.11, 0.09, 0.07, 0.06, 0.05, 0.04, 0.04)))]
        if tone > 4.5:
            hair_color = (_HAIRS[0], _HAIRS[1], _HAIRS[2], _HAIRS[9])[int(rng.choice(4, p=(0.5, 0.3, 0.15, 0.05)))]
        hair = pick(_WOMEN if woman else _MEN)
        beard = "none" if woman else BEARDS[int(rng.choice(5, p=(0.45, 0.17, 0.2, 0.08, 0.10)))]
        rose: Color = (204, 82, 92)
        lip = mix(mix(skin, (160, 62, 62), 0.5), rose, between(0.3, 0.75) if woman else between(0.0, 0.2))
        hue = between(0, 1)
        top_hue = hue + between(0.3, 0.7)
        top = _hsv(top_hue, between(0.35, 0.7), between(0.4, 0.85))
        light = between(0.84, 0.96)
        backdrop = _hsv(hue, between(0.10, 0.26), light)
        return PuppetIdentity(
            seed=seed, woman=woman, skin=skin, blush=between(0.2, 0.42) if woman else between(0.05, 0.22),
            face_width=between(0.208, 0.224) if woman else between(0.212, 0.230), face_height=between(0.97, 1.05),
            jaw=between(0.90, 1.0) if woman else between(1.0, 1.12),
            chin=between(0.85, 1.0) if woman else between(1.0, 1.3), hair=hair, hair_color=hair_color,
            brow_thick=between(0.010, 0.014) if woman else between(0.014, 0.021), brow_tilt=between(-0.010, 0.012),
            brow_height=between(-0.006, 0.008), brow_color=mix(shade(hair_color, 0.75), skin, 0.12),
            iris=_IRISES[int(rng.integers(2 if tone > 5 else len(_IRISES)))],
            eye_size=between(1.02, 1.18) if woman else between(0.90, 1.04), eye_gap=between(0.094, 0.104),
            eye_slant=between(-0.006, 0.008), lashes=1.0 if woman else 0.0, nose_size=between(0.85, 1.1),
            nose_width=between(0.85, 1.25), lip=lip, lip_full=between(1.0, 1.3) if woman else between(0.7, 1.0),
            mouth_width=between(0.076, 0.088),
            glasses=("none", "round", "square")[int(rng.choice(3, p=(0.74, 0.14, 0.12)))],
            glasses_color=((40, 36, 40), (120, 70, 40), (60, 70, 110))[int(rng.integers(3))], beard=beard,
            ear_size=between(0.9, 1.1), earrings=woman and bool(rng.random() < 0.45),
            freckles=bool(tone < 3 and rng.random() < 0.2), clothes=pick(CLOTHES), top=top,
            under=_hsv(top_hue + 0.5, 0.08, 0.96), backdrop=backdrop,
            backdrop_low=shade(mix(backdrop, _hsv(hue + 0.06, 0.4, 0.7), 0.35), 0.96),
            shoulder=between(0.92, 1.0) if woman else between(1.0, 1.12),
        )  # fmt: skip
