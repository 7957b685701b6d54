"""Shards: what comes out is what went in, and a shard is whole or absent."""

from __future__ import annotations

import errno
import json
import os
import tarfile
from concurrent.futures import wait
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cv2", reason="needs the extra synth")

from streamavatar.data import shards
from streamavatar.data.packing import decode_lane, decode_truth, decode_video, encode_lane, encode_truth, encode_video
from streamavatar.data.produce import clip_files, make_shard
from streamavatar.data.reader import ShardSet, WindowOrder, WindowReader, held_out
from streamavatar.data.shards import MANIFEST, ShardWriter, describe_shard, mend_manifest, read_manifest
from streamavatar.errors import UserError
from streamavatar.synth.source import LANDMARKS, Puppets, SynthClip

SOURCE = Puppets(seed=3, size=64, frames=40, identities=30, tones=True)


def nothing(_: float) -> None:
    pass


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2)))


def luma(frames: np.ndarray) -> np.ndarray:
    return frames @ np.array([0.2126, 0.7152, 0.0722])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards; not to be changed."""
    made = tmp_path_factory.mktemp("shards")
    for index in range(2):
        assert make_shard(index, nothing, folder=made, source=SOURCE)
    return made


@pytest.fixture(scope="module")
def clip() -> SynthClip:
    return next(SOURCE.make(0))


def test_a_clip_comes_back(folder: Path, clip: SynthClip) -> None:
    stored = ShardSet(folder)
    entry = stored.entries[0]
    window = stored.window(entry, 0, 40)
    assert window.frames.shape == clip.frames.shape
    assert psnr(luma(window.frames), luma(clip.frames)) > 38
    assert psnr(window.frames, clip.frames) > 32  # colour has half the resolution, coarse at this size
    assert len(window.agent) == len(clip.agent) == 40 * 640
    assert not window.agent_before.any()
    truth = stored.truth(entry)
    assert set(truth) == set(clip.truth)
    for name, values in clip.truth.items():
        if name.startswith(LANDMARKS):
            np.testing.assert_allclose(truth[name], values, atol=1 / 15)
        else:
            np.testing.assert_array_equal(truth[name], values.astype(np.float16) if name != "state" else values)
    about = stored.about(entry)
    assert about["identity"] == entry.identity == clip.meta["identity"]
    assert about["agent_lines"] == clip.meta["agent_lines"]


def test_any_window_is_that_part_of_its_clip(folder: Path) -> None:
    stored = ShardSet(folder)
    entry = stored.entries[3]
    whole, part = stored.window(entry, 0, 40), stored.window(entry, 27, 13)
    np.testing.assert_array_equal(part.frames, whole.frames[27:40])
    for lane in ("agent", "user"):
        sound, cut = getattr(whole, lane), getattr(part, lane)
        np.testing.assert_allclose(cut, sound[27 * 640 : 40 * 640], atol=1e-4)
        np.testing.assert_allclose(getattr(part, f"{lane}_before"), sound[27 * 640 - 16000 : 27 * 640], atol=1e-4)
    np.testing.assert_array_equal(part.performance.visemes, whole.performance.visemes[27:40])
    np.testing.assert_array_equal(part.landmarks["mouth"], whole.landmarks["mouth"][27:40])
    with pytest.raises(ValueError, match="40 frames"):
        stored.window(entry, 30, 11)


def test_video_windows_across_key_frames() -> None:
    rng = np.random.default_rng(0)
    frames = np.full((260, 32, 32, 3), 90, np.uint8)
    frames[:, 8:24, 8:24] = rng.integers(60, 200, (260, 1, 1, 3))
    data = encode_video(frames)
    whole = decode_video(data, 0, 260)
    for start, count in ((0, 1), (124, 3), (125, 10), (200, 60), (259, 1)):
        np.testing.assert_array_equal(decode_video(data, start, count), whole[start : start + count])
    with pytest.raises(ValueError, match="early"):
        decode_video(data, 255, 10)


@pytest.mark.parametrize("seconds", [1.0, 7.96])
def test_lanes_stay_in_time_and_keep_their_length(seconds: float) -> None:
    count = round(seconds * 16000)
    lane = np.zeros(count, np.float32)
    rng = np.random.default_rng(1)
    bursts = np.arange(2000, count - 2000, 6000)
    for at in bursts:
        lane[at : at + 800] = 0.4 * np.sin(2 * np.pi * 440 * np.arange(800) / 16000) * np.hanning(800)
    lane += 1e-4 * rng.standard_normal(count).astype(np.float32)
    data = encode_lane(lane)
    assert data == encode_lane(lane)
    back = decode_lane(data, 0, count)
    assert len(back) == count
    assert np.sum((lane - back) ** 2) < 0.02 * np.sum(lane**2)
    for at in bursts:  # each burst by itself: no drift, nothing shifted by the pre-skip of 6.5 ms
        part = slice(at - 500, at + 1300)
        lags = range(-32, 33)
        scores = [np.dot(lane[part], back[part.start + lag : part.stop + lag]) for lag in lags]
        assert abs(lags[int(np.argmax(scores))]) <= 1
    middle = decode_lane(data, count // 2, 4000)
    np.testing.assert_allclose(middle, back[count // 2 : count // 2 + 4000], atol=1e-4)
    early = decode_lane(data, -700, 1000)
    assert not early[:700].any()
    np.testing.assert_allclose(early[700:], back[:300], atol=1e-4)
    with pytest.raises(ValueError, match="early"):
        decode_lane(data, count - 100, 200)


def test_truth_beyond_the_picture_is_cut_not_wrapped() -> None:
    points = np.array([[5.0, -9000.0], [9000.0, 7.03]], np.float32)
    back = decode_truth(encode_truth({"landmarks.p": points}))["landmarks.p"]
    np.testing.assert_allclose(back, [[5.0, -4096.0], [4096.0, 7.0]], atol=0.2)


def test_the_same_clips_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    assert make_shard(1, nothing, folder=tmp_path, source=SOURCE)
    name = "synth-000001.tar"
    assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_members_are_those_of_a_web_data_set(folder: Path) -> None:
    with tarfile.open(folder / "synth-000001.tar") as tar:
        members = tar.getmembers()
    assert {m.mtime for m in members} == {m.uid for m in members} == {0}
    keys = [m.name.split(".", 1) for m in members]
    assert [key for key, suffix in keys if suffix == "mp4"] == [f"{n:08d}{s}" for n in range(4, 8) for s in "ab"]
    assert {suffix for _, suffix in keys} == {"mp4", "agent.opus", "user.opus", "truth.npz", "json"}


# writing ---------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_nothing_under_the_final_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = tarfile.TarFile.addfile, []

    def full(self: tarfile.TarFile, member: tarfile.TarInfo, data: object = None) -> None:
        calls.append(member.name)
        if len(calls) > 7:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, member, data)

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    with pytest.raises(UserError, match=r"synth-000000.tar: No space left on device; free some space .* again"):
        make_shard(0, nothing, folder=tmp_path, source=SOURCE)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_while_finishing(tmp_path: Path, clip: SynthClip, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = ShardWriter.claim(tmp_path / "synth-000000.tar")
    assert writer is not None
    with writer:
        writer.add("a", clip_files(clip))
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="No space left"):
            writer.finish()
    assert list(tmp_path.iterdir()) == []


def test_a_shard_has_one_writer(tmp_path: Path, clip: SynthClip) -> None:
    final = tmp_path / "synth-000000.tar"
    first = ShardWriter.claim(final)
    assert first is not None
    with first:
        assert ShardWriter.claim(final) is None
        shards.sweep(tmp_path)  # somebody's work is not swept
        first.add("a", clip_files(clip))
        first.finish()
    assert ShardWriter.claim(final) is None
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", MANIFEST, final.name]


def test_left_overs_are_swept_and_overwritten(tmp_path: Path, clip: SynthClip) -> None:
    for index in range(2):
        (tmp_path / f"synth-{index:06d}.tar.partial").write_bytes(b"x" * 100_000)
    writer = ShardWriter.claim(tmp_path / "synth-000000.tar")
    assert writer is not None
    with writer:
        writer.add("a", clip_files(clip))
        writer.finish()
    shards.sweep(tmp_path)
    assert list(tmp_path.glob("*.partial")) == []
    assert [e.key for e in ShardSet(tmp_path).entries] == ["a"]


def test_the_manifest_is_made_again_from_the_shards(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("*.tar"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    lines = read_manifest(folder)
    assert list(lines) == ["synth-000000.tar", "synth-000001.tar"]
    assert lines["synth-000000.tar"]["seconds"] == 12.8
    # Killed between giving the name and noting it, and power lost while noting it.
    (tmp_path / MANIFEST).write_text(json.dumps(lines["synth-000001.tar"]) + "\n" + '{"shard": "synth-0000')
    assert mend_manifest(tmp_path) == lines == read_manifest(tmp_path)


# reading ---------------------------------------------------------------------------------------------


def test_no_shards(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished shards; make some with"):
        ShardSet(tmp_path)


def damaged_copy(folder: Path, to: Path) -> Path:
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to / "synth-000001.tar"


def test_a_shard_cut_short_or_missing_is_named(folder: Path, tmp_path: Path) -> None:
    shard = damaged_copy(folder, tmp_path)
    shard.write_bytes(shard.read_bytes()[:-50_000])
    for look in (ShardSet, mend_manifest):
        with pytest.raises(UserError, match=r"synth-000001.tar is damaged \(\d+ bytes instead of \d+\): delete it"):
            look(tmp_path)
    with pytest.raises(UserError, match=r"synth-000001.tar is damaged"):
        describe_shard(shard)
    shard.unlink()
    with pytest.raises(UserError, match=r"synth-000001.tar is missing"):
        ShardSet(tmp_path)


@pytest.mark.parametrize("suffix", ["mp4", "agent.opus", "truth.npz"])
def test_a_clip_with_damaged_bytes_is_named(folder: Path, tmp_path: Path, suffix: str) -> None:
    shard = damaged_copy(folder, tmp_path)
    stored = ShardSet(tmp_path)
    entry = next(e for e in stored.entries if e.shard == shard.name)
    offset, size = entry.files[suffix]
    with shard.open("r+b") as file:
        file.seek(offset)
        file.write(b"\x00" * size)
    with pytest.raises(UserError, match=rf"synth-000001.tar is damaged \(clip {entry.key}: "):
        stored.window(entry, 0, 40)


def test_splits_share_no_identity(folder: Path) -> None:
    names = [f"human-{n:016x}" for n in range(4000)]
    assert 0.03 < np.mean([held_out(name) for name in names]) < 0.07
    everyone = ShardSet(folder)
    hidden = {e.identity for e in everyone.entries if held_out(e.identity, 0.5)}
    assert 0 < len(hidden) < len({e.identity for e in everyone.entries})
    train = {e.identity for e in ShardSet(folder, "train").entries}
    assert train == {e.identity for e in everyone.entries if not held_out(e.identity)}


def test_an_epoch_shows_every_clip(folder: Path) -> None:
    entries = ShardSet(folder).entries
    order = WindowOrder(entries, 20, seed=1)
    assert len(order) == 2 * len(entries)
    for epoch in range(2):
        shown = [order.at(epoch, place)[0].key for place in range(len(order))]
        assert sorted(shown) == sorted(2 * [e.key for e in entries])
    assert [order.at(0, p)[0].key for p in range(32)] != [order.at(1, p)[0].key for p in range(32)]
    with pytest.raises(UserError, match="no clip has 41 frames"):
        WindowOrder(entries, 41, seed=1)


def place(window: object) -> tuple[str, int]:
    return (window.key, window.start)  # type: ignore[attr-defined]


def test_ranks_share_one_order_and_any_number_of_them_goes_on_from_a_state(folder: Path) -> None:
    stored = ShardSet(folder)
    with WindowReader(stored, 20, seed=7, threads=1, ahead=2) as alone:
        expected = [place(next(alone)) for _ in range(44)]  # an epoch has 32
        assert alone.state() == {"seed": 7, "epoch": 1, "cursor": 12}
    pair = [WindowReader(stored, 20, seed=7, rank=r, world=2, ahead=3) for r in range(2)]
    assert [place(next(pair[n % 2])) for n in range(20)] == expected[:20]
    states = [reader.state() for reader in pair]
    assert states[0] == states[1] == {"seed": 7, "epoch": 0, "cursor": 20}
    for reader in pair:
        reader.close()
    with WindowReader(stored, 20, seed=7, state=states[0]) as later:
        assert [place(next(later)) for _ in range(24)] == expected[20:]
    with pytest.raises(ValueError, match="seed 7"):
        WindowReader(stored, 20, seed=8, state=states[0])


def test_windows_are_decoded_ahead_but_not_further(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    real = ShardSet.random_window

    def counted(self: ShardSet, *arguments: object) -> object:
        window = real(self, *arguments)  # type: ignore[arg-type]
        decoded.append(1)
        return window

    monkeypatch.setattr(ShardSet, "random_window", counted)
    with WindowReader(ShardSet(folder), 20, threads=2, ahead=3) as reader:
        next(reader)
        wait(reader._ready)
        assert len(decoded) == 4
