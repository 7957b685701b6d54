"""Who a person is: shape, skin, hair and clothes, drawn from a seed as plain data.

Ranges are those of people one meets: faces differ clearly, none is a caricature. Adults only.
"""

from __future__ import annotations

import colorsys
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from streamavatar.errors import UserError
from streamavatar.synth.human.assets import WHERE, Assets

Tint = tuple[float, float, float]

# Width of the normal draw per family of opposite shape targets; the first pattern found in the name counts.
_SPREADS: tuple[tuple[str, float], ...] = (
    (
        r"expression|(head|mouth|nose)-trans-(in|out)|neck/|torso/|eye-push|head-trans|head-back|nose-septum|head-angle",
        0.0,
    ),
    (r"head-age", 0.0),  # the macro targets age the face
    (r"eyebrows-angle", 0.0),  # drawn by itself: downwards people look cross
    (r"asym/asym-(brown|cheek|eye|jaw|mouth|nose|temple)", 0.10),
    (r"asym", 0.0),
    (r"head-scale", 0.12),
    (r"head-fat", 0.22),
    (r"mouth-(upperlip|lowerlip)-(middle|ext|height)|mouth-scale-depth|mouth-trans|mouth-angles", 0.14),
    (r"mouth", 0.28),
    (r"nose-(hump|compression|nostrils-angle|trans|greek|curve)", 0.22),
    (r"nose", 0.32),
    (r"eye-(height|corner|epicanthus)", 0.18),
    (r"eye-(scale|trans)", 0.22),
    (r"eye", 0.30),
    (r"ear-shape", 0.0),
    (r"ear", 0.35),
    (r"chin-(prognathism|jaw-drop|cleft)", 0.18),
    (r"chin|cheek", 0.34),
    (r"forehead|eyebrows", 0.22),
)
_OPPOSITE = re.compile(r"(.*-)(decr|down|in|backward|concave|compress|l)$")
_OTHER = {"decr": "incr", "down": "up", "in": "out", "backward": "forward", "concave": "convex"}
_OTHER |= {"compress": "uncompress", "l": "r"}
_OUTLINES = {
    "female": ("oval", "round", "diamond", "invertedtriangular"),
    "male": ("oval", "round", "diamond", "invertedtriangular", "square", "rectangular"),
}

# Styles that hang over an eye (bob01, bob02, short03) are left out: gaze and blinks must be seen.
_HAIR: dict[str, tuple[tuple[str, float], ...]] = {
    "female": (
        ("long01", 1.4), ("ponytail01", 1.4), ("braid01", 1.2), ("short01", 0.2), ("short02", 0.3), ("afro01", 0.2),
    ),
    "male": (("short01", 1.2), ("short02", 1.4), ("short04", 1.4), ("afro01", 0.1), ("", 0.7)),
}  # fmt: skip
_DARK_HAIR: tuple[Tint, ...] = ((0.13, 0.12, 0.12), (0.17, 0.14, 0.13), (0.22, 0.17, 0.14))
_LIGHT_HAIR: tuple[Tint, ...] = (
    (0.26, 0.19, 0.14), (0.38, 0.26, 0.18), (0.50, 0.35, 0.23), (0.72, 0.54, 0.34), (0.88, 0.73, 0.50),
    (0.56, 0.27, 0.14), (0.42, 0.22, 0.14),
)  # fmt: skip
_GREY_HAIR: tuple[Tint, ...] = ((0.50, 0.49, 0.48), (0.68, 0.67, 0.66), (0.85, 0.84, 0.82))
_LETTERED = ("male_casualsuit06",)  # its print is a brand


