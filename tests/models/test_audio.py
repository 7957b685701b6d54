"""Audio lanes: streaming equals whole, nothing looks ahead further than it says, masks tell the lanes apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from streamavatar.models.audio import (
    AFTER,
    BEFORE,
    HOLD_FRAMES,
    AudioConditioner,
    activity,
    latent_window,
    mel_filters,
)
from streamavatar.models.avatar import AvatarModel

FRAMES, SIZE = 36, 640
LANES = [
    pytest.param({"mask": mask, "separate_lanes": separate}, id=f"{mask}-{'separate' if separate else 'mixed'}")
    for mask in ("features", "waveform")
    for separate in (True, False)
]
Make = Callable[..., AvatarModel]


@pytest.fixture
def make_audio(make_model: Make) -> Callable[[dict[str, Any]], AudioConditioner]:
    return lambda changes: make_model(audio=changes).audio.requires_grad_(False)


def speech(seed: int, frames: int = FRAMES, silent: range = range(0)) -> Tensor:
    """Noise of changing loudness, [1, frames * SIZE]; nothing at all in the frames of `silent`."""
    generator = torch.Generator().manual_seed(seed)
    wave = torch.randn(frames, SIZE, generator=generator) * torch.rand(frames, 1, generator=generator)
    wave[silent.start : silent.stop] = 0
    return 0.3 * wave.flatten()[None]


def features(audio: AudioConditioner, agent: Tensor, user: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Features of video frames start..stop-1, from their own history; silence before the clip."""
    lead = audio.history * SIZE
    pieces = (torch.nn.functional.pad(w, (lead, 0))[:, start * SIZE : lead + stop * SIZE] for w in (agent, user))
    return audio.features(*pieces)


# streaming -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("step", [1, 12])
def test_features_in_pieces_equal_those_of_the_whole(
    lanes: dict[str, Any], step: int, make_audio: Callable[..., AudioConditioner]
) -> None:
    audio = make_audio(lanes)
    agent, user = speech(1, silent=range(10, 25)), speech(2, silent=range(3))
    whole = features(audio, agent, user, 0, FRAMES)
    pieces = [features(audio, agent, user, start, start + step) for start in range(0, FRAMES, step)]
    for lane, part in zip(whole, zip(*pieces, strict=True), strict=True):
        assert lane.shape == (1, FRAMES, audio.config.feature_dim)
        torch.testing.assert_close(torch.cat(part, dim=1), lane, atol=1e-5, rtol=0)


