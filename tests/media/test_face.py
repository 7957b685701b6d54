"""The face in a picture, and the square around it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from streamavatar import bundled
from streamavatar.media import face as faces
from streamavatar.media import image_from_array, read_image
from streamavatar.media.face import FaceError, around_face, find_face, portrait_framing

dlib = pytest.importorskip("dlib", reason="needs the extra live")
NOISE = np.random.default_rng(0).integers(0, 255, (200, 240, 3), np.uint8)


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    """A face far from the middle of a large grey picture."""
    portraits = (np.asarray(Image.open(p.path).convert("RGB").resize((256, 256))) for p in bundled.portraits().values())
    scene = np.full((500, 900, 3), 180, np.uint8)
    scene[200:456, 600:856] = next(pixels for pixels in portraits if find_face(pixels))
    return scene


def test_framed_as_the_portraits_are(scene: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(scene).save(tmp_path / "scene.png")
    framing = portrait_framing()
    for shown in (read_image(tmp_path / "scene.png", 256, 256, "face"), image_from_array(scene, 256, 256, "face")):
        assert shown.shape == (256, 256, 3)
        found = find_face(shown)
        assert found is not None
        x, y, width, height = found
        assert width == pytest.approx(framing.share * 256, abs=30)
        assert (x + width / 2, y + height / 2) == pytest.approx((128, framing.middle * 256), abs=20)
    assert find_face(read_image(tmp_path / "scene.png", 256, 256)) != found, "as a whole it is somewhere else"


def test_a_square_within_the_picture(scene: np.ndarray) -> None:
    corner = scene[190:, 590:]
    cut = around_face(corner)
    assert cut.shape[0] == cut.shape[1] <= min(corner.shape[:2])
    assert find_face(cut) is not None


def test_no_face(tmp_path: Path) -> None:
    assert find_face(NOISE) is None
    with pytest.raises(FaceError, match="one person"):
        image_from_array(NOISE, 64, 64, "face")


def test_without_dlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dlib", None)
    faces._detector.cache_clear()
    with pytest.raises(FaceError, match="pip install"):
        around_face(NOISE)
