"""The bundled portraits: rendered anew they are the same, and their faces are where the default model looks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from streamavatar import bundled
from streamavatar.config import FlowCodecConfig
from streamavatar.errors import UserError
from streamavatar.recipes.people import people
from streamavatar.synth import bundle
from streamavatar.synth.human.assets import Assets
from streamavatar.synth.human.render import Renderer


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    try:
        made = Renderer(bundle.SIZE)
    except UserError as error:
        pytest.skip(str(error))
    with made:
        yield made


def test_a_portrait_is_what_ships(assets: Assets, renderer: Renderer) -> None:
    number, description = bundle.PORTRAITS[bundled.DEFAULT_AVATAR]
    shipped = bundled.portrait(bundled.DEFAULT_AVATAR)
    assert shipped.description == description
    picture = np.asarray(Image.open(shipped.path)).astype(int)
    # Rasterisers differ by a little at edges.
    assert np.abs(picture - bundle.portrait(number, assets, renderer)).mean() < 1


def test_faces_are_where_the_default_model_looks(assets: Assets, renderer: Renderer) -> None:
    model = people().model
    assert model.name == bundled.DEFAULT_MODEL
    assert isinstance(model.codec, FlowCodecConfig)
    assert model.codec.face == bundle.FACE
    for name in bundle.PORTRAITS:
        assert Image.open(bundled.portrait(name).path).size == (bundle.SIZE, bundle.SIZE)
    for name in ("ada", "emi"):
        place = bundle.face_of(*bundle.posed(bundle.PORTRAITS[name][0], assets))
        np.testing.assert_allclose(place, bundle.FACE, atol=1)
