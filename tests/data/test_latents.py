"""Shards of training data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from streamavatar.data.latents import LatentSet, feature_frames
from streamavatar.errors import UserError
from streamavatar.models.audio import BEFORE, latent_window


def clips(count: int, seed: int) -> LatentSet:
    generator = torch.Generator().manual_seed(seed)
    frames = 13
    return LatentSet(
        latents=torch.randn(count, 8, 4, 2, 2, generator=generator).half(),
        talk=torch.randn(count, feature_frames(frames), 5, generator=generator).half(),
        listen=torch.randn(count, feature_frames(frames), 5, generator=generator).half(),
        mouth=torch.rand(count, 4, 2, 2, generator=generator).half(),
        opening=torch.rand(count, frames, generator=generator).half(),
        state=torch.randint(0, 4, (count, frames), generator=generator).to(torch.int8),
    )


def test_shards_are_joined_in_the_order_of_their_names(tmp_path: Path) -> None:
    parts = [clips(count, seed) for seed, count in enumerate((3, 1, 2))]
    for index in (2, 0, 1):
        parts[index].save(tmp_path / "deep" / f"clips-{index:05d}.safetensors")
    loaded = LatentSet.load(tmp_path / "deep")
    assert len(loaded) == 6
    for name in LatentSet.__dataclass_fields__:
        expected = torch.cat([getattr(part, name) for part in parts])
        assert getattr(loaded, name).dtype == expected.dtype
        assert torch.equal(getattr(loaded, name), expected)


def test_a_shard_being_written_is_not_read(tmp_path: Path) -> None:
    clips(2, 0).save(tmp_path / "clips-00000.safetensors")
    (tmp_path / "clips-00001.partial").write_bytes(b"half of it")
    assert len(LatentSet.load(tmp_path)) == 2


def test_no_shards_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no latent shards; run the stage"):
        LatentSet.load(tmp_path)


def test_a_batch_is_float32_but_for_the_state() -> None:
    batch = clips(5, 0).take(torch.tensor([4, 0]))
    assert len(batch) == 2
    assert batch.latents.dtype == batch.talk.dtype == batch.mouth.dtype == torch.float32
    assert batch.state.dtype == torch.int8
    assert torch.equal(batch.latents[0], clips(5, 0).latents[4].float())


@pytest.mark.parametrize("start", [1, 2, 3])
def test_a_window_is_what_the_clip_shows_and_sounds_like_there(start: int) -> None:
    whole = clips(2, 0)
    part = whole.crop(torch.tensor([start, 1]), 2)
    assert torch.equal(part.latents[0], whole.latents[0][:, [0, start]])
    assert torch.equal(part.latents[1], whole.latents[1][:, [0, 1]])
    assert torch.equal(part.mouth[0], whole.mouth[0][[0, start]])
    first = 4 * (start - 1)  # the frame before those of latent `start`
    assert torch.equal(part.opening[0], whole.opening[0][first : first + 5])
    assert torch.equal(part.state[0], whole.state[0][first : first + 5])
    for lane in ("talk", "listen"):
        heard, rows = getattr(part, lane)[0], getattr(whole, lane)[0]
        assert heard.shape == (feature_frames(5), 5)
        there, here = (range(w.start + BEFORE, w.stop + BEFORE) for w in (latent_window(start), latent_window(1)))
        assert torch.equal(heard[list(here)], rows[list(there)])


def test_the_longest_window_is_the_clip() -> None:
    whole = clips(2, 0)
    part = whole.crop(torch.ones(2, dtype=torch.long), 4)
    for name in LatentSet.__dataclass_fields__:
        assert torch.equal(getattr(part, name), getattr(whole, name))
