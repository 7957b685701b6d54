"""Every size that follows from picture size, frame rate, codec strides and chunk length.

This is the only home of numbers such as 12 frames per chunk or 880 tokens per latent: other modules ask
for them here. Vocabulary: a *frame* is pixels; a *latent* is one latent frame; latent 0 is the *reference*
and covers frame 0 alone, every later latent covers `temporal_stride` frames; a *chunk* is
`chunk_latents` latents. Chunks count from 1, as in the paper (s_i = (i-1)C + 1, e_i = iC).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Geometry:
    """Sizes in pixels (height, width), frames per second, strides and latents per chunk.

    Raises:
        ValueError: if a size is not positive, or the picture is not a whole number of tokens.
    """

    height: int = 128
    width: int = 128
    fps: int = 25
    spatial_stride: int = 16
    temporal_stride: int = 4
    patch: int = 2
    latent_channels: int = 48
    chunk_latents: int = 3

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if getattr(self, name) < 1:
                raise ValueError(f"geometry: {name} must be at least 1, got {getattr(self, name)}")
        pixels = self.spatial_stride * self.patch
        if self.height % pixels or self.width % pixels:
            raise ValueError(
                f"geometry: height and width must be multiples of {pixels}, got {self.height}x{self.width}"
            )

    # pixels, latents, tokens -----------------------------------------------------------------------

    @property
    def latent_height(self) -> int:
        return self.height // self.spatial_stride

    @property
    def latent_width(self) -> int:
        return self.width // self.spatial_stride

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens in one latent."""
        return self.latent_height // self.patch, self.latent_width // self.patch

    @property
    def tokens_per_latent(self) -> int:
        rows, columns = self.grid
        return rows * columns

    # time ------------------------------------------------------------------------------------------

    @property
    def chunk_frames(self) -> int:
        return self.chunk_latents * self.temporal_stride

    @property
    def chunk_seconds(self) -> float:
        return self.chunk_frames / self.fps

    def frames_of(self, latents: int) -> int:
        """Frames that `latents` latents decode to: 1 for the reference, then `temporal_stride` each."""
        if latents < 1:
            raise ValueError(f"geometry: a clip has at least the reference latent, got {latents}")
        return 1 + (latents - 1) * self.temporal_stride

    def latents_of(self, frames: int) -> int:
        """Latents that a clip of `frames` frames encodes to; the inverse of :meth:`frames_of`."""
        if frames < 1 or (frames - 1) % self.temporal_stride:
            raise ValueError(f"geometry: a clip has 1 + {self.temporal_stride}n frames, got {frames}")
        return 1 + (frames - 1) // self.temporal_stride

    def latent_frames(self, latent: int) -> range:
        """The frames that latent k covers: 0 for the reference, else (k-1)s+1 .. ks with s the stride."""
        if latent == 0:
            return range(0, 1)
        return range((latent - 1) * self.temporal_stride + 1, latent * self.temporal_stride + 1)

    def chunk_span(self, chunk: int) -> range:
        """Latent indices s_i .. e_i of chunk i >= 1; chunk 0 is the reference alone."""
        if chunk < 0:
            raise ValueError(f"geometry: chunks count from 0 (the reference), got {chunk}")
        if chunk == 0:
            return range(0, 1)
        return range((chunk - 1) * self.chunk_latents + 1, chunk * self.chunk_latents + 1)

    def chunk_frame_span(self, chunk: int) -> range:
        """Frame indices that chunk i >= 1 decodes to."""
        span = self.chunk_span(chunk)
        return range(self.latent_frames(span[0])[0], self.latent_frames(span[-1])[-1] + 1)

    def chunks_for(self, frames: int) -> int:
        """Chunks needed to show `frames` frames of output (the reference frame is not output)."""
        return -(-frames // self.chunk_frames)
