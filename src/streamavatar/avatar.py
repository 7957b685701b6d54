"""The public API: load a model once, open sessions on pictures, push audio, get frames."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from streamavatar import bundled
from streamavatar.config import ModelConfig
from streamavatar.engine import Pipeline, Session
from streamavatar.engine.session import LANES
from streamavatar.errors import UserError
from streamavatar.media import image_from_array, read_image
from streamavatar.models.avatar import AvatarModel
from streamavatar.models.transformer import Conditions, Transformer

Precision = Literal["auto", "float32", "bfloat16"]


class Avatar:
    """A model, ready for any number of sessions.

    Example:
        >>> from streamavatar import Avatar
        >>> session = Avatar.load().session("ada", agent_rate=24000, lanes=["agent"])
        >>> for output in session.push(agent=speech):  # float32 mono
        ...     show(output.frames, output.audio)
    """

    def __init__(self, model: AvatarModel, pipeline: Pipeline) -> None:
        self.model, self.pipeline = model, pipeline

    @staticmethod
    def load(
        path: str | os.PathLike[str] | None = None,
        *,
        device: str = "cpu",
        precision: Precision = "auto",
        threads: int | None = None,
    ) -> Avatar:
        """Load a model folder, or the bundled default.

        Args:
            path: a folder with config.json and model.safetensors.
            device: a torch device.
            precision: of the transformer and the codec. "auto" is bfloat16 on a GPU; on a CPU it times one pass
                in each and takes bfloat16 only where that is clearly faster.
            threads: of each of the two workers; by default half of the cores.

        Raises:
            UserError: if the folder, the device or the precision is no good.
        """
        folder = Path(path) if path is not None else bundled.model_folder()
        model = AvatarModel.load(folder)
        pipeline = Pipeline(threads)
        try:
            model = model.to(torch.device(device))
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"cannot use device {device!r} ({str(error).splitlines()[0]}); try --device cpu") from error
        if precision not in ("auto", "float32", "bfloat16"):
            raise UserError(f"unknown precision {precision!r}; use auto, float32 or bfloat16")
        if precision == "bfloat16" or (precision == "auto" and _half_is_faster(model, pipeline)):
            model.transformer.bfloat16()
            model.codec.detail.bfloat16()
        return Avatar(model, pipeline)

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def precision(self) -> str:
        """Precision of the transformer: "float32" or "bfloat16"."""
        return str(self.model.transformer.head.head.weight.dtype).removeprefix("torch.")

    def session(
        self,
        image: str | os.PathLike[str] | NDArray[np.uint8] | None = None,
        *,
        agent_rate: int = 16000,
        user_rate: int = 16000,
        lanes: Sequence[str] = LANES,
        seed: int = 0,
    ) -> Session:
        """A new live avatar of one picture.

        Args:
            image: name of a bundled portrait, path of a picture, or an RGB array [H, W, 3]; by default a portrait.
            agent_rate, user_rate: of the audio that will be pushed, in Hz; multiples of the frame rate (25).
            lanes: the lanes that will be pushed; a lane left out is silent and is not waited for.
            seed: same seed, same audio, same frames.

        Raises:
            UserError: if the picture, a rate or a lane is no good.
        """
        size = (self.config.geometry.height, self.config.geometry.width)
        if image is None:
            image = bundled.DEFAULT_AVATAR
        if isinstance(image, np.ndarray):
            reference = image_from_array(image, *size)
        else:
            named = isinstance(image, str) and image in bundled.portraits()
            reference = read_image(bundled.portrait(str(image)).path if named else image, *size)
        return Session(
            self.model, self.pipeline, reference, agent_rate=agent_rate, user_rate=user_rate, lanes=lanes, seed=seed
        )


def _half_is_faster(model: AvatarModel, pipeline: Pipeline, margin: float = 1.1) -> bool:
    """Whether one pass in bfloat16 beats float32 by `margin` on this machine; always true on a GPU."""
    parameter = model.transformer.head.head.weight
    if parameter.device.type != "cpu":
        return True
    full, half = (pipeline.call(partial(_time_pass, model, dtype)) for dtype in (torch.float32, torch.bfloat16))
    return full > margin * half


def _time_pass(model: AvatarModel, dtype: torch.dtype) -> float:
    """Best seconds of a pass over ten latents, about what a chunk sees."""
    config, g = model.config, model.config.geometry
    transformer = Transformer(config.transformer).to(dtype).eval()
    x = torch.randn(1, g.latent_channels, 10, g.latent_height, g.latent_width, dtype=dtype)
    audio = torch.randn(1, 10, config.audio.tokens, config.audio.dim, dtype=dtype)
    conditions = Conditions(audio, audio, x[:, :, :1])
    times = []
    with torch.inference_mode():
        for _ in range(4):
            begin = perf_counter()
            transformer(x, torch.ones(1, 10), conditions)
            times.append(perf_counter() - begin)
    return min(times)
