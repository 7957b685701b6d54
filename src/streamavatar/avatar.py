"""The public API: load a model once, open sessions on pictures, push audio, get frames."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
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
from streamavatar.media.image import Crop
from streamavatar.models.avatar import AvatarModel, read_config
from streamavatar.models.codec.choice import DecoderName
from streamavatar.models.memory import require_memory
from streamavatar.ops.precision import half_is_fast

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
        decoder: DecoderName = "full",
        decoder_device: str | None = None,
    ) -> Avatar:
        """Load a model folder, or the bundled default.

        Args:
            path: a folder with config.json and model.safetensors.
            device: a torch device.
            precision: of the transformer and the decoder. "auto" is bfloat16 on a GPU and on CPUs that multiply it
                natively (AVX-512 BF16, AMX), else float32.
            threads: of each of the two workers; by default half of the cores.
            decoder: "full", the model's own; models of the full size may also have "light" and "pruned".
            decoder_device: another device for the codec, for example a second GPU; the same one if None.

        Raises:
            UserError: if the folder, the device, the precision or the decoder is no good, or memory does not suffice.
        """
        folder = Path(path) if path is not None else bundled.model_folder()
        where, beside = _device(device), _device(decoder_device or device)
        if precision not in ("auto", "float32", "bfloat16"):
            raise UserError(f"unknown precision {precision!r}; use auto, float32 or bfloat16")
        half = precision == "bfloat16" or (precision == "auto" and half_is_fast(where))
        dtype = torch.bfloat16 if half else torch.float32
        require_memory(folder, read_config(folder), decoder, dtype, where, beside)
        model = AvatarModel.load(folder, device=where, dtype=dtype, decoder=decoder, decoder_device=beside)
        return Avatar(model, Pipeline(threads, (where, beside)))

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
        crop: Crop = "whole",
        agent_rate: int = 16000,
        user_rate: int = 16000,
        lanes: Sequence[str] = LANES,
        seed: int = 0,
    ) -> Session:
        """A new live avatar of one picture.

        Args:
            image: name of a bundled portrait, path of a picture, or an RGB array [H, W, 3]; by default a portrait.
            crop: "face" takes the square around the largest face, as the portraits are framed (needs dlib, of the extra
                `live`); "whole" takes the picture as it is, cut to the model's aspect.
            agent_rate, user_rate: of the audio that will be pushed, in Hz; multiples of the frame rate (25).
            lanes: the lanes that will be pushed; a lane left out is silent and is not waited for.
            seed: same seed, same audio, same frames.

        Raises:
            FaceError: if a face is asked for, and none is found or dlib is missing.
            UserError: if the picture, a rate or a lane is no good.
        """
        size = (self.config.geometry.height, self.config.geometry.width)
        if image is None:
            image = bundled.DEFAULT_AVATAR
        if isinstance(image, np.ndarray):
            reference = image_from_array(image, *size, crop)
        else:
            reference = read_image(_picture(image), *size, crop)
        return Session(
            self.model, self.pipeline, reference, agent_rate=agent_rate, user_rate=user_rate, lanes=lanes, seed=seed
        )


def _device(name: str) -> torch.device:
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"cannot use device {name!r} ({str(error).splitlines()[0]}); try --device cpu") from error


def _picture(image: str | os.PathLike[str]) -> Path:
    """The file of a bundled portrait's name, or of a path; a bare word that is no file is taken for a name."""
    path = Path(image)
    if image in bundled.portraits() or (len(path.parts) == 1 and not path.suffix and not path.exists()):
        return bundled.portrait(str(image)).path
    return path
