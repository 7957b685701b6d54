"""What makes the frames of a chunk: weights, cache, decoder state and noise, whoever feeds the audio.

`Session` feeds it from streams, `StepSession` chunk by chunk. The noise of a chunk depends on the seed and the chunk's
number alone, so what is shown does not depend on how the audio was cut or on what else runs.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamavatar.engine.lane import Samples
from streamavatar.engine.telemetry import Telemetry
from streamavatar.models.audio import AFTER, latent_window
from streamavatar.models.avatar import AvatarModel
from streamavatar.models.codec import DecoderState
from streamavatar.models.transformer import Conditions
from streamavatar.rollout import Passes, make_chunk, prime
from streamavatar.seeds import seed_for


class ChunkMaker:
    """See the module's docstring. Its methods run on the pipeline's workers, one chunk after the other.

    Args:
        model: shared weights, in evaluation mode.
        reference: uint8 RGB [H, W, 3] of the model's size; encoding it starts the cache and the decoder's state.
        seed: of the noise.
        telemetry: told how long the stages took.
    """

    def __init__(self, model: AvatarModel, reference: NDArray[np.uint8], seed: int, telemetry: Telemetry) -> None:
        self.model, self.seed, self.telemetry = model, seed, telemetry
        weight = model.transformer.head.head.weight
        self._dtype, self._device = weight.dtype, weight.device
        self._passes = Passes.of(model.config)
        self._cache = model.ring_cache()
        self._reference, self.decoder_state = self._start(reference)

    def heard_ticks(self, chunk: int) -> range:
        """The ticks whose sound chunk `chunk` (from 1) depends on: history, its own, and the look-ahead."""
        # Frame j hears tick j - 1; the first feature that the chunk's windows need is that of `first` (a frame).
        begin = (chunk - 1) * self.model.config.geometry.chunk_frames
        history = self.model.audio.history
        return range(self._first(chunk) - 1 - history, begin + self.model.config.geometry.chunk_frames + AFTER)

    def transform(self, chunk: int, agent: Samples, user: Samples, *, user_ahead: bool = True) -> Tensor:
        """The latents of a chunk.

        Args:
            chunk: its number; chunks come in order, and the last one made may be made again, which leaves no trace of
                the first time: every pass writes the chunk's own slot of the cache before it reads.
            agent, user: sound at the feature rate, of `heard_ticks`.
            user_ahead: whether the user's look-ahead is known; if not, the last feature stands for it.
        """
        span = self.model.config.geometry.chunk_span(chunk)
        with torch.inference_mode():
            with self.telemetry.timed("audio"):
                conditions = self._conditions(agent, user, self._first(chunk), span, self._reference, user_ahead)
            with self.telemetry.timed("transformer"):
                return make_chunk(self.model.transformer, self._cache, chunk, conditions, self._noise, self._passes)

    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """The frames of a chunk, uint8 RGB [F, H, W, 3]."""
        with torch.inference_mode(), self.telemetry.timed("decode"):
            pixels, self.decoder_state = self.model.codec.decode(latents, self.decoder_state)
            return _to_uint8(pixels)

    def _first(self, chunk: int) -> int:
        """The frame of the first feature that a chunk needs."""
        geometry = self.model.config.geometry
        return latent_window(geometry.chunk_span(chunk)[0], geometry.temporal_stride).start

    def _conditions(
        self, agent: Samples, user: Samples, first: int, span: range, reference: Tensor, user_ahead: bool = True
    ) -> Conditions:
        lanes = [torch.from_numpy(x)[None].to(self._device) for x in (agent, user)]
        heard, listened = self.model.audio.features(*lanes)
        if not user_ahead:
            last = listened[:, -AFTER - 1 : -AFTER]
            listened = torch.cat((listened[:, :-AFTER], last.expand(-1, AFTER, -1)), dim=1)
        talk, listen = self.model.audio.tokens(heard, listened, first, span)
        return Conditions(talk.to(self._dtype), listen.to(self._dtype), reference)

    def _noise(self, chunk: int, step: int) -> Tensor:
        g = self.model.config.geometry
        generator = torch.Generator().manual_seed(seed_for(self.seed, "noise", chunk, step))
        shape = (1, g.latent_channels, g.chunk_latents, g.latent_height, g.latent_width)
        return torch.randn(shape, generator=generator).to(self._device, self._dtype)

    def _start(self, picture: NDArray[np.uint8]) -> tuple[Tensor, DecoderState]:
        """Encode the reference picture, which starts the decoder's state, and put its latent into the cache's sink."""
        model = self.model
        window = latent_window(0)
        with torch.inference_mode():
            pixels = torch.from_numpy(picture).to(self._device).float().div(127.5).sub(1).permute(2, 0, 1)[None]
            latent, state = model.codec.open(pixels)
            latent = latent.to(self._dtype)
            ticks = model.audio.history + len(window)
            silence = np.zeros(ticks * model.audio.encoder.frame_samples, np.float32)
            prime(model.transformer, self._cache, self._conditions(silence, silence, window.start, range(1), latent))
        return latent, state


def _to_uint8(pixels: Tensor) -> NDArray[np.uint8]:
    """[1, 3, F, H, W] in -1..1 to uint8 [F, H, W, 3]."""
    scaled = pixels[0].float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(scaled.permute(1, 2, 3, 0).cpu().numpy())
