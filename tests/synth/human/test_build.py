"""A built figure keeps the contract of `figure.py`, on every kind of person."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from streamavatar.errors import UserError
from streamavatar.synth.human.assets import Assets
from streamavatar.synth.human.build import build_figure
from streamavatar.synth.human.figure import Array, Figure, Part
from streamavatar.synth.human.identity import HumanIdentity
from streamavatar.synth.human.tuck import tucked
from streamavatar.synth.visemes import VISEMES


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_parts_keep_the_contract(person: Callable[[int], Figure], seed: int) -> None:
    figure = person(seed)
    assert {"body", "eyes", "teeth", "tongue", "lashes", "brows", "clothes"} <= {p.name for p in figure.parts}
    bones = len(figure.skeleton.names)
    for part in figure.parts:
        count = len(part.vertices)
        assert part.vertices.dtype == part.uv.dtype == part.weights.dtype == part.deltas.dtype == np.float32
        assert part.uv.shape == (count, 2)
        assert part.triangles.max() == count - 1
        assert part.bones.shape == part.weights.shape == (count, 4)
        assert 0 <= part.bones.min() <= part.bones.max() < bones
        np.testing.assert_allclose(part.weights.sum(axis=1), 1, atol=1e-5)
        assert part.weights.min() >= 0
        assert part.deltas.shape == (len(figure.expressions), len(part.moved), 3)
        assert part.smooth.shape == (count,)
        assert np.isfinite(part.vertices).all()


def test_parents_come_first_and_visemes_are_there(person: Callable[[int], Figure]) -> None:
    figure = person(0)
    parents = figure.skeleton.parents
    assert (parents < np.arange(len(parents))).all()
    assert parents[0] == -1
    assert {f"viseme_{name}" for name in VISEMES} | {"jawOpen", "eyeBlinkLeft"} <= set(figure.expressions)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_a_person_has_the_size_of_one(person: Callable[[int], Figure], seed: int) -> None:
    figure = person(seed)
    names, heads = figure.skeleton.names, figure.skeleton.heads
    shoulders = heads[names.index("upperarm01.L"), 0] - heads[names.index("upperarm01.R"), 0]
    assert 0.25 < shoulders < 0.45
    top = max(p.vertices[:, 1].max() for p in figure.parts if p.name == "body")
    assert 0.5 < top - heads[names.index("upperleg01.L"), 1] < 1.1


def test_triangles_face_outwards(person: Callable[[int], Figure]) -> None:
    figure = person(0)
    eyes = next(p for p in figure.parts if p.name == "eyes")
    body = next(p for p in figure.parts if p.name == "body")
    centres = figure.skeleton.heads[eyes.bones[eyes.triangles[:, 0], 0]]
    assert (_across(eyes) * (eyes.vertices[eyes.triangles[:, 0]] - centres)).sum(axis=1).min() > -1e-12
    head = body.vertices[body.triangles[:, 0]]
    top = head[:, 1] > head[:, 1].max() - 0.10
    forehead = top & (head[:, 2] > head[top, 2].max() - 0.03)
    assert (_across(body)[forehead, 2] > 0).mean() > 0.7  # the rest lines lids and nostrils


def _across(part: Part) -> Array:
    corners = part.vertices[part.triangles]
    return np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])


def test_teeth_and_tongue_follow_the_jaw(person: Callable[[int], Figure]) -> None:
    figure = person(0)
    opening = figure.expressions.index("jawOpen")
    teeth, tongue = (next(p for p in figure.parts if p.name == name) for name in ("teeth", "tongue"))
    lower = teeth.deltas[opening, :, 1] < -0.008
    assert 0.3 < lower.sum() / len(teeth.vertices) < 0.7
    assert tongue.deltas[opening, :, 1].mean() < -0.008


def test_the_iris_is_round_and_ahead(person: Callable[[int], Figure]) -> None:
    eyes = next(p for p in person(1).parts if p.name == "eyes")
    texture = eyes.material.texture
    half = len(eyes.vertices) // 2
    front = eyes.vertices[:half, 2].argmax()
    u, v = eyes.uv[front]
    row, column = int((1 - v) * texture.shape[0]), int(u * texture.shape[1])
    assert texture[row, column, :3].max() < 60  # the pupil
    middle = np.ptp(eyes.vertices[:half, :2], axis=0)
    assert middle[0] == pytest.approx(middle[1], rel=0.02)


def test_skin_under_clothes_is_left_out(person: Callable[[int], Figure], assets: Assets) -> None:
    body = next(p for p in person(0).parts if p.name == "body")
    everything = 2 * (assets.base.groups == "body").sum()
    assert 0.3 * everything < len(body.triangles) < 0.75 * everything


def test_tucked_skin_moves_inwards_where_cloth_lies_on_it() -> None:
    square = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], np.float32)
    body = np.concatenate([square, square + np.float32([5, 0, 0])])
    faces = np.array([[0, 1, 2, 3], [4, 5, 6, 7]], np.int32)
    moved = tucked(body, faces, square + np.float32([0, 0, 0.05]), faces[:1])
    assert (moved[:4, 2] < -0.05).all()
    np.testing.assert_array_equal(moved[4:], body[4:])


def test_a_piece_that_the_folder_lacks_is_named(assets: Assets) -> None:
    who = replace(HumanIdentity.random(0, assets), clothes="spacesuit")
    with pytest.raises(UserError, match="spacesuit"):
        build_figure(assets, who)
