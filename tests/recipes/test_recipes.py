"""Recipes hold together, and the smallest goes all the way from nothing to a model that runs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from streamavatar.errors import UserError
from streamavatar.models.avatar import AvatarModel
from streamavatar.models.transformer import Conditions
from streamavatar.positions import Positions
from streamavatar.recipes import RECIPES
from streamavatar.recipes.wan22_5b import small_wan
from streamavatar.rollout import Passes, make_sequence
from streamavatar.training.recipe import Recipe
from streamavatar.training.stages import STAGES, Run


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
    with torch.device("meta"):
        weights = sum(p.numel() for p in AvatarModel(recipe.model).parameters())
    assert weights < {"people-256": 17.1e6, "puppets-128": 12e6, "micro": 1.2e6, "wan22-5b": 7.5e9}[recipe.model.name]


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


def test_the_paper_s_numbers() -> None:
    recipe = RECIPES["wan22_5b"]()
    stages = (recipe.teacher, recipe.student, recipe.sid, recipe.adversarial)
    numbers = [(stage.steps, stage.batch, stage.lr) for stage in stages if stage is not None]
    assert numbers == [(20000, 32, 5e-6), (5000, 8, 2e-6), (6000, 16, 3e-6), (2 * 1400, 32, 5e-6)]
    assert all(stage.rate(stage.steps - 1) == stage.lr for stage in stages if stage is not None)
    assert recipe.window == recipe.latents == 31
    assert recipe.model.geometry.tokens_per_latent == 638


def test_the_full_size_says_what_it_lacks(tmp_path: Path) -> None:
    recipe = RECIPES["wan22_5b"]()
    with pytest.raises(UserError, match="--set start=FOLDER"):
        Run(recipe, tmp_path, quiet).run(["audio"])
    with pytest.raises(UserError, match="928x704: give a folder of shards with --set data=FOLDER"):
        Run(recipe, tmp_path, quiet).run(["clips"])


def quiet(stage: str, done: int, total: int, text: str) -> None:
    pass


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("flite") is None, reason="the speech program flite is not installed")
@pytest.mark.parametrize("rank", [0, 2])
def test_a_small_wan_goes_through_every_stage(tmp_path: Path, rank: int) -> None:
    """Wan's codec, text attention and wav2vec 2.0, all reduced: from a model folder to another by the 5B's recipe."""
    recipe = small_wan()
    recipe = replace(recipe, start=str(tmp_path / "start"), lora=replace(recipe.lora, rank=rank))
    torch.manual_seed(0)
    model = AvatarModel(recipe.model)
    torch.nn.init.normal_(model.transformer.head.head.weight, std=0.1)  # as trained: nothing learns below a zero
    model.text = torch.randn(1, 512, recipe.model.transformer.text_dim)
    model.save(tmp_path / "start", torch.float32)

    finished: list[str] = []

    def tell(stage: str, done: int, total: int, text: str) -> None:
        if done == total:
            finished.append(stage)

    Run(recipe, tmp_path / "run", tell).run(list(STAGES))
    assert list(dict.fromkeys(finished)) == ["clips", "teacher", "pairs", "student", "sid", "adversarial"]
    made = AvatarModel.load(tmp_path / "run" / "model")
    assert made.config == recipe.model
    assert made.text is not None
    state = made.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(bool(value.isfinite().all()) for value in state.values())
    changed = {n for n, v in model.state_dict().items() if not torch.equal(v.bfloat16().float(), state[n].float())}
    assert "transformer.blocks.0.talk_attn.o.weight" in changed
    assert not any(name.startswith(("codec.encoder", "codec.decoder", "audio.encoder")) for name in changed)
