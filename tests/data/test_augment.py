from __future__ import annotations

import numpy as np
import pytest

from streamavatar.data.augment import MOUTH, augmented
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
    return Window(frames, lane, lane, lane, lane, {MOUTH: boxes}, "key", "somebody", 0)


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
