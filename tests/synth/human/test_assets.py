"""Reading an asset folder, and what is said about a damaged one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from streamavatar.errors import UserError
from streamavatar.synth.human.assets import WHERE, Assets, texture
from streamavatar.synth.human.fitting import read_fitting
from streamavatar.synth.human.mesh import read_obj

QUAD = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\ng front\nf 1/1 2/2 3/3 4/4\nf 1/1 2/2 3/3\n"


@pytest.fixture
def copy(asset_folder: Path, tmp_path: Path) -> Path:
    """The folder as links, so that single files can be spoilt."""
    for path in asset_folder.rglob("*"):
        target = tmp_path / path.relative_to(asset_folder)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.symlink(path, target)
    return tmp_path


def test_an_obj_becomes_triangles_with_their_texture_corners(tmp_path: Path) -> None:
    path = tmp_path / "quad.obj"
    path.write_text(QUAD)
    mesh = read_obj(path)
    corners, uv = mesh.triangles()
    assert sorted(map(tuple, corners.tolist())) == [(0, 1, 2), (0, 1, 2), (0, 2, 3)]
    assert np.array_equal(mesh.vertices[corners][..., :2], mesh.uv[uv])
    assert mesh.groups.tolist() == ["front", "front"]


@pytest.mark.parametrize("spoilt", ["", QUAD.replace("3/3 4/4", "3/3 9/4"), QUAD.replace("v 1 0 0", "v 1 x 0")])
def test_a_damaged_obj_is_refused(tmp_path: Path, spoilt: str) -> None:
    path = tmp_path / "quad.obj"
    path.write_text(spoilt)
    with pytest.raises(ValueError, match=r"."):
        read_obj(path)


def test_a_fitting_follows_its_anchors_and_grows_with_the_body(tmp_path: Path) -> None:
    path = tmp_path / "hat.mhclo"
    path.write_text(
        "x_scale 0 1 2.0\ny_scale 0 2 1.0\nz_scale 0 2 0\nverts 0\nmaterial hat.mhmat\n"
        "2\n0 1 2 0.5 0.25 0.25 0.1 0.2 0.3\ndelete_verts\n0 - 1\n"
    )
    fitting = read_fitting(path, 3)
    body = np.array([[0, 0, 0], [4, 0, 0], [0, 1, 0]], np.float32)
    assert fitting.hidden.tolist() == [0, 1]
    np.testing.assert_allclose(fitting.fit(body), [[0, 1, 0], [1.0 + 2 * 0.1, 0.25 + 0.2, 0.3]], rtol=1e-6)
    with pytest.raises(ValueError, match="base mesh"):
        read_fitting(path, 2)


def test_a_folder_that_is_not_there_says_where_the_packs_come_from(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="asset folder") as caught:
        Assets.open(tmp_path / "nowhere")
    assert WHERE in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["core/base.obj", "core/targets.npz", "core/default.mhskel", "core/default_weights.mhw", "eyes", "hair",
     "arkit_oculus_targets_mit.zip", "skins_render_only"],
)  # fmt: skip
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    target = copy / name
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink()
    with pytest.raises(UserError, match=Path(name).name.split("_mit")[0].split("_render")[0]) as caught:
        Assets.open(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["core/base.obj", "core/targets.npz", "core/default.mhskel", "arkit_oculus_targets_mit.zip"]
)
def test_a_file_cut_short_is_named(copy: Path, asset_folder: Path, name: str) -> None:
    whole = (asset_folder / name).read_bytes()
    (copy / name).unlink()
    (copy / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=f"{Path(name).name} is damaged"):
        Assets.open(copy)


def test_a_damaged_texture_is_named(tmp_path: Path) -> None:
    path = tmp_path / "skin.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0 nothing")
    with pytest.raises(UserError, match=r"skin\.jpg is damaged"):
        texture(path)


def test_large_textures_are_scaled_down(assets: Assets) -> None:
    skin = texture(next(iter(assets.skins.values())))
    assert skin.shape == (1024, 1024, 4)
    assert skin.dtype == np.uint8


def test_every_piece_can_be_read(assets: Assets) -> None:
    for kind, names in assets.pieces.items():
        for name in names:
            piece = assets.piece(kind, name)
            assert len(piece.mesh.vertices) == len(piece.fitting.anchors)
    with pytest.raises(UserError, match="has no wig"):
        assets.piece("hair", "wig")
