"""The asset folder, where there is one, and a few people from it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from streamavatar.synth.human.assets import Assets
from streamavatar.synth.human.build import build_figure
from streamavatar.synth.human.figure import Figure
from streamavatar.synth.human.identity import HumanIdentity
from streamavatar.synth.performance import Performance, neutral

SHARED = Path(os.environ.get("STREAMAVATAR_ASSETS", Path(__file__).resolve().parents[3] / ".." / "shared" / "assets"))


@pytest.fixture(scope="session")
def asset_folder() -> Path:
    folder = SHARED / "makehuman"
    if not folder.is_dir():
        pytest.skip(f"no asset folder at {folder}")
    return folder


@pytest.fixture(scope="session")
def assets(asset_folder: Path) -> Assets:
    return Assets.open(asset_folder)


@pytest.fixture(scope="session")
def person(assets: Assets) -> Callable[[int], Figure]:
    """person(seed) -> the figure of that seed, built once."""
    return lru_cache(maxsize=8)(lambda seed: build_figure(assets, HumanIdentity.random(seed, assets)))


@pytest.fixture
def acting() -> Callable[..., Performance]:
    """acting(frames, name=value per frame or for all) -> the neutral performance with tracks replaced."""

    def make(frames: int = 1, **tracks: object) -> Performance:
        still = neutral(frames)
        shaped = {
            name: np.broadcast_to(np.asarray(value, np.float32), getattr(still, name).shape).copy()
            for name, value in tracks.items()
        }
        return replace(still, **shaped)

    return make
