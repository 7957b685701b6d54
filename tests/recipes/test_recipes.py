"""Recipes hold together, and the smallest goes all the way from nothing to a model that runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from streamavatar.models.avatar import AvatarModel
from streamavatar.models.transformer import Conditions
from streamavatar.positions import Positions
from streamavatar.recipes import RECIPES
from streamavatar.rollout import Passes, make_sequence
from streamavatar.training.stages import STAGES, Recipe, Run


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return RECIPES[request.param]()


def test_clips_and_windows_are_whole_chunks(recipe: Recipe) -> None:
    chunk = recipe.model.geometry.chunk_latents
    assert (recipe.latents - 1) % chunk == (recipe.window - 1) % chunk == 0
    assert recipe.window <= recipe.latents
    assert recipe.window > 1 + chunk  # at least two chunks, so that there is a past


def test_the_default_model_has_the_paper_s_context_and_trains_in_it() -> None:
    recipe = RECIPES["default"]()
    positions = Positions(recipe.model.geometry, recipe.model.context)
    assert positions.largest == 9
    assert positions.slots == 2
    chunks = (recipe.window - 1) // recipe.model.geometry.chunk_latents
    assert positions.shift(chunks) > 0  # RAPR acts within a training sample


def test_sizes(recipe: Recipe) -> None:
    weights = sum(p.numel() for p in AvatarModel(recipe.model).parameters())
    assert weights < {"people-256": 13e6, "puppets-128": 12e6, "micro": 1.2e6}[recipe.model.name]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("flite") is None, reason="the speech program flite is not installed")
def test_micro_from_nothing_to_a_model(tmp_path: Path) -> None:
    recipe, finished = RECIPES["micro"](), []

    def tell(stage: str, done: int, total: int, text: str) -> None:
        if done == total and stage not in finished:
            finished.append(stage)

    Run(recipe, tmp_path, tell).run(list(STAGES))
    assert finished == [
        "speech",
        "audio",
        "frames",
        "clips",
        "decoder",
        "teacher",
        "pairs",
        "student",
        "sid",
        "adversarial",
    ]
    model = AvatarModel.load(tmp_path / "model")
    assert model.config == recipe.model
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())

    generator, audio, geometry = torch.Generator().manual_seed(0), model.config.audio, model.config.geometry
    picture = torch.rand(1, 3, geometry.height, geometry.width, generator=generator)
    latent, state = model.codec.open(picture)
    tokens = torch.randn(2, 1, 7, audio.tokens, audio.dim, generator=generator)
    size = (1, geometry.latent_channels, geometry.chunk_latents, geometry.latent_height, geometry.latent_width)
    chunks = make_sequence(
        model.transformer,
        model.ring_cache(),
        Conditions(*tokens, reference=latent),
        lambda chunk, step: torch.randn(size, generator=generator),
        Passes.of(model.config),
        geometry.chunk_latents,
    )
    for chunk in chunks:
        frames, state = model.codec.decode(chunk, state)
        assert frames.shape == (1, 3, geometry.chunk_frames, geometry.height, geometry.width)
        assert bool(frames.isfinite().all())
