"""Pretraining of the audio encoder."""

from __future__ import annotations

from collections.abc import Callable

import torch

from streamavatar.draws import Draws
from streamavatar.models.avatar import AvatarModel
from streamavatar.training.methods.audio import TARGETS, AudioMethod


def method(make_model: Callable[..., AvatarModel]) -> AudioMethod:
    generator = torch.Generator().manual_seed(0)
    lanes = 0.1 * torch.randn(2, 60 * 640, generator=generator)
    torch.manual_seed(0)
    return AudioMethod(make_model().audio.encoder, lanes, torch.rand(2, 60, TARGETS, generator=generator), crop=20)


def test_a_prediction_per_frame_from_five_frames(make_model: Callable[..., AvatarModel]) -> None:
    audio = method(make_model)
    lead = audio.encoder.history + 2
    wave = audio.lanes[:, : (lead + 20 + 2) * 640]
    plain = audio.predict(audio.encoder(wave))
    assert plain.shape == (2, 20, TARGETS)
    other = wave.clone()
    other[:, (lead + 12) * 640 :] += torch.randn(2, 10 * 640, generator=torch.Generator().manual_seed(1))
    changed = (audio.predict(audio.encoder(other)) - plain).abs().amax((0, 2)) > 1e-5
    assert changed.tolist() == [False] * 10 + [True] * 10  # frame 12 is heard two frames before


def test_everything_learns(make_model: Callable[..., AvatarModel]) -> None:
    audio = method(make_model)
    values = audio.loss(0, 3, Draws.seeded(0))
    values["loss"].backward()
    assert values.keys() == {"loss", "visemes", "opening", "r"}
    assert all(p.grad is not None and bool(p.grad.any()) for p in audio.module.parameters())
    assert torch.equal(values["loss"], audio.loss(0, 3, Draws.seeded(0))["loss"])


def test_a_new_head_learns_before_the_encoder_moves(make_model: Callable[..., AvatarModel]) -> None:
    audio = method(make_model)
    audio.head_first = 2
    audio.loss(1, 3, Draws.seeded(0))["loss"].backward()
    assert all(p.grad is None for p in audio.encoder.parameters())
    assert all(p.grad is not None and bool(p.grad.any()) for p in audio.head.parameters())
    audio.loss(2, 3, Draws.seeded(0))["loss"].backward()
    assert all(p.grad is not None for p in audio.encoder.parameters())


def test_features_are_held_to_those_from_before(make_model: Callable[..., AvatarModel]) -> None:
    audio = method(make_model)
    free = audio.loss(0, 3, Draws.seeded(0))["loss"]
    held = AudioMethod(audio.encoder, audio.lanes, audio.targets, audio.crop, keep=2.0)
    held.head = audio.head
    values = held.loss(0, 3, Draws.seeded(0))
    assert values["moved"] == 0
    torch.testing.assert_close(values["loss"], free)
    with torch.no_grad():
        audio.encoder.out.bias += 1
    values = held.loss(0, 3, Draws.seeded(0))
    assert values["moved"] > 0
    free = audio.loss(0, 3, Draws.seeded(0))["loss"]
    torch.testing.assert_close(values["loss"], free + 2 * values["moved"])
