"""Training windows out of shards: found at once by position, decoded ahead of the trainer by threads.

Which window comes at which position is a function of the seed alone. Ranks and threads share the positions out among
themselves, so the state of a reader is three numbers that fit any number of either.
"""

from __future__ import annotations

import json
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import av.error
import numpy as np
from numpy.typing import NDArray

from streamavatar.data.packing import Frames, Samples, Truth, decode_lane, decode_truth, decode_video
from streamavatar.data.shards import Entry, check_size, damaged, read_manifest
from streamavatar.errors import UserError
from streamavatar.seeds import seed_for
from streamavatar.synth.clips import BEFORE, choose_start
from streamavatar.synth.performance import FRAME_SAMPLES, Performance
from streamavatar.synth.source import LANDMARKS

Split = Literal["train", "held-out", "all"]
HELD_OUT = 0.05
"""Share of the identities that training never sees."""


@dataclass(frozen=True)
class Window:
    """A piece of a clip; has what `synth.clips.Clip` has, but for the identity's looks.

    Attributes:
        frames: uint8 RGB [F,H,W,3].
        agent, user: float32 16 kHz [F*640], sample 0 at the start of frame 0.
        agent_before, user_before: the second before that [16000], zeros where there is none.
        truth: per frame, see `synth.source.SynthClip`.
        key, identity, start: which clip, who, and the window's first frame in it.
    """

    frames: Frames
    agent: Samples
    user: Samples
    agent_before: Samples
    user_before: Samples
    truth: Truth
    key: str
    identity: str
    start: int

    @property
    def performance(self) -> Performance:
        return _performance(self.truth)

    @property
    def landmarks(self) -> dict[str, NDArray[np.float32]]:
        return {name.removeprefix(LANDMARKS): v for name, v in self.truth.items() if name.startswith(LANDMARKS)}


def _performance(truth: Truth) -> Performance:
    return Performance(**{f.name: truth[f.name] for f in fields(Performance)})


def held_out(identity: str, share: float = HELD_OUT) -> bool:
    """Whether a person belongs to the held-out ones: by name, so that it stays so when the set grows."""
    return seed_for(0, f"held out {identity}") < share * 2**63


class ShardSet:
    """The clips of a folder of shards.

    Args:
        folder: as `streamavatar data synth` made it; shards that finish later are not seen.
        split: whose clips.

    Raises:
        UserError: there are none, or a shard is missing or has another size than when it was made.
    """

    def __init__(self, folder: Path, split: Split = "all") -> None:
        self.folder = folder
        lines = read_manifest(folder)
        if not lines:
            raise UserError(f"{folder}: no finished shards; make some with `streamavatar data synth --out {folder}`")
        entries = []
        for name in sorted(lines):
            check_size(folder / name, lines[name])
            entries += [
                Entry(name, clip["key"], clip["frames"], clip["identity"], clip["files"])
                for clip in lines[name]["clips"]
            ]
        self.entries = [e for e in entries if split == "all" or held_out(e.identity) == (split == "held-out")]
        if not self.entries:
            raise UserError(f"{folder}: no {split} identity among {len(entries)} clips; make more of them")

    def __len__(self) -> int:
        return len(self.entries)

    def about(self, entry: Entry) -> dict[str, Any]:
        """The clip's JSON."""
        return dict(json.loads(self._read(entry, "json")))

    def truth(self, entry: Entry) -> Truth:
        """Truth of the whole clip."""
        with self._whole(entry):
            return decode_truth(self._read(entry, "truth.npz"))

    def window(self, entry: Entry, start: int, frames: int) -> Window:
        """Frames `start` .. `start + frames` of a clip, with its lanes and truth.

        Raises:
            UserError: the shard does not decode; ValueError: the clip has no such frames.
        """
        if start < 0 or start + frames > entry.frames:
            raise ValueError(f"clip {entry.key} has {entry.frames} frames, asked for {start}..{start + frames}")
        return self._window(entry, self.truth(entry), start, frames)

    def random_window(self, entry: Entry, frames: int, seed: int) -> Window:
        """A window with a random start; half of them at a quiet point, as a session's reference picture is."""
        truth = self.truth(entry)
        start = choose_start(_performance(truth), frames, np.random.default_rng(seed))
        return self._window(entry, truth, start, frames)

    def _window(self, entry: Entry, truth: Truth, start: int, frames: int) -> Window:
        first, count = start * FRAME_SAMPLES, frames * FRAME_SAMPLES
        with self._whole(entry):
            lanes = [
                decode_lane(self._read(entry, f"{who}.opus"), first - BEFORE, BEFORE + count)
                for who in ("agent", "user")
            ]
            pictures = decode_video(self._read(entry, "mp4"), start, frames)
        (agent_before, agent), (user_before, user) = ((lane[:BEFORE], lane[BEFORE:]) for lane in lanes)
        part = {name: values[start : start + frames] for name, values in truth.items()}
        return Window(pictures, agent, user, agent_before, user_before, part, entry.key, entry.identity, start)

    def _read(self, entry: Entry, suffix: str) -> bytes:
        offset, size = entry.files[suffix]
        with (self.folder / entry.shard).open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def _whole(self, entry: Entry) -> _Whole:
        return _Whole(self.folder / entry.shard, entry.key)


