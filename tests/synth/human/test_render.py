"""The renderer on figures made by hand: a few squares, one bone each, one expression."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from streamavatar.errors import UserError
from streamavatar.synth.human import render
from streamavatar.synth.human.figure import Camera, Figure, Kind, Light, Material, Motion, Part, Pixels, Scene, Skeleton
from streamavatar.synth.human.render import Renderer
from streamavatar.synth.human.surface import Surface

SIZE = 64
CAMERA = Camera((0.0, 0.0, 2.0), (0.0, 0.0, 0.0), 30.0)
LIGHT = Light((0.0, 0.6, 0.8), (0.8, 0.8, 0.8), (0.1, 0.1, 0.1), (0.2, 0.2, 0.2), (0.2, 0.2, 0.2))
BLUE = (10, 20, 200)


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    try:
        made = Renderer(SIZE)
    except UserError as error:
        pytest.skip(str(error))
    with made:
        yield made


def square(
    bone: int = 0, kind: Kind = "cloth", half: float = 0.2, middle: tuple[float, float, float] = (0, 0, 0)
) -> Part:
    """Upright, facing the viewer; at full weight the expression moves it 0.1 m to the viewer's right."""
    corners = np.array([[-half, -half, 0], [half, -half, 0], [half, half, 0], [-half, half, 0]], np.float32)
    weights = np.zeros((4, 4), np.float32)
    weights[:, 0] = 1
    return Part(
        name=kind,
        vertices=corners + np.float32(middle),
        uv=np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32),
        triangles=np.array([[0, 1, 2], [0, 2, 3]], np.int32),
        bones=np.full((4, 4), bone, np.int32),
        weights=weights,
        moved=np.arange(4, dtype=np.int32),
        deltas=np.tile(np.float32([0.1, 0, 0]), (1, 4, 1)),
        smooth=np.arange(4, dtype=np.int32),
        material=Material(kind, np.full((8, 8, 4), 230, np.uint8)),
    )


def figure(*parts: Part) -> Figure:
    bones = 1 + max(int(p.bones.max()) for p in parts)
    skeleton = Skeleton(
        tuple(f"bone{b}" for b in range(bones)),
        np.arange(-1, bones - 1, dtype=np.int32),
        np.zeros((bones, 3), np.float32),
        np.ones((bones, 3), np.float32),
    )
    return Figure(parts, skeleton, ("aside",))


def motion(
    who: Figure, weights: list[float], moves: dict[tuple[int, int], tuple[float, float, float]] | None = None
) -> Motion:
    """`moves` maps (frame, bone) to how far the bone is shifted."""
    bones = np.tile(np.eye(3, 4, dtype=np.float32), (len(weights), len(who.skeleton.names), 1, 1))
    for (frame, bone), shift in (moves or {}).items():
        bones[frame, bone, :, 3] = shift
    return Motion(np.array(weights, np.float32)[:, None], bones)


def scene(size: int = SIZE) -> Scene:
    return Scene(CAMERA, LIGHT, np.full((size, size, 3), BLUE, np.uint8))


def drawn(frame: Pixels) -> np.ndarray:
    """Where something other than the background is."""
    return (frame != BLUE).any(axis=-1)


def assert_covers(frame: Pixels, part: Part, shift: tuple[float, float, float]) -> None:
    corners = CAMERA.project(part.vertices + np.float32(shift), SIZE)
    rows, columns = np.nonzero(drawn(frame))
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(found, [*corners.min(axis=0), *corners.max(axis=0)], atol=1.0)


@pytest.mark.parametrize("kind", ["skin", "eye", "teeth", "tongue", "cloth", "hair", "brows", "lashes"])
def test_a_square_lies_where_the_camera_projects_it(renderer: Renderer, kind: Kind) -> None:
    part = square(kind=kind, middle=(0.05, 0.1, 0.0))
    who = figure(part)
    frames = renderer.render(who, motion(who, [0.0, 1.0, 0.5], {(2, 0): (0.0, -0.1, 0.1)}), scene())
    assert frames.shape == (3, SIZE, SIZE, 3)
    assert frames.dtype == np.uint8
    for frame, shift in zip(frames, [(0, 0, 0), (0.1, 0, 0), (0.05, -0.1, 0.1)], strict=True):
        assert_covers(frame, part, shift)


