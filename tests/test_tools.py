"""What carries a run to a machine that takes little, and home again."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file

from streamavatar.data.latents import LatentSet
from streamavatar.errors import UserError
from streamavatar.models.avatar import AvatarModel
from streamavatar.recipes import RECIPES
from streamavatar.training.stages import Run


@pytest.fixture(scope="module")
def carry() -> ModuleType:
    path = Path(__file__).parents[1] / "tools" / "carry.py"
    spec = importlib.util.spec_from_file_location("carry", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that begins with a model of micro's sizes, and has random clips."""
    recipe = RECIPES["micro"]()
    torch.manual_seed(1)
    model = AvatarModel(recipe.model)
    model.save(tmp_path / "start")
    recipe = replace(recipe, start=str(tmp_path / "start"), audio=None, decoder=None)
    found = Run(recipe, tmp_path / "run", lambda stage, done, total, text: None)
    g, frames = recipe.model.geometry, recipe.frames
    shape = (8, g.latent_channels, recipe.latents, g.latent_height, g.latent_width)
    rows = (8, frames + 4, recipe.model.audio.feature_dim)
    LatentSet(
        latents=torch.randn(shape).cumsum(2).half(),
        talk=torch.randn(rows).clamp(-3, 3).half(),
        listen=torch.zeros(rows).half(),
        mouth=torch.rand(8, recipe.latents, g.latent_height, g.latent_width).half(),
        opening=torch.rand(8, frames).half(),
        state=torch.randint(0, 4, (8, frames), dtype=torch.int8),
    ).save(found.folder / "clips" / "clips-00000.safetensors")
    return found


def test_clips_arrive_as_they_left(carry: ModuleType, run: Run, tmp_path: Path) -> None:
    carry.pack(run.folder, tmp_path / "packed")
    carry.unpack(tmp_path / "packed", tmp_path / "there")
    before, after = (LatentSet.load(folder / "clips") for folder in (run.folder, tmp_path / "there"))
    for field in fields(LatentSet):
        a, b = getattr(before, field.name), getattr(after, field.name)
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        limit = 127 * carry.STEPS[field.name]
        error = (a.float().clamp(-limit, limit) - b.float()).abs().max().item()
        assert error <= carry.STEPS[field.name] * 0.51 + 1e-2, field.name


def test_weights_come_home(carry: ModuleType, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carry, "PIECE", 200_000)
    values = run.build().state_dict()
    trained = {n: v + 0.01 if n.startswith("transformer.") and v.is_floating_point() else v for n, v in values.items()}
    save_file({name: v.contiguous() for name, v in trained.items()}, run.weights("teacher"))
    carry.leave(run.folder, "teacher", tmp_path / "pieces")
    pieces = sorted((tmp_path / "pieces").iterdir())
    assert len(pieces) > 1
    assert all(name.startswith("transformer.") for path in pieces for name in load_file(path))
    run.weights("teacher").unlink()
    carry.fetch(tmp_path / "pieces", "teacher", run.folder)
    found = load_file(run.weights("teacher"))
    assert found.keys() == trained.keys()
    for name, value in trained.items():
        assert torch.allclose(found[name].float(), value.float(), rtol=1e-3, atol=1e-3), name


def test_missing_pieces_are_said(carry: ModuleType, run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no pieces of sid"):
        carry.fetch(tmp_path / "empty", "sid", run.folder)


def test_a_run_is_opened_as_it_was_made(carry: ModuleType, run: Run) -> None:
    assert carry.open_run(run.folder).recipe == run.recipe
    assert json.loads(json.dumps(asdict(run.recipe))) == json.loads((run.folder / "recipe.json").read_text())


def test_held_out_loss(
    carry: ModuleType, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(carry, "WINDOWS", 8)
    monkeypatch.setattr(carry, "BATCH", 4)
    carry.loss(run.folder, "start", run.folder / "clips")
    assert re.match(r"run start: loss [\d.]+ vs_still [\d.]+ mouth [\d.]+$", capsys.readouterr().out)
