"""What a stage leaves to look at: a line of JSON every few steps, and the same curves and clips for TensorBoard."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Frames = NDArray[np.uint8]
STRIP = 8
"""Frames of a clip that are shown side by side."""


class Screen:
    """Shows what a model makes of one person.

    Args:
        codec: whatever of the codecs the model has.
        picture: of the person, [1, 3, H, W] in -1..1.
        fps: of the video.
    """

    def __init__(self, codec: Any, picture: Tensor, fps: int) -> None:
        self.codec, self.picture, self.fps = codec, picture, fps
        self.reference, self._state = codec.open(picture)
        """The person's latent [1, C, 1, h, w]."""

    def frames(self, latents: Tensor) -> Frames:
        """Latents [1, C, T, h, w], the reference first, to uint8 [1 + 4 (T - 1), H, W, 3]."""
        moving, _ = self.codec.decode(latents[:, :, 1:], self._state)
        pictures = torch.cat((self.picture[:, :, None], moving.float()), dim=2)[0].movedim(0, -1)
        return ((pictures + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy()


class Journal:
    """`log.jsonl`, and `tensorboard/` where that package is installed; a context manager.

    Args:
        folder: of the stage.
        step: the first that will be written; curves beyond it, of a run that was killed, are cut.
        active: whether to write at all; of many ranks only one does.
    """

    def __init__(self, folder: Path, step: int, *, active: bool = True) -> None:
        self.folder, self.active = folder, active
        self._board: Any = None
        if not active:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._lines = open(folder / "log.jsonl", "a", encoding="utf-8")  # noqa: SIM115  (closed by the block's end)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            self._write({"note": f"no curves for TensorBoard: {error.name} is not installed"})
        else:
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.active:
            self._lines.close()
        if self._board is not None:
            self._board.close()

    def record(self, step: int, numbers: dict[str, float]) -> None:
        """Numbers of a step."""
        if not self.active:
            return
        self._write({"step": step, "time": time.time(), **numbers})
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, step)

    def note(self, text: str) -> None:
        """Something that happened."""
        if self.active:
            self._write({"note": text})

    def clip(self, step: int, frames: Frames, fps: int) -> None:
        """A sample [F, H, W, 3], as `samples/step-*.mp4` and as a strip of frames."""
        if not self.active:
            return
        from streamavatar.media import VideoWriter  # here, since training without samples needs no FFmpeg

        target = self.folder / "samples" / f"step-{step:07d}.mp4"
        target.parent.mkdir(exist_ok=True)
        height, width = frames.shape[1:3]
        with VideoWriter(target, height, width, fps=fps, audio_rate=None) as video:
            video.write(frames)
        if self._board is not None:
            chosen = np.linspace(0, len(frames) - 1, STRIP).round().astype(int)
            self._board.add_image("sample", np.concatenate(frames[chosen], axis=1), step, dataformats="HWC")

    def _write(self, record: dict[str, Any]) -> None:
        self._lines.write(json.dumps(record) + "\n")
        self._lines.flush()