def test_a_surface_has_no_holes_and_the_background_stays(renderer: Renderer) -> None:
    who = figure(square())
    frame = renderer.render(who, motion(who, [0.0]), scene())[0]
    rows, columns = np.nonzero(drawn(frame))
    inside = drawn(frame)[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert inside.all()
    assert (frame[~drawn(frame)] == BLUE).all()


def test_edges_blend_without_a_dark_fringe(renderer: Renderer) -> None:
    part = square()
    turn = np.float32([[np.cos(0.3), -np.sin(0.3), 0], [np.sin(0.3), np.cos(0.3), 0], [0, 0, 1]])
    who = figure(replace(part, vertices=part.vertices @ turn.T))
    frame = renderer.render(who, motion(who, [0.0]), scene())[0]
    solid = frame[..., 0] > 180
    assert (frame >= np.minimum(frame[solid].min(axis=0), BLUE).astype(int) - 3).all()
    assert (drawn(frame) & ~solid).sum() > 20


def test_the_background_is_not_turned(renderer: Renderer) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
    who = figure(square(half=0.01))
    frame = renderer.render(who, motion(who, [0.0]), replace(scene(), background=picture))[0]
    np.testing.assert_array_equal(frame[:20], picture[:20])


def test_texture_is_the_right_way_up(renderer: Renderer) -> None:
    texture = np.full((8, 8, 4), 255, np.uint8)
    texture[:4, :, :3] = (220, 20, 20)
    part = square()
    who = figure(replace(part, material=replace(part.material, texture=texture)))
    frame = renderer.render(who, motion(who, [0.0]), scene())[0].astype(int)
    upper, lower = frame[SIZE // 2 - 6, SIZE // 2], frame[SIZE // 2 + 6, SIZE // 2]
    assert upper[0] > upper[2] + 60
    assert abs(lower[0] - lower[2]) < 20


def test_the_nearer_part_hides_the_other(renderer: Renderer) -> None:
    red, green = square(half=0.1, middle=(0, 0, 0.1)), square()
    red = replace(red, material=replace(red.material, tint=(1.0, 0.1, 0.1)))
    green = replace(green, material=replace(green.material, tint=(0.1, 1.0, 0.1)))
    for parts in ((red, green), (green, red)):
        who = figure(*parts)
        middle = renderer.render(who, motion(who, [0.0]), scene())[0, SIZE // 2, SIZE // 2]
        assert middle[0] > middle[1] + 60


def test_only_single_sided_parts_vanish_from_behind(renderer: Renderer) -> None:
    part = square()
    backwards = replace(part, triangles=part.triangles[:, ::-1].copy())
    hidden = figure(backwards)
    shown = figure(replace(backwards, material=replace(part.material, double_sided=True)))
    assert not drawn(renderer.render(hidden, motion(hidden, [0.0]), scene())[0]).any()
    assert drawn(renderer.render(shown, motion(shown, [0.0]), scene())[0]).any()


def test_a_shadow_darkens_what_lies_behind_it(renderer: Renderer) -> None:
    wall = square(half=0.4)
    blind = square(bone=1, half=0.1, middle=(2.0, 0.3, 0.4))  # out of the light's way, and of the baked occlusion
    who = figure(wall, blind)
    light = motion(who, [0.0, 0.0], {(1, 1): (-2.0, 0.0, 0.0)})  # now between the light and the wall's middle
    before, after = renderer.render(who, light, scene()).astype(int)[:, SIZE // 2, SIZE // 2]
    assert after.sum() < 0.75 * before.sum()


@pytest.mark.parametrize("kind", ["hair", "lashes", "brows"])
def test_a_cutout_shows_what_lies_behind(renderer: Renderer, kind: Kind) -> None:
    texture = np.full((64, 64, 4), 200, np.uint8)
    texture[..., 3] = 255
    texture[:, :32, 3] = 0
    part = square(kind=kind)
    who = figure(replace(part, material=Material(kind, texture, cutout=True, double_sided=True)))
    frame = renderer.render(who, motion(who, [0.0]), scene())[0]
    assert (frame[SIZE // 2, SIZE // 2 - 6] == BLUE).all()
    assert drawn(frame)[SIZE // 2, SIZE // 2 + 6]


def test_thin_hair_is_half_seen_through(renderer: Renderer) -> None:
    texture = np.full((8, 8, 4), 255, np.uint8)
    texture[..., 3] = 100
    part = square()
    who = figure(replace(part, material=Material("hair", texture, cutout=True, double_sided=True)))
    middle = renderer.render(who, motion(who, [0.0]), scene())[0, SIZE // 2, SIZE // 2]
    assert 60 < middle[0] < 200  # neither the blue behind (10) nor white hair


def test_what_is_below_the_picture_comes_into_it(renderer: Renderer) -> None:
    hand = square(bone=1, half=0.1, middle=(0.0, -1.5, 0.0))
    who = figure(square(half=0.05, middle=(0.3, 0.3, 0.0)), hand)
    away = renderer.render(who, motion(who, [0.0]), scene())[0]
    assert not drawn(away)[SIZE // 2, SIZE // 2]
    frames = renderer.render(who, motion(who, [0.0, 0.0], {(1, 1): (0.0, 1.5, 0.0)}), scene())
    np.testing.assert_array_equal(frames[0], away)
    assert drawn(frames[1])[SIZE // 2, SIZE // 2]


def test_more_figures_than_are_kept_and_more_frames_than_fit_at_once(renderer: Renderer) -> None:
    many = [figure(square(half=0.05 + 0.02 * i)) for i in range(render.KEPT_FIGURES + 2)]
    areas = [drawn(renderer.render(who, motion(who, [0.0]), scene())[0]).sum() for who in many + many[:1]]
    assert areas[:-1] == sorted(areas[:-1])
    assert areas[-1] == areas[0]
    weights = np.linspace(0, 1, render.FRAMES_AT_ONCE + 3).tolist()
    frames = renderer.render(many[0], motion(many[0], weights), scene())
    assert_covers(frames[-1], many[0].parts[0], (0.1, 0, 0))
    np.testing.assert_array_equal(frames[5], renderer.render(many[0], motion(many[0], weights[5:6]), scene())[0])


def _in_worker(kind: Kind) -> Pixels:
    with Renderer(SIZE) as made:
        who = figure(square(kind=kind))
        return made.render(who, motion(who, [0.0, 0.7]), scene())


WORKER = """
import sys
from pathlib import Path
from importlib.util import module_from_spec, spec_from_file_location

import numpy as np

spec = spec_from_file_location("test_render", sys.argv[1])
tests = module_from_spec(spec)
sys.modules["test_render"] = tests
spec.loader.exec_module(tests)
np.save(sys.argv[2], tests._in_worker("skin"))
"""


def test_same_bytes_in_another_renderer_and_another_process(renderer: Renderer, tmp_path: Path) -> None:
    here = _in_worker("skin")
    who = figure(square(kind="skin"))
    np.testing.assert_array_equal(renderer.render(who, motion(who, [0.0, 0.7]), scene()), here)
    out = tmp_path / "there.npy"
    subprocess.run([sys.executable, "-c", WORKER, __file__, str(out)], timeout=120, check=True)
    np.testing.assert_array_equal(np.load(out), here)


def test_two_renderers_take_turns(renderer: Renderer) -> None:
    who = figure(square())
    first = renderer.render(who, motion(who, [0.0]), scene())
    with Renderer(32, samples=1) as small:
        assert small.render(who, motion(who, [0.0]), scene(32)).shape == (1, 32, 32, 3)
        np.testing.assert_array_equal(renderer.render(who, motion(who, [0.0]), scene()), first)
    np.testing.assert_array_equal(renderer.render(who, motion(who, [0.0]), scene()), first)


def test_closed_renderers_and_wrong_backgrounds_are_refused(renderer: Renderer) -> None:
    who = figure(square())
    with pytest.raises(ValueError, match="background"):
        renderer.render(who, motion(who, [0.0]), scene(32))
    closed = Renderer(SIZE)
    closed.close()
    closed.close()
    with pytest.raises(ValueError, match="closed"):
        closed.render(who, motion(who, [0.0]), scene())


def test_without_opengl_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    moderngl = pytest.importorskip("moderngl")

    def fail(**_: object) -> Callable[..., None]:
        raise Exception("libEGL.so.1 not loaded")

    monkeypatch.setattr(moderngl, "create_context", fail)
    with pytest.raises(UserError, match="apt-get install libegl1"):
        Renderer(SIZE)


def test_normals_follow_the_expression_and_are_shared_across_a_seam() -> None:
    """A roof whose ridge is a seam: the expression lifts one eave until that half is flat."""
    part = square()
    vertices = np.float32([[-1, 0, 0], [-1, 1, 0], [0, 1, 1], [0, 0, 1], [0, 1, 1], [0, 0, 1], [1, 0, 0], [1, 1, 0]])
    deltas = np.zeros((1, 2, 3), np.float32)
    deltas[..., 2] = 1
    roof = replace(
        part,
        vertices=vertices,
        uv=np.zeros((8, 2), np.float32),
        triangles=np.int32([[0, 3, 2], [0, 2, 1], [5, 6, 4], [6, 7, 4]]),
        bones=np.zeros((8, 4), np.int32),
        weights=np.tile(np.float32([1, 0, 0, 0]), (8, 1)),
        moved=np.int32([0, 1]),
        deltas=deltas,
        smooth=np.int32([0, 1, 2, 3, 2, 3, 4, 5]),
    )
    mesh = Surface(figure(roof))
    rest = mesh.normals[np.argsort(mesh.order)]
    np.testing.assert_allclose(rest[[2, 3, 4, 5]], np.tile([0.0, 0.0, 1.0], (4, 1)), atol=1e-6)
    positions, normals = mesh.at(np.float32([[0.0], [1.0]]))
    live = mesh.order[: mesh.live]
    assert set(live) == {0, 1, 2, 3, 4, 5}  # the other side of the seam has the ridge's normals too
    np.testing.assert_allclose(positions[0], vertices[live])
    np.testing.assert_allclose(normals[0], rest[live], atol=1e-6)
    flat = normals[1][np.isin(live, [0, 1])]
    np.testing.assert_allclose(flat, np.tile([0.0, 0.0, 1.0], (2, 1)), atol=1e-6)
    ridge = normals[1][np.isin(live, [2, 3, 4, 5])]
    np.testing.assert_allclose(ridge, np.tile(np.float32([1, 0, 2]) / 5**0.5, (4, 1)), atol=1e-6)