class _Whole:
    """Errors of decoders, named after the shard and the clip."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (av.error.FFmpegError, BadZipFile, ValueError, KeyError, OSError, EOFError, zlib.error)):
            raise damaged(self.path, f"clip {self.key}: {error}") from error


class WindowOrder:
    """Which window is at which place of which epoch.

    An epoch takes from every clip as many windows as it is windows long, in random order.

    Raises:
        UserError: all clips are shorter than a window.
    """

    def __init__(self, entries: list[Entry], frames: int, seed: int) -> None:
        self.frames, self.seed = frames, seed
        self._windows = [entry for entry in entries for _ in range(entry.frames // frames)]
        if not self._windows:
            raise UserError(f"no clip has {frames} frames: make longer clips, or train on shorter windows")
        self._shuffled = lru_cache(maxsize=2)(self._shuffle)

    def __len__(self) -> int:
        return len(self._windows)

    def at(self, epoch: int, place: int) -> tuple[Entry, int]:
        """The clip and the seed of its window's start."""
        return self._windows[self._shuffled(epoch)[place]], seed_for(self.seed, "window", epoch, place)

    def _shuffle(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng(seed_for(self.seed, "epoch", epoch)).permutation(len(self))


class WindowReader(Iterator[Window]):
    """Endless random windows, `ahead` of which are decoded before they are asked for.

    Args:
        shards: where from.
        frames: length of a window.
        seed: of the order; the same for all ranks.
        rank, world: this reader takes every `world`-th window.
        threads: decoders.
        ahead: windows kept ready; memory holds as many.
        state: of any reader of this seed and length (`state`), to go on after it.

    Use it in a `with` block, or call :meth:`close`.
    """

    def __init__(
        self, shards: ShardSet, frames: int, *, seed: int = 0, rank: int = 0, world: int = 1, threads: int = 2,
        ahead: int = 8, state: dict[str, int] | None = None,
    ) -> None:  # fmt: skip
        self.shards, self.order = shards, WindowOrder(shards.entries, frames, seed)
        if state is not None and state["seed"] != seed:
            raise ValueError(f"the state is of seed {state['seed']}, the reader of {seed}")
        self.rank, self.world, self.ahead = rank, world, ahead
        self._epoch, self._cursor = (state["epoch"], state["cursor"]) if state else (0, 0)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="windows")
        self._ready: deque[Future[Window]] = deque()
        self._fill()

    def __next__(self) -> Window:
        window = self._ready.popleft().result()
        self._epoch, self._cursor = self._moved(1)
        self._fill()
        return window

    def state(self) -> dict[str, int]:
        """Where all ranks are when each has taken as many windows as this one."""
        return {"seed": self.order.seed, "epoch": self._epoch, "cursor": self._cursor}

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> WindowReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _moved(self, rounds: int, offset: int = 0) -> tuple[int, int]:
        """Epoch and place that lie `rounds` windows of every rank, and `offset` more, ahead."""
        epochs, place = divmod(self._cursor + rounds * self.world + offset, len(self.order))
        return self._epoch + epochs, place

    def _fill(self) -> None:
        while len(self._ready) < self.ahead:
            entry, seed = self.order.at(*self._moved(len(self._ready), self.rank))
            self._ready.append(self._pool.submit(self.shards.random_window, entry, self.order.frames, seed))
