"""The way in and out for files: pictures and audio are read here, videos are written here.

Everything here speaks numpy: pictures and frames are uint8 RGB `[..., height, width, 3]`, audio is mono
float32 `[samples]` with 1.0 as full scale. Nothing here imports torch. What is wrong with a file is said
in one line by :class:`streamavatar.errors.UserError`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamavatar.media.audio import Audio, read_audio
    from streamavatar.media.image import image_from_array, read_image
    from streamavatar.media.signal import StreamResampler, as_signal, resample
    from streamavatar.media.video import VideoWriter, read_video

__all__ = [
    "Audio",
    "StreamResampler",
    "VideoWriter",
    "as_signal",
    "image_from_array",
    "read_audio",
    "read_image",
    "read_video",
    "resample",
]

_HOMES = {
    "audio": ("Audio", "read_audio"),
    "image": ("image_from_array", "read_image"),
    "signal": ("StreamResampler", "as_signal", "resample"),
    "video": ("VideoWriter", "read_video"),
}


def __getattr__(name: str) -> object:
    """Load a part on first use: sound in memory and pictures need no FFmpeg, and an engine needs no more than these."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"streamavatar.media.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
