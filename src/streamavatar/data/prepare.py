"""From seeds to what training reads: speech with its mouths, rendered clips, and shards of latents and features.

Everything is made in parts by worker processes, and a part that is there is not made again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from streamavatar.config import FlowCodecConfig, ModelConfig
from streamavatar.data.flow import motion_of
from streamavatar.data.latents import LatentSet, feature_frames
from streamavatar.errors import UserError
from streamavatar.geometry import Geometry
from streamavatar.models.audio import AFTER, BEFORE
from streamavatar.models.avatar import AvatarModel
from streamavatar.models.codec.choice import Codec
from streamavatar.models.codec.flow import FlowCodec, Motion
from streamavatar.seeds import seed_for
from streamavatar.synth.clips import Clip, clip_stream
from streamavatar.synth.dialogue import Dialogue, make_dialogue
from streamavatar.synth.performance import perform
from streamavatar.synth.topics import WIDE
from streamavatar.synth.voices import available_voices

if TYPE_CHECKING:
    from streamavatar.data.reader import Window

SHARD = 32
Tell = Callable[[int, int], None]
"""(shards done, shards in all)."""


def _speech_part(path: Path, seed: int, seconds: int, varied: bool, fps: int) -> None:
    if varied:
        spoken = make_dialogue(seed, seconds, voices=available_voices(), grammar=WIDE, acoustics=True)
    else:
        spoken = make_dialogue(seed, seconds)
    waves, targets = [], []
    for side in (spoken, Dialogue(spoken.user, spoken.agent)):
        truth = perform(side, seed=seed, frames=seconds * fps)
        targets.append(np.concatenate((truth.visemes, truth.mouth_open[:, None], truth.mouth_wide[:, None]), axis=1))
        waves.append(side.agent.samples)
    values = {"waves": torch.from_numpy(np.stack(waves)).half(), "targets": torch.from_numpy(np.stack(targets)).half()}
    temporary = path.with_suffix(".partial")
    save_file(values, temporary)
    os.replace(temporary, path)


def make_speech(
    folder: Path, *, seed: int, dialogues: int, seconds: int, varied: bool, fps: int, workers: int, tell: Tell
) -> tuple[Tensor, Tensor]:
    """Both lanes of spoken dialogues, and what the mouths that speak them do.

    Args:
        varied: every synthesiser that is installed, the wide grammar, and rooms; else flite and the small grammar.

    Returns:
        Waveforms [2 * dialogues, seconds * 16000] and, per frame, 15 visemes, opening and width of the mouth
        [2 * dialogues, seconds * fps, 17].

    Raises:
        UserError: no synthesiser is installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"dialogue-{n:05d}.safetensors" for n in range(dialogues)]
    tasks = [
        (path, seed_for(seed, "speech", n), seconds, varied, fps) for n, path in enumerate(paths) if not path.exists()
    ]
    in_processes(_speech_part, tasks, workers, lambda done: tell(len(paths) - len(tasks) + done, len(paths)))
    parts = [load_file(path) for path in paths]
    waves, targets = (torch.cat([part[name] for part in parts]).float() for name in ("waves", "targets"))
    return waves, targets


def mouth_cells(boxes: np.ndarray, geometry: Geometry, stride: int) -> Tensor:
    """How much of each latent cell the mouth covers, over the frames of the latent.

    Args:
        boxes: x0, y0, x1, y1 in pixels per frame, [F, 4].
        stride: pixels per cell, each way.

    Returns:
        [T, h, w] in 0..1.
    """
    edges = [np.arange(n) * stride for n in (geometry.latent_width, geometry.latent_height)]
    cover = []
    for low, high, edge in ((boxes[:, 0], boxes[:, 2], edges[0]), (boxes[:, 1], boxes[:, 3], edges[1])):
        overlap = np.minimum(high[:, None], edge + stride) - np.maximum(low[:, None], edge)
        cover.append(np.clip(overlap, 0, stride) / stride)
    area = torch.from_numpy(cover[1][:, :, None] * cover[0][:, None, :]).float()
    latents = geometry.latents_of(len(boxes))
    return torch.stack([area[list(geometry.latent_frames(k))].amax(0) for k in range(latents)])


def encode_clip(codec: Codec, pixels: Tensor, frames: np.ndarray) -> Tensor:
    """Latents [1, C, T, h, w] of a clip, given in -1..1 [1, 3, F, H, W] and as uint8 [F, H, W, 3]."""
    if isinstance(codec, FlowCodec):
        return codec.encode(pixels, motion_of(_cut(frames, codec.config, codec.geometry), codec))
    return codec.encode(pixels)


