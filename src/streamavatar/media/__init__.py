"""The way in and out for files: pictures and audio are read here, videos are written here.

Everything here speaks numpy: pictures and frames are uint8 RGB `[..., height, width, 3]`, audio is mono
float32 `[samples]` with 1.0 as full scale. Nothing here imports torch. What is wrong with a file is said
in one line by :class:`streamavatar.errors.UserError`.
"""

from __future__ import annotations

from streamavatar.media.audio import Audio, StreamResampler, as_signal, read_audio, resample
from streamavatar.media.image import image_from_array, read_image
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