@dataclass(frozen=True)
class HumanIdentity:
    """One person. Names are those of the asset folder; tints multiply a texture's sRGB colour.

    Attributes:
        sex: "female" or "male": what skin, hair and clothes are drawn from.
        gender: 0 female .. 1 male shape.
        age: years.
        african, asian, caucasian: shares of the shape targets, they sum to 1.
        muscle, weight, height: 0..1, 0.5 is average.
        details: weights of single shape targets.
        light_skin, dark_skin: textures, mixed with `darkness` 0..1 of the second; `skin_tint` multiplies the mix.
        hair: "" for none.
        clothes_tint: None leaves the texture as it is; `plain` takes its print away first.
    """

    seed: int
    sex: str
    gender: float
    age: float
    african: float
    asian: float
    caucasian: float
    muscle: float
    weight: float
    height: float
    details: dict[str, float]
    light_skin: str
    dark_skin: str
    darkness: float
    skin_tint: Tint
    hair: str
    hair_tint: Tint
    brows: str
    brow_tint: Tint
    lashes: str
    eyes: str
    eye_tint: Tint
    clothes: str
    clothes_tint: Tint | None
    plain: bool
    teeth: str

    @staticmethod
    def random(seed: int, assets: Assets) -> HumanIdentity:
        """A person who depends on the seed and on what the asset folder holds."""
        rng = np.random.default_rng((seed, 0x0B0D))
        sex = ("female", "male")[int(rng.integers(2))]
        gender = float(rng.uniform(0.0, 0.06) if sex == "female" else rng.uniform(0.92, 1.0))
        age = float(rng.choice([rng.uniform(20, 35), rng.uniform(35, 50), rng.uniform(50, 72)], p=[0.5, 0.3, 0.2]))
        african, asian, caucasian = _ancestry(rng)
        darkness = float(np.clip(1.15 * african + rng.normal(0, 0.06) + 0.06 * asian, 0, 1))
        hair_tint, brow_tint = _hair_tints(rng, caucasian, age)
        warm = 1.0 - 0.10 * asian - 0.04 * rng.random()
        bright = rng.uniform(0.93, 1.04)
        eyes, eye_tint = _eyes(rng, assets, caucasian)
        clothes, clothes_tint, plain = _clothes(rng, assets, sex)
        return HumanIdentity(
            seed=seed, sex=sex, gender=gender, age=age, african=african, asian=asian, caucasian=caucasian,
            muscle=_around(rng, 0.58 if sex == "male" else 0.44, 0.10), weight=_around(rng, 0.52, 0.12),
            height=_around(rng, 0.52 if sex == "male" else 0.48, 0.04), details=_details(rng, assets, sex),
            light_skin=_skin(rng, assets, "light", sex, age), dark_skin=_skin(rng, assets, "dark", sex, age),
            darkness=darkness, skin_tint=(bright, bright * (0.5 + 0.5 * warm), bright * warm),
            hair=_hair(rng, assets, sex, african), hair_tint=hair_tint,
            brows=_one(rng, assets.pieces["eyebrows"]), brow_tint=brow_tint,
            lashes=_one(rng, assets.pieces["eyelashes"]), eyes=eyes, eye_tint=eye_tint,
            clothes=clothes, clothes_tint=clothes_tint, plain=plain, teeth=_one(rng, assets.pieces["teeth"]),
        )  # fmt: skip


def _around(rng: np.random.Generator, middle: float, spread: float) -> float:
    return float(np.clip(rng.normal(middle, spread), 0.2, 0.85))


def _one(rng: np.random.Generator, names: Sequence[str]) -> str:
    return names[int(rng.integers(len(names)))]


def _ancestry(rng: np.random.Generator) -> tuple[float, float, float]:
    """Mostly one of three, now and then a real mixture."""
    shares = rng.dirichlet((1.0, 1.0, 1.0))
    if rng.random() < 0.8:
        main = np.eye(3)[int(rng.integers(3))]
        shares = 0.22 * shares + 0.78 * main
    return float(shares[0]), float(shares[1]), float(shares[2])