@pytest.mark.parametrize("lanes", LANES)
def test_more_history_changes_nothing(lanes: dict[str, Any], make_audio: Callable[..., AudioConditioner]) -> None:
    """`history` is as long as what a feature depends on."""
    audio = make_audio(lanes)
    agent, user = speech(1, silent=range(15, 27)), speech(2)
    other = [w.clone() for w in (agent, user)]
    for wave in other:
        wave[:, : (30 - audio.history) * SIZE] += 0.1
    for a, b in zip(features(audio, agent, user, 30, 36), features(audio, *other, 30, 36), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("frame", [8, 20])
def test_features_do_not_look_ahead(
    lanes: dict[str, Any], frame: int, make_audio: Callable[..., AudioConditioner]
) -> None:
    audio = make_audio(lanes)
    agent, user = speech(1), speech(2)
    later = [w.clone() for w in (agent, user)]
    for wave in later:
        wave[:, (frame + 1) * SIZE :] = speech(3)[:, (frame + 1) * SIZE :]
    a, b = (features(audio, *lane, 0, FRAMES) for lane in ((agent, user), later))
    for before, after in zip(a, b, strict=True):
        torch.testing.assert_close(before[:, : frame + 1], after[:, : frame + 1], atol=1e-6, rtol=0)
    assert not torch.allclose(a[0][:, frame + 1], b[0][:, frame + 1], atol=1e-3)


def test_tokens_look_two_frames_ahead(make_audio: Callable[..., AudioConditioner]) -> None:
    """What is said after frame 4k + 2 does not reach the tokens of latent k; what is said in it does."""
    audio, lead = make_audio({}), -BEFORE

    def tokens(agent: Tensor) -> Tensor:
        rows = features(audio, agent, speech(2), 0, FRAMES)
        padded = [torch.nn.functional.pad(lane, (0, 0, BEFORE, 0)) for lane in rows]
        return audio.tokens(*padded, lead, range(9))[0]

    plain = tokens(speech(1))
    for latent in range(1, 8):
        end = 4 * latent + AFTER
        for first, reaches in ((end + 1, False), (end, True)):
            other = speech(1)
            other[:, first * SIZE :] = speech(3)[:, first * SIZE :]
            change = (tokens(other) - plain)[:, latent].abs().max()
            assert bool(change > 1e-4) == reaches, (latent, first)


def test_tokens_in_pieces_equal_those_of_the_whole(make_audio: Callable[..., AudioConditioner]) -> None:
    audio = make_audio({})
    talk, listen = torch.randn(2, 2, BEFORE + 37 + AFTER, 10, generator=torch.Generator().manual_seed(0))
    whole = audio.tokens(talk, listen, -BEFORE, range(10))
    for span in (range(1), range(1, 4), range(4, 7), range(7, 10), range(0, 4)):
        first = latent_window(span.start).start
        cut = slice(first + BEFORE, latent_window(span.stop - 1).stop + BEFORE)
        part = audio.tokens(talk[:, cut], listen[:, cut], first, span)
        for a, b in zip(part, whole, strict=True):
            torch.testing.assert_close(a, b[:, span.start : span.stop], atol=1e-5, rtol=0)


def test_windows() -> None:
    assert list(latent_window(0)) == [-2, -1, 0, 1, 2]
    for latent in range(1, 50):
        assert list(latent_window(latent)) == list(range(4 * latent - 5, 4 * latent + 3))


# lanes and masks -----------------------------------------------------------------------------------


def test_silent_agent_silences_the_talk_lane_alone(make_audio: Callable[..., AudioConditioner]) -> None:
    audio = make_audio({})
    talk, listen = features(audio, speech(1, silent=range(FRAMES)), speech(2), 0, FRAMES)
    assert not talk.any()
    assert bool((listen.abs().amax(-1) > 0).all())


def test_separate_lanes_are_encoded_by_themselves(make_audio: Callable[..., AudioConditioner]) -> None:
    audio = make_audio({})
    agent, user = speech(1), speech(2)
    talk, listen = features(audio, agent, user, 0, FRAMES)
    other_talk, same_listen = features(audio, speech(3), user, 0, FRAMES)
    assert torch.equal(listen, same_listen)
    assert not torch.equal(talk, other_talk)
    same_talk, other_listen = features(audio, agent, speech(3), 0, FRAMES)
    assert torch.equal(talk, same_talk)
    assert not torch.equal(listen, other_listen)


def test_a_mixed_track_is_split_by_the_mask(make_audio: Callable[..., AudioConditioner]) -> None:
    """Every frame of the mix goes to one lane, whole: m * f to talk, (1 - m) * f to listen (paper, 1.4)."""
    audio = make_audio({"separate_lanes": False})
    agent, user = speech(1, silent=range(10, 26)), speech(2)
    talk, listen = features(audio, agent, user, 0, FRAMES)
    mask = activity(agent, SIZE)
    assert 0 < mask.sum() < FRAMES
    lead = audio.encoder.history * SIZE
    mixed = audio.encoder(torch.nn.functional.pad(agent + user, (lead, 0)))
    torch.testing.assert_close(talk, mixed * mask[..., None], atol=1e-6, rtol=0)
    torch.testing.assert_close(listen, mixed * (1 - mask[..., None]), atol=1e-6, rtol=0)


def test_a_masked_waveform_is_encoded_as_silence(make_audio: Callable[..., AudioConditioner]) -> None:
    """Features, unlike with a mask on features, are those of silence, not zero."""
    audio = make_audio({"mask": "waveform", "separate_lanes": False})
    agent, user = speech(1), speech(2)
    mask = activity(agent, SIZE)
    assert bool(mask.all())
    talk, listen = features(audio, agent, user, 0, FRAMES)
    silence = audio.encoder(torch.zeros(1, (audio.encoder.history + FRAMES) * SIZE))
    lead = audio.encoder.history
    torch.testing.assert_close(listen[:, lead:], silence[:, lead:], atol=1e-5, rtol=0)
    assert not torch.allclose(talk[:, lead:], silence[:, lead:], atol=1e-2)


def test_activity_is_held_for_a_fifth_of_a_second() -> None:
    wave = torch.zeros(1, 20, SIZE)
    wave[0, 4] = 0.1
    wave[0, 15] = 0.1
    active = activity(wave.flatten(1), SIZE)[0]
    assert active.nonzero().flatten().tolist() == [*range(4, 5 + HOLD_FRAMES), *range(15, 20)]


@pytest.mark.parametrize(("decibels", "active"), [(-44, 1.0), (-46, 0.0)])
def test_activity_threshold(decibels: float, active: float) -> None:
    wave = torch.full((1, 3 * SIZE), 10 ** (decibels / 20))
    assert activity(wave, SIZE).tolist() == [[active] * 3]


# front end -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mels", [40, 64, 80])
def test_mel_filters(mels: int) -> None:
    filters = mel_filters(257, mels, 16000)
    assert filters.shape == (257, mels)
    assert float(filters.min()) >= 0
    assert float(filters.max()) <= 1
    assert not filters[0].any()
    peaks = filters.argmax(0)
    heard = filters.amax(0) > 0
    assert bool((peaks[heard].diff() >= 0).all())
    assert int(heard.sum()) >= 0.9 * mels  # the lowest of many may fall between two bins
    inner = filters[peaks[heard][0] + 4 : peaks[-1]].sum(1)
    torch.testing.assert_close(inner[64:], torch.ones_like(inner[64:]), atol=1e-5, rtol=0)  # triangles add up to one


def test_a_tone_is_loudest_in_its_own_band(make_audio: Callable[..., AudioConditioner]) -> None:
    encoder = make_audio({"mels": 40}).encoder
    time = torch.arange(10 * SIZE) / 16000
    bands = [
        int(encoder.log_mel(torch.sin(2 * torch.pi * f * time)[None])[0, :, 20].argmax()) for f in (300, 1000, 4000)
    ]
    filters = mel_filters(257, 40, 16000)
    expected = [int(filters[round(f / 31.25)].argmax()) for f in (300, 1000, 4000)]
    assert bands == expected


def test_four_columns_per_frame(make_audio: Callable[..., AudioConditioner]) -> None:
    assert make_audio({}).encoder.log_mel(speech(0)).shape == (1, 16, 4 * FRAMES)
