"""Performances on real figures: lips, lids, eyes, head and hands do what is asked."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from streamavatar.synth.human.figure import Figure, Motion
from streamavatar.synth.human.motion import WIDE_OPEN, move
from streamavatar.synth.human.tracked import LID_EDGES, LIP_CONTACT, LOWER_LIP, UPPER_LIP, Points
from streamavatar.synth.performance import Performance
from streamavatar.synth.visemes import VISEMES

Person = Callable[[int], Figure]
Acting = Callable[..., Performance]


def gap(figure: Figure, motion: Motion) -> np.ndarray:
    lips = Points(figure, (UPPER_LIP, LOWER_LIP)).placed(motion)
    return lips[:, 0, 1] - lips[:, 1, 1] - LIP_CONTACT


def joint(figure: Figure, motion: Motion, bone: str) -> np.ndarray:
    row = figure.skeleton.names.index(bone)
    return motion.bones[:, row, :, :3] @ figure.skeleton.heads[row] + motion.bones[:, row, :, 3]


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_lips_open_as_far_as_asked_and_shut(person: Person, acting: Acting, seed: int) -> None:
    figure = person(seed)
    visemes = np.eye(len(VISEMES), dtype=np.float32)
    shut = gap(figure, move(figure, acting(15, visemes=visemes, mouth_open=0.0), 1))
    assert shut[[VISEMES.index("sil"), VISEMES.index("PP")]].max() < 0.0005
    opening = np.linspace(0.3, 1, 8, dtype=np.float32)
    vowel = np.tile(visemes[VISEMES.index("aa")], (8, 1))
    opened = gap(figure, move(figure, acting(8, visemes=vowel, mouth_open=opening), 1))
    np.testing.assert_allclose(opened, WIDE_OPEN * opening, atol=0.0015)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_lids_meet_in_a_blink(person: Person, acting: Acting, seed: int) -> None:
    figure = person(seed)
    motion = move(figure, acting(2, blink=[0.0, 1.0]), 1)
    for pairs in LID_EDGES.values():
        points = Points(figure, [v for pair in pairs for v in pair]).shaped(motion.expressions)
        apart = (points[:, 0::2, 1] - points[:, 1::2, 1]) * 1000
        assert apart[0].min() > 3
        assert -4 < apart[1].min() <= apart[1].max() < 0.1


def test_head_turns_as_asked(person: Person, acting: Acting) -> None:
    figure = person(0)
    still, turned = (move(figure, acting(1, head=head), 1) for head in ([0, 0, 0], [10, 5, 0]))
    row = figure.skeleton.names.index("head")
    before, after = (m.bones[0, row, :, 2] for m in (still, turned))
    assert np.degrees(np.arctan2(after[0], after[2]) - np.arctan2(before[0], before[2])) == pytest.approx(10, abs=1)
    assert np.degrees(np.arcsin(before[1]) - np.arcsin(after[1])) == pytest.approx(5, abs=1)


def test_eyes_stay_on_the_camera_while_the_head_turns(person: Person, acting: Acting) -> None:
    figure = person(0)
    head = np.stack([np.linspace(-12, 12, 9), np.linspace(5, -5, 9), np.zeros(9)], axis=1)
    motion = move(figure, acting(9, head=head), 1)
    eyes = [motion.bones[:, figure.skeleton.names.index(f"eye.{side}"), :, 2] for side in "LR"]
    ahead = np.mean(eyes, axis=0)
    assert np.degrees(np.abs(np.arctan2(ahead[:, 0], ahead[:, 2]))).max() < 2.5
    away = move(figure, acting(1, gaze=[1.0, 0.5]), 1).bones[0, figure.skeleton.names.index("eye.L"), :, 2]
    assert away[0] > 0.25
    assert away[1] < -0.05


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_a_raised_hand_comes_up_in_front_and_arms_keep_their_length(person: Person, acting: Acting, seed: int) -> None:
    figure = person(seed)
    raised = np.linspace(0, 1, 12)
    for habit in range(4):
        motion = move(figure, acting(12, hand=np.stack([raised, 0 * raised, 0 * raised], axis=1)), habit)
        tops = []
        for side in "LR":
            wrist, elbow = joint(figure, motion, f"wrist.{side}"), joint(figure, motion, f"lowerarm01.{side}")
            shoulder = joint(figure, motion, f"upperarm01.{side}")
            assert wrist[0, 1] < shoulder[0, 1] - 0.4
            assert abs(wrist[0, 0]) > abs(shoulder[0, 0])
            assert np.ptp(np.linalg.norm(wrist - elbow, axis=1)) < 1e-4
            assert np.linalg.norm(wrist - elbow, axis=1).min() > 0.15
            chest = figure.skeleton.heads[figure.skeleton.names.index("spine01"), 2]
            if wrist[-1, 1] > shoulder[-1, 1] - 0.1:
                tops.append(side)
                assert wrist[-1, 2] > chest + 0.1
                assert elbow[-1, 1] < wrist[-1, 1]
        assert tops


def test_hanging_arms_keep_clear_of_the_trunk(person: Person, acting: Acting) -> None:
    for seed in range(4):
        figure = person(seed)
        motion = move(figure, acting(1), 0)
        clothes = next(p for p in figure.parts if p.name == "clothes")
        waist = figure.skeleton.heads[figure.skeleton.names.index("spine04"), 1]
        arms = np.array(["arm" in name or "wrist" in name for name in figure.skeleton.names])
        of_trunk = (clothes.weights * arms[clothes.bones]).sum(axis=1) < 0.1
        trunk = np.abs(clothes.vertices[of_trunk & (np.abs(clothes.vertices[:, 1] - waist) < 0.05), 0]).max()
        assert abs(joint(figure, motion, "lowerarm01.L")[0, 0]) > trunk - 0.02
        assert abs(joint(figure, motion, "wrist.L")[0, 0]) > trunk


def test_a_seed_moves_in_one_way_and_smoothly(person: Person, acting: Acting) -> None:
    figure = person(0)
    long = acting(100)
    first, again, other = move(figure, long, 3), move(figure, long, 3), move(figure, long, 4)
    np.testing.assert_array_equal(first.bones, again.bones)
    np.testing.assert_array_equal(first.expressions, again.expressions)
    assert np.abs(first.bones - other.bones).max() > 1e-3
    wrist = joint(figure, first, "wrist.L")
    assert 1e-4 < np.abs(np.diff(wrist, axis=0)).max() < 0.004


def test_rotations_are_rotations(person: Person, acting: Acting) -> None:
    motion = move(person(0), acting(3, hand=[0.8, 0.5, 10], head=[10, 5, 5], breath=0.7), 2)
    turns = motion.bones[..., :3].astype(np.float64)
    np.testing.assert_allclose(turns @ np.swapaxes(turns, -1, -2), np.broadcast_to(np.eye(3), turns.shape), atol=1e-5)
    assert np.linalg.det(turns).min() > 0.99


def test_a_thousand_frames_take_well_under_a_second(person: Person, acting: Acting) -> None:
    figure, performance = person(0), acting(1000)
    begun = time.process_time()
    move(figure, performance, 0)
    assert time.process_time() - begun < 1.5
