"""Training on a GPU: every stage that trains runs there, and its model comes back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from streamavatar.errors import UserError
from streamavatar.models.avatar import AvatarModel
from streamavatar.recipes import RECIPES
from streamavatar.synth.speech import flite_program
from streamavatar.training.parallel import World
from streamavatar.training.stages import STAGES, Run


@pytest.mark.gpu
def test_every_stage_runs_on_a_gpu(tmp_path: Path) -> None:
    try:
        flite_program()
    except UserError as error:
        pytest.skip(str(error))
    recipe = replace(RECIPES["micro"](), workers=2)
    Run(recipe, tmp_path, lambda stage, done, total, text: None, World(torch.device("cuda"))).run(list(STAGES))
    model = AvatarModel.load(tmp_path / "model")
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
