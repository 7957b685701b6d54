"""Scenes around a figure made by hand: a box for a head on a box for a body."""

from __future__ import annotations

import numpy as np
import pytest

from streamavatar.synth.human.figure import Array, Figure, Material, Part, Skeleton
from streamavatar.synth.human.scene import Framing, head_box, random_scene, studio_scene

SEEDS = range(24)


def box(middle: tuple[float, float, float], size: tuple[float, float, float], bone: int) -> Part:
    """Corners alone: scenes look at vertices, not at triangles."""
    corners = np.stack(np.meshgrid(*[[-0.5, 0.5]] * 3), axis=-1).reshape(8, 3) * size + middle
    weights = np.tile(np.float32([1, 0, 0, 0]), (8, 1))
    none = np.zeros((0, 3), np.int32)
    return Part(
        "box", corners.astype(np.float32), np.zeros((8, 2), np.float32), none, np.full((8, 4), bone, np.int32), weights,
        np.zeros(0, np.int32), np.zeros((0, 0, 3), np.float32), np.arange(8, dtype=np.int32),
        Material("skin", np.zeros((1, 1, 4), np.uint8)),
    )  # fmt: skip


def person(tall: float = 1.0, at: float = 1.5) -> Figure:
    """A head 0.23 m tall, 0.15 m wide (times `tall`) its middle `at` metres high; the jaw has its own bone."""
    head = box((0.0, at + 0.04 * tall, 0.05), (0.15 * tall, 0.15 * tall, 0.2 * tall), 1)
    jaw = box((0.0, at - 0.075 * tall, 0.05), (0.1 * tall, 0.08 * tall, 0.2 * tall), 2)
    body = box((0.0, at - 0.7 * tall, 0.0), (0.45 * tall, 1.0 * tall, 0.25), 0)
    rest = np.zeros((3, 3), np.float32)
    return Figure((body, head, jaw), Skeleton(("root", "head", "jaw"), np.int32([-1, 0, 1]), rest, rest), ())


def extent(figure: Figure, part: int, framing: Framing, seed: int | None) -> Array:
    """[2,2] least and greatest pixel of a part at 256 x 256."""
    scene = studio_scene(figure, framing, 16) if seed is None else random_scene(seed, figure, framing, 16)
    pixels = scene.camera.project(figure.parts[part].vertices, 256)
    return np.stack([pixels.min(axis=0), pixels.max(axis=0)])


def test_the_head_is_found_with_its_jaw() -> None:
    middle, tall = head_box(person())
    np.testing.assert_allclose(middle, [0.0, 1.5, 0.05], atol=1e-6)
    assert tall == pytest.approx(0.23)


def test_a_figure_without_a_head_is_refused() -> None:
    whole = person()
    with pytest.raises(ValueError, match="no bone named head"):
        head_box(
            Figure(whole.parts, Skeleton(("a", "b", "c"), *([whole.skeleton.parents] + [whole.skeleton.heads] * 2)), ())
        )
    with pytest.raises(ValueError, match="no skin hangs"):
        head_box(Figure(whole.parts[:1], whole.skeleton, ()))


@pytest.mark.parametrize("seed", [None, *SEEDS])
@pytest.mark.parametrize(("tall", "at"), [(1.0, 1.5), (0.85, 0.4)])
def test_bust_shows_the_whole_head_large_and_the_shoulders(seed: int | None, tall: float, at: float) -> None:
    figure = person(tall, at)
    (left, top), (right, _) = extent(figure, 1, "bust", seed)
    assert 95 < right - left < 135  # ears included
    assert 0 <= top < 50
    assert left > 30
    assert right < 226
    (_, collar), _ = extent(figure, 0, "bust", seed)
    assert collar < 240


@pytest.mark.parametrize("seed", [None, *SEEDS])
def test_half_body_shows_more(seed: int | None) -> None:
    (left, _), (right, _) = extent(person(), 1, "half", seed)
    assert 38 < right - left < 62
    (left, top), (right, _) = extent(person(), 0, "half", seed)
    assert left > 0
    assert right < 256
    assert top < 125


def test_the_same_seed_gives_the_same_scene_and_others_differ() -> None:
    first, again = (random_scene(3, person(), "bust", 64) for _ in range(2))
    assert (first.camera, first.light) == (again.camera, again.light)
    np.testing.assert_array_equal(first.background, again.background)
    scenes = [random_scene(seed, person(), "bust", 32) for seed in SEEDS]
    assert len({s.camera for s in scenes}) == len({s.light for s in scenes}) == len(SEEDS)
    assert len({s.background.tobytes() for s in scenes}) == len(SEEDS)


def test_light_always_reaches_the_face() -> None:
    for seed in SEEDS:
        light = random_scene(seed, person(), "bust", 32).light
        assert np.linalg.norm(light.direction) == pytest.approx(1)
        assert light.direction[2] > 0.2
        assert light.direction[1] > 0
        assert min(light.key) > 0.5
        assert min(*light.fill, *light.sky, *light.ground) > 0


def test_backgrounds_fit_and_vary() -> None:
    pictures = np.stack([random_scene(seed, person(), "bust", 48).background for seed in SEEDS])
    assert pictures.shape == (len(SEEDS), 48, 48, 3)
    assert pictures.dtype == np.uint8
    means = pictures.mean(axis=(1, 2, 3))
    assert means.min() < 70
    assert means.max() > 160
