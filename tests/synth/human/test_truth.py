"""Landmarks agree with the camera, with each other and with what the performance asked for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from streamavatar.synth.human.figure import Camera, Figure, Motion
from streamavatar.synth.human.motion import WIDE_OPEN, move
from streamavatar.synth.human.tracked import Points
from streamavatar.synth.human.truth import FACE, face_frame, landmarks
from streamavatar.synth.performance import Performance
from streamavatar.synth.visemes import VISEMES

Person = Callable[[int], Figure]
Acting = Callable[..., Performance]
SIZE = 256


def camera(figure: Figure, face_pixels: float = 105.0, turn: float = 0.0) -> Camera:
    """Straight ahead of the face, which is `face_pixels` wide; turned around it in degrees."""
    middle, width = face_frame(figure)
    span = width * SIZE / face_pixels
    away = np.array([np.sin(np.radians(turn)), 0.0, np.cos(np.radians(turn))]) * 1.5
    fov = 2 * np.degrees(np.arctan(span / 2 / 1.5))
    return Camera(tuple((middle + away).tolist()), tuple(middle.tolist()), float(fov))


def test_the_face_frame_makes_the_face_as_wide_as_asked(person: Person, acting: Acting) -> None:
    for seed in range(4):
        figure = person(seed)
        truth = landmarks(figure, move(figure, acting(1), 0), camera(figure, 105), SIZE)
        x0, y0, x1, y1 = truth["face"][0]
        assert 95 < x1 - x0 < 115
        assert abs((x0 + x1) / 2 - SIZE / 2) < 5
        assert 0 < y0 < y1 < SIZE


def test_points_lie_where_their_names_say(person: Person, acting: Acting) -> None:
    figure = person(1)
    face = landmarks(figure, move(figure, acting(1), 0), camera(figure), SIZE)["face_points"][0]
    assert (np.diff(face[:17, 0]) > -1).all()  # jaw from left to right
    assert (np.diff(face[17:27, 0]) > 0).all()  # brows
    assert (np.diff(face[27:31, 1]) > 0).all()  # down the nose
    assert face[36, 0] < face[39, 0] < face[42, 0] < face[45, 0]  # corners of the eyes
    assert face[37, 1] < face[41, 1]  # upper lid above the lower
    assert face[48, 0] < face[51, 0] < face[54, 0]
    assert face[51, 1] < face[62, 1] <= face[66, 1] + 1 < face[57, 1] + 1
    assert face[8, 1] == face[:, 1].max()
    assert face[17:27, 1].max() < face[36:48, 1].min()


def test_tracked_points_follow_morphs_and_bones(person: Person, acting: Acting) -> None:
    """Against plain skinning of the whole body, one vertex at a time."""
    figure = person(0)
    motion = move(figure, acting(1, head=[8, 3, 2], blink=0.5, smile=1.0), 0)
    body = next(p for p in figure.parts if p.name == "body")
    shaped = body.vertices.copy()
    shaped[body.moved] += np.einsum("e,ekc->kc", motion.expressions[0], body.deltas)
    points = Points(figure, FACE).placed(motion)[0]
    for number, found in list(zip(FACE, points, strict=True))[::7]:
        row = int(np.flatnonzero(body.smooth == number)[0])
        sum_ = np.zeros(3)
        for bone, weight in zip(body.bones[row], body.weights[row], strict=True):
            matrix = motion.bones[0, bone]
            sum_ += weight * (matrix[:, :3] @ shaped[row] + matrix[:, 3])
        np.testing.assert_allclose(found, sum_, atol=1e-5)


def test_openings_follow_the_performance(person: Person, acting: Acting) -> None:
    figure = person(2)
    visemes = np.eye(len(VISEMES), dtype=np.float32)[[0, VISEMES.index("aa"), 0]]
    truth = landmarks(
        figure, move(figure, acting(3, visemes=visemes, mouth_open=[0, 1, 0], blink=[0, 0, 1]), 0), camera(figure), SIZE
    )
    assert truth["lip_gap"][0] < 0.0005
    assert truth["lip_gap"][1] == pytest.approx(WIDE_OPEN, abs=0.0015)
    assert truth["mouth_gap"][1] > 5
    assert truth["eye_open"][0].min() > 0.8
    assert truth["eye_open"][2].max() < 0.1
    size = truth["mouth"][:, 2:] - truth["mouth"][:, :2]
    np.testing.assert_allclose(size, np.broadcast_to(size[0], size.shape), rtol=0.01)
    inside = truth["mouth"][1]
    lips = truth["lips"][1]
    assert (lips >= inside[:2] - 1).all()
    assert (lips <= inside[2:] + 1).all()


def test_head_pose_is_relative_to_the_camera(person: Person, acting: Acting) -> None:
    figure = person(0)
    straight = landmarks(figure, move(figure, acting(1, head=[12, 6, 4]), 0), camera(figure), SIZE)["head_pose"][0]
    np.testing.assert_allclose(straight, [12, 6, 4], atol=1.5)
    beside = landmarks(figure, move(figure, acting(1), 0), camera(figure, turn=20), SIZE)["head_pose"][0]
    assert beside[0] == pytest.approx(-20, abs=1.5)


def test_hands_are_seen_only_when_they_are_raised(person: Person, acting: Acting) -> None:
    figure = person(1)
    hand = np.zeros((6, 3), np.float32)
    hand[:, 0] = np.linspace(0, 0.9, 6)
    raised = False
    for habit in range(4):
        truth = landmarks(figure, move(figure, acting(6, hand=hand), habit), camera(figure, 60), SIZE)
        assert truth["hands"].shape == (6, 2, 21, 2)
        assert not truth["hand_visible"][0].any()
        assert (truth["hand_boxes"][0] == 0).all()
        raised = raised or bool(truth["hand_visible"][-1].any())
        for side in np.flatnonzero(truth["hand_visible"][-1]):
            x0, y0, x1, y1 = truth["hand_boxes"][-1, side]
            assert x0 < x1
            assert y0 < y1
            fingertip, wrist = truth["hands"][-1, side, 12], truth["hands"][-1, side, 0]
            assert fingertip[1] < wrist[1]
    assert raised


def test_a_figure_without_the_point_is_refused(person: Person) -> None:
    with pytest.raises(ValueError, match="lacks"):
        Points(person(0), (18000,))


def test_many_frames_at_once_equal_one_at_a_time(person: Person, acting: Acting) -> None:
    figure = person(0)
    motion = move(figure, acting(4, head=np.random.default_rng(0).normal(0, 5, (4, 3))), 0)
    together = landmarks(figure, motion, camera(figure), SIZE)
    for index in range(4):
        alone = Motion(motion.expressions[index : index + 1], motion.bones[index : index + 1])
        single = landmarks(figure, alone, camera(figure), SIZE)
        for name, values in together.items():
            np.testing.assert_allclose(single[name][0], values[index], atol=1e-3, err_msg=name)
