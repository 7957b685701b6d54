from __future__ import annotations

import numpy as np
import pytest

from streamavatar.data.augment import ASIDE, EYES, MOUTH, ZOOMS, augmented, in_place
from streamavatar.data.reader import Window

SIZE = 64


@pytest.fixture
def window() -> Window:
    """A bright box wanders over a dark picture and is the mouth."""
    rng = np.random.default_rng(0)
    corners = rng.integers(16, 32, (6, 2))
    boxes = np.concatenate((corners, corners + np.array((14, 8))), axis=1).astype(np.float32)
    frames = np.full((6, SIZE, SIZE, 3), 40, np.uint8)
    for frame, (x0, y0, x1, y1) in zip(frames, boxes.astype(int), strict=True):
        frame[y0:y1, x0:x1] = 200
    lane = np.zeros(6 * 640, np.float32)
    eyes = {
        name: np.repeat(np.array([[x, 10, x + 4, 14]], np.float32), 6, axis=0)
        for name, x in zip(EYES, (16, 36), strict=True)
    }
    return Window(frames, lane, lane, lane, lane, {MOUTH: boxes, **eyes}, "key", "somebody", 0)


def face(window: Window) -> np.ndarray:
    """The middle between eyes and mouth of the first frame."""
    left, high, right, low = window.truth[MOUTH][0]
    return np.array((((left + right) / 2 + 28) / 2, ((high + low) / 2 + 12) / 2))


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_box_stays_where_the_mouth_is(window: Window, mirrored: bool) -> None:
    zooms = set()
    for seed in range(8):
        changed = augmented(window, np.random.default_rng(seed), mirrored=mirrored)
        assert changed.frames.shape == window.frames.shape
        assert changed.frames.dtype == np.uint8
        for frame, (x0, y0, x1, y1) in zip(changed.frames, changed.truth[MOUTH], strict=True):
            grey = frame.mean(-1)
            bright = grey - grey.min() > 0.5 * np.ptp(grey)
            rows, columns = (np.flatnonzero(bright.any(axis)) for axis in (1, 0))
            found = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
            assert found == pytest.approx((x0, y0, x1, y1), abs=0.75)
            zooms.add(round((x1 - x0) / 14, 3))
    assert len(zooms) == 8
    assert 1 <= min(zooms) < max(zooms) <= 1.2


def test_mirrored_is_the_other_way_round(window: Window) -> None:
    plain, mirrored = (augmented(window, np.random.default_rng(3), mirrored=m) for m in (False, True))
    low, high = plain.truth[MOUTH][:, 0], mirrored.truth[MOUTH][:, 0]
    assert np.corrcoef(low, high)[0, 1] == pytest.approx(-1)


def test_the_same_seed_is_the_same_clip_and_the_original_stays(window: Window) -> None:
    before = window.frames.copy()
    one, two, other = (augmented(window, np.random.default_rng(s), mirrored=False) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.frames, two.frames)
    assert np.abs(one.frames.astype(int) - other.frames).max() > 5
    np.testing.assert_array_equal(window.frames, before)


def test_a_face_is_put_in_its_place(window: Window) -> None:
    """By whole pixels; all frames and the box go with it."""
    place = np.floor(face(window)) + np.array((6, -5))
    placed = in_place(window, place)
    right, down = np.round(place - face(window)).astype(int)
    assert right > 0 > down
    np.testing.assert_array_equal(placed.frames[:, :down, right:], window.frames[:, -down:, :-right])
    np.testing.assert_array_equal(placed.truth[MOUTH], window.truth[MOUTH] + (right, down, right, down))
    asides = [in_place(window, place, np.random.default_rng(s)).truth[MOUTH][0, :2] for s in range(30)]
    asides -= placed.truth[MOUTH][0, :2]
    assert ASIDE - 1 <= np.abs(asides).max() <= ASIDE + 1
    assert np.array_equal(asides, np.round(asides))


@pytest.mark.parametrize("mirrored", [False, True])
def test_changed_faces_stay_near_their_place(window: Window, mirrored: bool) -> None:
    """What is beside the face grows with the picture and is mirrored about the face."""
    for seed in range(20):
        changed = augmented(window, np.random.default_rng(seed), mirrored=mirrored, face=(32, 32))
        before, after = window.truth[MOUTH][0], changed.truth[MOUTH][0]
        zoom = (after[3] - after[1]) / 8
        assert ZOOMS[0] <= zoom <= ZOOMS[1]
        beside = (before[:2] + before[2:]) / 2 - face(window)
        beside[0] *= -1 if mirrored else 1
        assert np.abs((after[:2] + after[2:]) / 2 - zoom * beside - 32).max() <= ASIDE + 1e-3
