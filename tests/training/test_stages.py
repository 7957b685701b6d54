"""The stages that need neither pictures nor speech, from given parts to a model folder; `recipes` tests the whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from streamavatar.config import FlowCodecConfig, ModelConfig
from streamavatar.data.augment import augmented, in_place
from streamavatar.data.latents import LatentSet
from streamavatar.data.prepare import clips_of, mouth_cells
from streamavatar.data.produce import produce
from streamavatar.data.reader import ShardSet, WindowOrder
from streamavatar.errors import UserError
from streamavatar.geometry import Geometry
from streamavatar.media import read_video
from streamavatar.models.audio import AFTER
from streamavatar.models.avatar import AvatarModel
from streamavatar.synth.source import Puppets
from streamavatar.training.recipe import Recipe
from streamavatar.training.stages import STAGES, Run
from streamavatar.training.trainer import TrainConfig

SHORT = TrainConfig(steps=4, batch=2, warmup=1, save_every=2, log_every=2)
GIVEN, MADE = ["audio", "linear", "clips", "decoder"], ["teacher", "pairs", "student", "export"]


@pytest.fixture
def recipe(small: ModelConfig) -> Recipe:
    transformer = replace(small.transformer, prediction="sample", residual=True, reference_channels=8)
    model = replace(small, transformer=transformer)
    return Recipe(model, SHORT, SHORT, SHORT, SHORT, latents=10, window=7, pairs=40, solver_steps=2)


def quiet(stage: str, done: int, total: int, text: str) -> None:
    pass


def give(run: Run, make_clips: Callable[..., LatentSet]) -> AvatarModel:
    """What the first stages leave: an encoder, a codec and clips."""
    torch.manual_seed(7)
    model = AvatarModel(run.recipe.model)
    for buffer in model.codec.buffers():
        buffer.copy_(torch.rand_like(buffer) + 0.5)
    run.keep(model.audio.encoder, "audio")
    run.keep(model.codec, "linear")
    with torch.no_grad():
        model.codec.detail.leave.bias.add_(1)
    run.keep(model.codec, "codec")
    make_clips(run.recipe.model).save(run.folder / "clips" / "clips-00000.safetensors")
    for stage in GIVEN:
        run.mark(stage)
    return model


def test_from_parts_to_a_model_folder(recipe: Recipe, tmp_path: Path, make_clips: Callable[..., LatentSet]) -> None:
    told: list[str] = []
    recipe = replace(recipe, student=replace(SHORT, sample_every=4))
    run = Run(recipe, tmp_path / "run", lambda stage, *rest: told.append(stage))
    given = give(run, make_clips)
    geometry = recipe.model.geometry
    picture = np.full((1, 1, geometry.height, geometry.width, 3), 90, np.uint8)
    (run.folder / "linear" / "frames").mkdir()
    np.savez(run.folder / "linear" / "frames" / "frames-00000.npz", frames=picture)
    run.run(list(STAGES))
    assert all(run.done(stage) for stage in STAGES)
    assert set(told) == {"teacher", "pairs", "student"}  # this recipe has no SiD
    model = AvatarModel.load(tmp_path / "run" / "model")
    assert model.config == recipe.model
    for part, expected in (("audio.encoder", given.audio.encoder), ("codec", given.codec)):
        for name, value in expected.state_dict().items():
            stored = model.state_dict()[f"{part}.{name}"]
            assert torch.equal(stored, value.bfloat16().float()) or torch.equal(stored, value), name
    torch.testing.assert_close(model.transformer.reference_scale, given.codec.latent_spread)
    assert model.transformer.head.head.weight.any()

    frames = read_video(tmp_path / "run" / "student" / "samples" / "step-0000004.mp4")
    longest = 1 + 3 * (recipe.window - 1)  # in latents; what it was trained on, three times over
    assert frames.shape == (geometry.frames_of(longest), geometry.height, geometry.width, 3)

    told.clear()
    Run(recipe, tmp_path / "run", lambda stage, *rest: told.append(stage)).run(list(STAGES))
    assert told == []
    otherwise = replace(SHORT, accumulate=2, recompute=True, async_save=True)  # how, not what
    Run(replace(recipe, teacher=otherwise), tmp_path / "run", lambda stage, *rest: told.append(stage)).run(["teacher"])
    assert told == []


@pytest.mark.parametrize(("ships", "part"), [("student", "student"), ("", "sid")])
def test_the_student_that_ships(
    ships: Literal["", "student"], part: str, recipe: Recipe, tmp_path: Path, make_clips: Callable[..., LatentSet]
) -> None:
    run = Run(replace(recipe, sid=SHORT, ships=ships), tmp_path / "run", quiet)
    given, kept = give(run, make_clips), {}
    for name in ("student", "sid"):
        given.transformer.head.head.weight.data.normal_()
        run.keep(given, name)
        kept[name] = given.transformer.head.head.weight.clone()
    for stage in list(STAGES)[:-1]:
        run.mark(stage)
    run.run(["export"])
    made = AvatarModel.load(run.folder / "model").transformer.head.head.weight
    assert torch.equal(made, kept[part].bfloat16().float())
    assert json.loads((run.folder / "model" / "card.json").read_text())["student"] == part


def test_runs_are_reproducible(recipe: Recipe, tmp_path: Path, make_clips: Callable[..., LatentSet]) -> None:
    for seed, name in enumerate(("a", "b")):
        run = Run(recipe, tmp_path / name, quiet)
        give(run, make_clips)
        torch.manual_seed(seed)  # what was drawn before does not matter
        run.run(["teacher"])
    a, b = ((tmp_path / name / "teacher.safetensors").read_bytes() for name in ("a", "b"))
    assert a == b


def test_a_folder_of_another_model_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    Run(recipe, tmp_path, quiet)
    Run(replace(recipe, teacher=replace(SHORT, steps=8)), tmp_path, quiet)  # longer training of the same model is fine
    with pytest.raises(UserError, match=r"another model; give another --out"):
        Run(replace(recipe, model=replace(recipe.model, name="other")), tmp_path, quiet)


def test_changed_settings_go_on_and_stale_stages_start_anew(
    recipe: Recipe, tmp_path: Path, make_clips: Callable[..., LatentSet]
) -> None:
    told: list[tuple[str, int]] = []

    def tell(stage: str, done: int, total: int, text: str) -> None:
        told.append((stage, done))

    run = Run(recipe, tmp_path / "run", tell)
    give(run, make_clips)
    run.run(list(STAGES))
    told.clear()
    longer = Run(replace(recipe, teacher=replace(SHORT, steps=6)), tmp_path / "run", tell)
    assert not longer.done("teacher")
    longer.run(list(STAGES))
    assert told[0] == ("teacher", 6)  # went on from step 4; logged every two steps
    assert ("student", 2) in told  # what builds on it started anew
    assert all(longer.done(stage) for stage in STAGES)

    # A student that was killed half-way must not go on from checkpoints of the teacher before.
    (tmp_path / "run" / "student" / "DONE").unlink()
    told.clear()
    Run(replace(recipe, teacher=replace(SHORT, steps=8)), tmp_path / "run", tell).run(list(STAGES))
    assert ("student", 2) in told


@pytest.mark.parametrize(("stage", "missing"), [("teacher", "audio"), ("pairs", "teacher"), ("export", "student")])
def test_a_stage_out_of_order(recipe: Recipe, tmp_path: Path, stage: str, missing: str) -> None:
    with pytest.raises(UserError, match=f"{missing}.safetensors is missing"):
        Run(recipe, tmp_path, quiet).run([stage])


def test_training_goes_on_from_a_model_folder(
    recipe: Recipe, tmp_path: Path, make_clips: Callable[..., LatentSet]
) -> None:
    first = Run(recipe, tmp_path / "first", quiet)
    give(first, make_clips)
    first.run(list(STAGES))
    start = tmp_path / "first" / "model"
    onward = replace(recipe, start=str(start), teacher=replace(SHORT, steps=0, save_every=1))
    run = Run(onward, tmp_path / "second", quiet)
    for part in ("audio", "linear"):
        shutil.copy(first.weights(part), run.weights(part))
    make_clips(recipe.model).save(run.folder / "clips" / "clips-00000.safetensors")
    for stage in GIVEN:
        run.mark(stage)
    run.run(["teacher"])
    found, expected = run.build("teacher"), AvatarModel.load(start)
    for name, value in expected.transformer.state_dict().items():
        torch.testing.assert_close(found.transformer.state_dict()[name], value, msg=name)

    card = json.loads((start / "card.json").read_text())
    kept = Run(replace(onward, teacher=None, sid=SHORT), tmp_path / "kept", quiet)
    for part in ("audio", "linear", "codec"):
        shutil.copy(first.weights(part), kept.weights(part))
    for stage in ("audio", "linear", "decoder"):
        kept.mark(stage)
    kept.run(list(STAGES))  # no clips are made, and nobody is distilled
    for name, value in AvatarModel.load(kept.folder / "model").state_dict().items():
        assert torch.equal(value, expected.state_dict()[name]), name
    made = json.loads((kept.folder / "model" / "card.json").read_text())
    assert made["student"] == "start"
    assert made["start"] == card
    assert set(made["stages"]) == {"audio", "linear", "decoder"}

    wider = replace(recipe.model, transformer=replace(recipe.model.transformer, ffn_dim=96))
    with pytest.raises(UserError, match="its transformer is not the recipe's"):
        Run(replace(onward, model=wider), tmp_path / "third", quiet).build()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    produce(Puppets(0, 64, frames=30, tones=True), folder, hours=0.001, workers=1, tell=lambda done, total: None)
    return folder


def test_clips_that_come_again_are_mirrored_and_changed(shards: Path) -> None:
    model = ModelConfig(geometry=Geometry(height=64, width=64))
    length, found = 13, ShardSet(shards, "train")
    order = WindowOrder(found.entries, length + AFTER, 0)
    first, second = (next(clips_of(0, shard, len(order), length, model, shards)) for shard in (0, 1))
    assert first.frames.shape == second.frames.shape
    entry, draw = order.at(1, 0)
    plain = found.random_window(entry, length + AFTER, draw)
    expected = augmented(plain, np.random.default_rng(draw), mirrored=True)
    np.testing.assert_array_equal(second.frames, expected.frames)
    np.testing.assert_array_equal(second.landmarks["mouth"], expected.landmarks["mouth"])
    assert np.array_equal(second.agent, plain.agent)


def test_clips_are_cut_to_the_window_of_a_codec(shards: Path) -> None:
    codec = FlowCodecConfig(appearance=6, flow=10, widths=(8, 8), window=(16, 8, 32, 32), face=(30, 20))
    geometry = Geometry(height=64, width=64, spatial_stride=16)
    model = ModelConfig(geometry=geometry, codec=codec)
    length, found = 13, ShardSet(shards, "train")
    order = WindowOrder(found.entries, length + AFTER, 0)
    first, again = (next(clips_of(0, shard, len(order), length, model, shards)) for shard in (0, 1))
    assert first.frames.shape == again.frames.shape == (length + AFTER, 32, 32, 3)
    entry, draw = order.at(0, 0)
    whole = in_place(found.random_window(entry, length + AFTER, draw), codec.face, np.random.default_rng(draw))
    np.testing.assert_array_equal(first.frames, whole.frames[:, 8:40, 16:48])
    np.testing.assert_array_equal(first.landmarks["mouth"], whole.landmarks["mouth"] - (16, 8, 16, 8))
    cells = mouth_cells(np.array([[8.0, 16, 24, 20]]), geometry, codec.cell(geometry))
    assert cells.tolist() == [[[0] * 4, [0] * 4, [0, 0.5, 0.5, 0], [0] * 4]]


def test_stages_read_shards(recipe: Recipe, tmp_path: Path) -> None:
    """Clips come from a folder of shards where the recipe names one, and other pictures are refused."""
    shards, size = tmp_path / "shards", 64
    produce(Puppets(0, size, frames=60, tones=True), shards, hours=0.001, workers=1, tell=lambda done, total: None)
    square = replace(recipe.model, geometry=replace(recipe.model.geometry, width=size))
    recipe = replace(recipe, model=square, data=str(shards), clips=2, codec_clips=2, workers=1)
    run = Run(recipe, tmp_path / "run", quiet)
    torch.manual_seed(0)
    run.keep(AvatarModel(square).audio.encoder, "audio")
    run.mark("audio")
    run.run(["linear", "clips"])
    clips = LatentSet.load(tmp_path / "run" / "clips")
    assert clips.latents.shape[2:] == (recipe.latents, 4, 4)
    assert clips.mouth.amax() > 0.1
    large = replace(square, geometry=replace(square.geometry, width=96))
    with pytest.raises(UserError, match="pictures are 64x64, not 64x96"):
        Run(replace(recipe, model=large), tmp_path / "other", quiet).run(["linear"])
