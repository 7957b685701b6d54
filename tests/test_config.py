"""Configurations: what is written is what is read; what is wrong is named, with the file it stands in."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamavatar.config import AudioConfig, ContextConfig, ModelConfig, ScheduleConfig, TransformerConfig
from streamavatar.errors import UserError
from streamavatar.geometry import Geometry
from streamavatar.recipes import RECIPES

configs = st.builds(
    ModelConfig,
    name=st.text(),
    geometry=st.builds(Geometry, height=st.just(64), width=st.integers(1, 9).map(lambda n: 32 * n)),
    transformer=st.builds(
        TransformerConfig,
        layers=st.integers(1, 40),
        text_dim=st.integers(0, 4096),
        prediction=st.just("sample"),
        residual=st.booleans(),
        reference_channels=st.integers(0, 48),
    ),
    audio=st.builds(AudioConfig, mask=st.sampled_from(["features", "waveform"]), separate_lanes=st.booleans()),
    schedule=st.builds(
        ScheduleConfig,
        sigmas=st.lists(st.floats(0.01, 0.99), unique=True, max_size=4).map(lambda s: (1.0, *sorted(s, reverse=True))),
    ),
    context=st.builds(
        ContextConfig,
        sink=st.sampled_from(["none", "reference", "first_chunk"]),
        ring_latents=st.integers(1, 5).map(lambda n: 3 * n),
        cap=st.integers(3, 40),
    ),
)


@given(configs)
def test_json_round_trip(config: ModelConfig) -> None:
    assert ModelConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("recipe", RECIPES)
def test_models_of_the_recipes_round_trip(recipe: str, tmp_path: Path) -> None:
    config = RECIPES[recipe]().model
    config.save(tmp_path / "config.json")
    assert ModelConfig.from_json((tmp_path / "config.json").read_text()) == config


def test_defaults_may_be_left_out() -> None:
    assert ModelConfig.from_json('{"format": 1, "name": "x"}') == ModelConfig(name="x")


Edit = Callable[[dict[str, Any]], object]
TWO = {"means": [0, 0], "stds": [1, 1]}
WRONG: dict[str, tuple[Edit, str]] = {
    "unknown key": (lambda v: v.update(colour=1), "colour"),
    "unknown key inside": (lambda v: v["context"].update(colour=1), "colour"),
    "wrong type": (lambda v: v["transformer"].update(dim="wide"), "transformer.dim"),
    "a fraction": (lambda v: v["transformer"].update(dim=1.5), "transformer.dim"),
    "a number for a part": (lambda v: v.update(geometry=3), "geometry"),
    "a number for a list": (lambda v: v["codec"].update(widths=5), "not a valid"),
    "too few widths": (lambda v: v["codec"].update(widths=[1]), "two or more"),
    "too many widths": (lambda v: v["codec"].update(widths=[1] * 6), "more stages"),
    "a pool that does not fit": (lambda v: v["codec"].update(pool=3), "codec.pool"),
    "a word that is no choice": (lambda v: v["context"].update(sink="kitchen"), "context.sink"),
    "another format": (lambda v: v.update(format=2), "format 2 is not 1"),
    "no format": (lambda v: v.pop("format"), "format None is not 1"),
    "other channels": (lambda v: v["transformer"].update(latent_channels=16), "latent channels"),
    "other patch": (lambda v: v["transformer"].update(patch=1), "patch size"),
    "other audio width": (lambda v: v["audio"].update(dim=7), "audio.dim"),
    "odd heads": (lambda v: v["transformer"].update(heads=3), "heads 3"),
    "no heads": (lambda v: v["transformer"].update(heads=0), "heads must be at least 1"),
    "narrow heads": (lambda v: v["transformer"].update(heads=64), "head_dim 4"),
    "no layers": (lambda v: v["transformer"].update(layers=0), "layers must be at least 1"),
    "residual velocity": (lambda v: v["transformer"].update(residual=True), "residual"),
    "part of a chunk": (lambda v: v["context"].update(ring_latents=5), "whole chunks"),
    "a chunk above the cap": (lambda v: v["context"].update(cap=2), "cap"),
    "no mels": (lambda v: v["audio"].update(mels=0), "mels"),
    "audio rate": (lambda v: v["audio"].update(sample_rate=16010), "four hops per frame"),
    "picture size": (lambda v: v["geometry"].update(height=100), "100x128"),
    "not from pure noise": (lambda v: v["schedule"].update(sigmas=[0.9, 0.5]), "sigma 1.0"),
    "rising noise": (lambda v: v["schedule"].update(sigmas=[1.0, 0.5, 0.6]), "must fall"),
    "down to zero": (lambda v: v["schedule"].update(sigmas=[1.0, 0.0]), "above 0"),
    "no pass": (lambda v: v["schedule"].update(sigmas=[]), "one pass"),
    "shift": (lambda v: v["schedule"].update(shift=0.0), "shift"),
    "an unknown codec": (lambda v: v["codec"].update(kind="tape"), "kind"),
    "a number for the codec": (lambda v: v.update(codec=3), "not a valid"),
    "a key of the other codec": (lambda v: v["codec"].update(z_dim=48), "z_dim"),
    "a codec of other channels": (lambda v: v.update(codec={"kind": "wan", "z_dim": 2, **TWO}), "codec and geometry"),
    "means that do not fit": (lambda v: v.update(codec={"kind": "wan", "z_dim": 2}), "as many means"),
    "a pruned decoder that widens": (
        lambda v: v.update(codec={"kind": "wan", "decoder_widths": [8, 8, 8, 8, 4]}),
        r"decoder_widths\[2\] must be at least 2 times",
    ),
    "features of another encoder": (lambda v: v["audio"].update(wav2vec2={}), "feature_dim must be .* 9216"),
    "wav2vec2 behind a masked waveform": (
        lambda v: v["audio"].update(wav2vec2={}, feature_dim=9216, mask="waveform"),
        "masked after it",
    ),
    "convolutions that do not match": (
        lambda v: v["audio"].update(wav2vec2={"conv_widths": [8]}, feature_dim=9216),
        "differ in length",
    ),
}


@pytest.mark.parametrize(("edit", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_named_with_its_source(edit: Edit, message: str) -> None:
    values = {"format": 1, **asdict(ModelConfig())}
    edit(values)
    with pytest.raises(UserError, match=message) as caught:
        ModelConfig.from_json(json.dumps(values), source="some/config.json")
    assert str(caught.value).startswith("some/config.json: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"a"'])
def test_no_json_object(text: str) -> None:
    with pytest.raises(UserError, match=r"^there\.json: "):
        ModelConfig.from_json(text, source="there.json")