def _features(model: AvatarModel, lanes: list[Tensor], rows: int) -> tuple[Tensor, Tensor]:
    """Talk and listen features [1, rows, feature_dim] of a clip's frames from -`BEFORE` on, as run time makes them.

    A small encoder's features do not depend on the stretch they are made of. Those of wav2vec 2.0 do: run time gives it
    the five seconds that end with a chunk's look-ahead, and so every frame has here the feature that it has in the
    chunk that shows it (in the window of the chunk beside, run time has another one for the border's few frames).

    Args:
        lanes: agent and user, [1, (history + rows) * frame_samples].
    """
    audio, chunk = model.audio, model.config.geometry.chunk_frames
    if audio.config.wav2vec2 is None:
        return audio.features(*lanes)
    size, span = audio.encoder.frame_samples, chunk + BEFORE + AFTER

    def heard(first: int, count: int) -> tuple[Tensor, Tensor]:
        stretch = slice(first * size, (first + audio.history + count) * size)
        return audio.features(*(lane[:, stretch] for lane in lanes))

    talk, listen = heard(0, BEFORE + 1 + AFTER)  # of the reference
    # Row r is frame r - BEFORE, and chunk c shows frames from (c - 1) * chunk + 1 on.
    for begin in range(1, rows - BEFORE - AFTER, chunk):
        first = max(0, min(begin, rows - span))  # a last chunk that the clip cuts short hears as much before
        own = heard(first, min(span, rows - first))
        talk, listen = (
            torch.cat((x[:, : begin + BEFORE], y[:, begin - first + BEFORE :]), dim=1)
            for x, y in zip((talk, listen), own, strict=True)
        )
    return talk, listen


def clip_latents(model: AvatarModel, clip: Clip | Window) -> LatentSet:
    """One clip, rendered with `AFTER` frames to spare, as a set of one."""
    geometry = model.config.geometry
    size = model.audio.encoder.frame_samples
    frames = len(clip.frames) - AFTER
    lead = (model.audio.history + BEFORE) * size
    lanes = [
        torch.from_numpy(np.concatenate((np.zeros(max(0, lead - len(before)), np.float32), before[-lead:], lane)))[None]
        for before, lane in ((clip.agent_before, clip.agent), (clip.user_before, clip.user))
    ]
    with torch.no_grad():
        talk, listen = _features(model, lanes, feature_frames(frames))
        pixels = torch.from_numpy(clip.frames[:frames]).float().div(127.5).sub(1).permute(3, 0, 1, 2)[None]
        latents = encode_clip(model.codec, pixels, clip.frames[:frames])
    assert talk.shape[1] == feature_frames(frames)
    return LatentSet(
        latents=latents.half(),
        talk=talk.half(),
        listen=listen.half(),
        mouth=mouth_cells(clip.landmarks["mouth"][:frames], geometry, cell_of(model.config))[None].half(),
        opening=torch.from_numpy(clip.performance.mouth_open[:frames])[None].half(),
        state=torch.from_numpy(clip.performance.state[:frames])[None].to(torch.int8),
    )


def cell_of(model: ModelConfig) -> int:
    """Pixels per latent cell, each way, in the part of pictures that the codec looks at."""
    codec, geometry = model.codec, model.geometry
    return codec.cell(geometry) if isinstance(codec, FlowCodecConfig) else geometry.spatial_stride


def clips_of(
    seed: int, shard: int, count: int, frames: int, model: ModelConfig, source: Path | None
) -> Iterator[Clip | Window]:
    """The clips of one shard, the same on every machine; cut to the window of a codec that has one.

    Args:
        source: folder of shards to cut them from (the identities that are not held out); puppets, drawn here, if None.
            Windows that come again, since more clips are asked for than there are, come changed, see `data.augment`.

    Raises:
        UserError: the folder's pictures have another size.
    """
    length, geometry, codec = frames + AFTER, model.geometry, model.codec
    if source is None:
        stream = clip_stream(seed_for(seed, "clips", shard), frames=length, size=geometry.height)
        yield from islice(stream, count)
        return
    # Here, since what trains on clips that are ready may have no FFmpeg.
    from streamavatar.data.augment import augmented, cropped, in_place
    from streamavatar.data.reader import ShardSet, WindowOrder

    shards = ShardSet(source, "train")
    order = WindowOrder(shards.entries, length, seed)
    face = codec.face if isinstance(codec, FlowCodecConfig) else ()
    for number in range(shard * count, (shard + 1) * count):
        epoch, place = divmod(number, len(order))
        entry, draw = order.at(epoch, place)
        window = shards.random_window(entry, length, draw)
        if window.frames.shape[1:3] != (geometry.height, geometry.width):
            found = "x".join(map(str, window.frames.shape[1:3]))
            raise UserError(f"{source}: pictures are {found}, not {geometry.height}x{geometry.width}; make others")
        rng = np.random.default_rng(draw)
        if epoch:
            window = augmented(window, rng, mirrored=epoch % 2 == 1, face=face)
        elif face:
            window = in_place(window, face, rng)
        yield cropped(window, *codec.part(geometry)) if isinstance(codec, FlowCodecConfig) else window


