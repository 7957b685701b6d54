"""The body's shape: MakeHuman's macro targets, blended as MakeHuman does, plus single targets.

A macro target is named after what it stands for, such as `universal-female-young-maxmuscle-averageweight`; its weight
is the product of the shares of those words.
"""

from __future__ import annotations

import numpy as np

from streamavatar.synth.human.assets import Assets
from streamavatar.synth.human.figure import Array
from streamavatar.synth.human.identity import HumanIdentity

_YOUNG, _OLD = 25.0, 90.0  # years that MakeHuman's young and old targets stand for


def body_shape(assets: Assets, identity: HumanIdentity) -> Array:
    """Vertices [V,3] of the base mesh for this person, decimetres."""
    weights = macro_weights(identity) | identity.details
    body = assets.base.vertices.astype(np.float32).copy()
    for name, weight in weights.items():
        if weight and name in assets.targets:
            rows, delta = assets.targets[name]
            body[rows] += weight * delta
    return body


def macro_weights(identity: HumanIdentity) -> dict[str, float]:
    """Target names and weights for sex, age, ancestry, muscle, weight and height."""
    old = float(np.clip((identity.age - _YOUNG) / (_OLD - _YOUNG), 0, 1))
    genders = {"female": 1 - identity.gender, "male": identity.gender}
    ages = {"young": 1 - old, "old": old}
    races = {"african": identity.african, "asian": identity.asian, "caucasian": identity.caucasian}
    muscles, weights = _levels("muscle", identity.muscle), _levels("weight", identity.weight)
    heights = _levels("height", identity.height)
    found: dict[str, float] = {}
    for gender, g in genders.items():
        for age, a in ages.items():
            for race, r in races.items():
                found[f"macrodetails/{race}-{gender}-{age}"] = g * a * r
            for muscle, m in muscles.items():
                for weight, w in weights.items():
                    found[f"macrodetails/universal-{gender}-{age}-{muscle}-{weight}"] = g * a * m * w
            for height in ("minheight", "maxheight"):
                stem = f"macrodetails/height/{gender}-{age}-averagemuscle-averageweight"
                found[f"{stem}-{height}"] = g * a * heights[height]
    return found


def _levels(what: str, value: float) -> dict[str, float]:
    """Shares of min, average and max for a value 0..1."""
    low, high = max(0.0, 1 - 2 * value), max(0.0, 2 * value - 1)
    return {f"min{what}": low, f"average{what}": 1 - low - high, f"max{what}": high}