def _details(rng: np.random.Generator, assets: Assets, sex: str) -> dict[str, float]:
    """Weights of the face's targets; both sides of the face get the same, but for the asymmetric ones."""
    found: dict[str, float] = {}
    drawn: dict[str, float] = {}
    for name in sorted(assets.targets):
        match = _OPPOSITE.fullmatch(name)
        spread = next((s for pattern, s in _SPREADS if re.search(pattern, name)), 0.0)
        if match is None or spread == 0.0:
            continue
        both_sides = re.sub(r"/[lr]-", "/", name)
        if both_sides not in drawn:
            drawn[both_sides] = float(np.clip(rng.normal(0, spread), -2 * spread, 2 * spread))
        value = drawn[both_sides]
        chosen = name if value < 0 else match[1] + _OTHER[match[2]]
        if chosen in assets.targets:
            found[chosen] = abs(value)
    outline = f"head/head-{_one(rng, _OUTLINES[sex])}"
    if outline in assets.targets:
        found[outline] = float(rng.uniform(0.0, 0.35))
    found["eyebrows/eyebrows-angle-up"] = float(rng.uniform(0.15, 0.55))
    return found


def _skin(rng: np.random.Generator, assets: Assets, tone: str, sex: str, age: float) -> str:
    """The texture nearest in age; sex must fit."""
    years = {"young": 26.0, "middleage": 44.0, "old": 66.0}
    fitting = [n for n in sorted(assets.skins) if f"_{tone}skinned_{sex}_" in n and n.split("_")[0] in years]
    if not fitting:
        raise UserError(f"{assets.folder} has no {tone}-skinned {sex} skin texture. {WHERE}")
    gaps = np.array([abs(years[n.split("_")[0]] - age) for n in fitting])
    return _one(rng, [n for n, gap in zip(fitting, gaps, strict=True) if gap == gaps.min()])


def _hair(rng: np.random.Generator, assets: Assets, sex: str, african: float) -> str:
    names, weights = zip(*[(n, w) for n, w in _HAIR[sex] if n == "" or n in assets.pieces["hair"]], strict=True)
    odds = np.array(weights) + np.array([1.5 * (african > 0.6) * (n == "afro01") for n in names])
    return str(rng.choice(names, p=odds / odds.sum())) if odds.sum() else ""


def _hair_tints(rng: np.random.Generator, caucasian: float, age: float) -> tuple[Tint, Tint]:
    """Colours of hair and brows; brows stay darker."""
    light = rng.random() < 1.1 * caucasian - 0.15
    tint = (_LIGHT_HAIR if light else _DARK_HAIR)[int(rng.integers(7 if light else 3))]
    brow = _scaled(tint, 0.75)
    if rng.random() < (age - 42) / 30:
        tint = _GREY_HAIR[int(rng.integers(3))]
        brow = _scaled(tint, 0.6)
    return _scaled(tint, rng.uniform(0.9, 1.1)), brow


def _scaled(tint: Tint, factor: float) -> Tint:
    return (min(tint[0] * factor, 1.0), min(tint[1] * factor, 1.0), min(tint[2] * factor, 1.0))


def _eyes(rng: np.random.Generator, assets: Assets, caucasian: float) -> tuple[str, Tint]:
    """An iris texture and a tint; brown is the darkened light brown."""
    brown = [n for n in assets.eyes if n.startswith("brown")] or sorted(assets.eyes)
    other = [n for n in sorted(assets.eyes) if n not in brown]
    if other and rng.random() < 0.85 * caucasian - 0.15:
        return _one(rng, other), (1.0, 1.0, 1.0)
    depth = rng.uniform(0.45, 1.0)
    return _one(rng, brown), (depth, depth * 0.94, depth * 0.88)


def _clothes(rng: np.random.Generator, assets: Assets, sex: str) -> tuple[str, Tint | None, bool]:
    """A piece, its tint, and whether its print is left out."""
    other = {"female": "male_", "male": "female_"}[sex]
    # A hat alone is no clothing; the boiler suit lies open at the neck and fits either sex badly.
    names = [n for n in assets.pieces["clothes"] if not n.startswith((other, "fedora")) and "worksuit" not in n]
    if not names:
        raise UserError(f"{assets.folder / 'clothes'} has nothing for a {sex} person. {WHERE}")
    name = _one(rng, names)
    if rng.random() < 0.25 and assets.piece("clothes", name).diffuse is not None and name not in _LETTERED:
        return name, None, False
    red, green, blue = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.05, 0.65), rng.uniform(0.25, 0.95))
    return name, (red, green, blue), name in _LETTERED or bool(rng.random() < 0.4)