def _cut(frames: np.ndarray, codec: FlowCodecConfig, geometry: Geometry) -> np.ndarray:
    """The codec's window of whole pictures [F, H, W, 3]; others are windows already."""
    rows, columns = codec.part(geometry)
    return frames[:, rows, columns] if frames.shape[1:3] == (geometry.height, geometry.width) else frames


def _latent_shard(folder: Path, model_folder: Path, seed: int, shard: int, frames: int, source: Path | None) -> None:
    torch.set_num_threads(1)
    model = AvatarModel.load(model_folder)
    sets = [clip_latents(model, clip) for clip in clips_of(seed, shard, SHARD, frames, model.config, source)]
    names = LatentSet.__dataclass_fields__
    LatentSet(**{n: torch.cat([getattr(s, n) for s in sets]) for n in names}).save(_shard_path(folder, shard))


def _shard_path(folder: Path, shard: int) -> Path:
    return folder / f"clips-{shard:05d}.safetensors"


def make_latents(
    folder: Path,
    model_folder: Path,
    *,
    seed: int,
    clips: int,
    frames: int,
    workers: int,
    tell: Tell,
    source: Path | None = None,
) -> None:
    """Make the shards of `clips` clips (rounded up to whole shards) that are not there yet; `source` as `clips_of`."""
    shards = range(-(-clips // SHARD))
    missing = [s for s in shards if not _shard_path(folder, s).exists()]
    tasks = [(folder, model_folder, seed, s, frames, source) for s in missing]
    in_processes(_latent_shard, tasks, workers, lambda done: tell(len(shards) - len(missing) + done, len(shards)))


@dataclass(frozen=True)
class Footage:
    """Rendered clips for the codec.

    Attributes:
        frames: uint8 [N, F, H, W, 3].
        mouths: share of each latent cell that the mouth covers, [N, T, h, w].
        motion: of all clips, float16; None for codecs that need none.
    """

    frames: np.ndarray
    mouths: Tensor
    motion: Motion | None = None


def _frames_part(
    path: Path, model: ModelConfig, seed: int, part: int, count: int, frames: int, source: Path | None
) -> None:
    pictures, mouths, motions = [], [], []
    codec = FlowCodec(model.codec, model.geometry) if isinstance(model.codec, FlowCodecConfig) else None
    for clip in clips_of(seed, part, count, frames, model, source):
        pictures.append(clip.frames[:frames])
        mouths.append(mouth_cells(clip.landmarks["mouth"][:frames], model.geometry, cell_of(model)).numpy())
        if codec is not None:
            motions.append(motion_of(clip.frames[:frames], codec))
    temporary = path.with_suffix(".partial.npz")
    arrays: dict[str, Any] = {"frames": np.stack(pictures), "mouths": np.stack(mouths)}
    for name in ("pose", "flow") if codec is not None else ():
        arrays[name] = torch.cat([getattr(motion, name) for motion in motions]).half().numpy()
    np.savez(temporary, **arrays)
    os.replace(temporary, path)


def make_frames(
    folder: Path,
    model: ModelConfig,
    *,
    seed: int,
    clips: int,
    frames: int,
    workers: int,
    tell: Tell,
    source: Path | None = None,
) -> Footage:
    """Rendered clips for the codec, with their motion if it needs that; `source` as `clips_of`."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = range(-(-clips // SHARD))
    paths = [folder / f"frames-{p:05d}.npz" for p in parts]
    tasks = [
        (path, model, seed, p, SHARD, frames, source) for p, path in zip(parts, paths, strict=True) if not path.exists()
    ]
    in_processes(_frames_part, tasks, workers, lambda done: tell(len(paths) - len(tasks) + done, len(paths)))
    pictures: np.ndarray | None = None
    mouths, poses, flows = [], [], []
    for part, path in enumerate(paths):  # into one array, since two copies may not fit into the memory
        with np.load(path) as loaded:
            found = loaded["frames"]
            if pictures is None:
                pictures = np.empty((len(paths) * SHARD, *found.shape[1:]), np.uint8)
            pictures[part * SHARD : (part + 1) * SHARD] = found
            mouths.append(loaded["mouths"])
            if "flow" in loaded:
                poses.append(loaded["pose"])
                flows.append(loaded["flow"])
    assert pictures is not None
    motion = Motion(*(torch.from_numpy(np.concatenate(x)) for x in (poses, flows))) if flows else None
    return Footage(pictures, torch.from_numpy(np.concatenate(mouths)), motion)


def in_processes(work: Callable[..., None], tasks: list[tuple], workers: int, tell: Callable[[int], None]) -> None:
    """Run `work(*task)` for all tasks in fresh processes; the first error stops the rest."""
    if not tasks:
        tell(0)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures: list[Future[None]] = [pool.submit(work, *task) for task in tasks]
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                tell(done)
        except BrokenProcessPool as error:
            raise UserError(
                "a process that makes data was killed, perhaps for lack of memory: run the same command again, "
                "with fewer workers if it happens again"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
