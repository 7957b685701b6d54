"""What makes the frames of a chunk: weights, cache, decoder state and noise, whoever feeds the audio.

`Session` feeds it from streams, `StepSession` chunk by chunk. The noise of a chunk depends on the seed and the chunk's
number alone, so what is shown does not depend on how the audio was cut or on what else runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_leaves

from streamavatar.cache import RingCache
from streamavatar.engine.graphs import RecordedPasses, meet_shapes
from streamavatar.engine.lane import Samples
from streamavatar.engine.pipeline import Pipeline
from streamavatar.engine.telemetry import Telemetry
from streamavatar.models.audio import AFTER, latent_window
from streamavatar.models.avatar import AvatarModel
from streamavatar.models.codec import DecoderState
from streamavatar.models.transformer import Conditions
from streamavatar.ops.transfer import download, rgb_frames, upload
from streamavatar.rollout import Passes, Sampler, make_chunk, prime
from streamavatar.seeds import seed_for


@dataclass(frozen=True)
class Reference:
    """A picture as sessions start from it. Nothing writes to it, so that any number of sessions may share one.

    Attributes:
        latent: of the picture, [1, C, 1, h, w], where the transformer is.
        state: what the decoder makes the first chunk from.
    """

    latent: Tensor
    state: DecoderState

    @staticmethod
    def encode(model: AvatarModel, picture: NDArray[np.uint8]) -> Reference:
        """Of a picture of the model's size, uint8 RGB [H, W, 3]. On the pipeline's first worker.

        cuDNN does not try its algorithms here: for one picture, the encoder's largest would take tens of gigabytes.
        """
        weight = model.transformer.head.head.weight
        decoder_device = next(model.codec.parameters()).device
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=False):
            pixels = torch.from_numpy(picture).to(decoder_device).float().div(127.5).sub(1).permute(2, 0, 1)[None]
            latent, state = model.codec.open(pixels)
            return Reference(latent.to(weight.device, weight.dtype), state)

    @property
    def nbytes(self) -> int:
        """Memory that it holds."""
        tensors = [self.latent, *tree_leaves(list(vars(self.state).values()))]
        return sum(x.nbytes for x in tensors if isinstance(x, Tensor))


class ChunkMaker:
    """See the module's docstring. Its methods run on the pipeline's workers, one chunk after the other.

    Args:
        model: shared weights, in evaluation mode.
        reference: uint8 RGB [H, W, 3] of the model's size, or already encoded; starts cache and decoder.
        seed: of the noise.
        telemetry: told how long the stages took; on a GPU, how long the host was busy with them.
        graphs: replay recorded passes where the transformer is on a GPU; needs `prepare`.
        prepare: let the passes of a chunk share what depends on the conditions alone.
        cache: another than the model's own kind.
    """

    def __init__(
        self,
        model: AvatarModel,
        reference: NDArray[np.uint8] | Reference,
        seed: int,
        telemetry: Telemetry,
        *,
        graphs: bool = True,
        prepare: bool = True,
        cache: RingCache | None = None,
    ) -> None:
        self.model, self.seed, self.telemetry = model, seed, telemetry
        weight = model.transformer.head.head.weight
        self._dtype, self._device = weight.dtype, weight.device
        self._passes = Passes.of(model.config)
        self._decoder_device = next(model.codec.parameters()).device
        self._cache = cache or model.ring_cache()
        self._prepares = prepare
        self._prepared: Conditions | None = None
        self._sampler: Sampler = model.transformer
        self._settle()
        if not isinstance(reference, Reference):
            reference = Reference.encode(model, reference)
        self._reference, self.decoder_state = reference.latent, reference.state
        self._start()
        if self._device.type == "cuda":
            self._warm(graphs and prepare)

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
                if self._prepares:
                    conditions = self._prepared = self.model.transformer.prepare(conditions, self._prepared)
                return make_chunk(self._sampler, self._cache, chunk, conditions, self._noise, self._passes)

    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """The frames of a chunk, uint8 RGB [F, H, W, 3]."""
        before = self.decoder_state  # lives until its readers are done: another stream may have made it
        with torch.inference_mode(), self.telemetry.timed("decode"):
            pixels, self.decoder_state = self.model.codec.decode(latents.to(self._decoder_device), before)
            return download(rgb_frames(pixels))

    def _settle(self) -> None:
        """Wait for the GPUs: weights and first states may come from streams that nobody else waits for."""
        for device in {self._device, self._decoder_device}:
            if device.type == "cuda":
                torch.cuda.synchronize(device)

    def _first(self, chunk: int) -> int:
        """The frame of the first feature that a chunk needs."""
        geometry = self.model.config.geometry
        return latent_window(geometry.chunk_span(chunk)[0], geometry.temporal_stride).start

    def _conditions(
        self, agent: Samples, user: Samples, first: int, span: range, reference: Tensor, user_ahead: bool = True
    ) -> Conditions:
        lanes = [upload(torch.from_numpy(x)[None], self._device) for x in (agent, user)]
        heard, listened = self.model.audio.features(*lanes)
        if not user_ahead:
            last = listened[:, -AFTER - 1 : -AFTER]
            listened = torch.cat((listened[:, :-AFTER], last.expand(-1, AFTER, -1)), dim=1)
        talk, listen = self.model.audio.tokens(heard, listened, first, span)
        return Conditions(talk.to(self._dtype), listen.to(self._dtype), reference, self.model.text)

    def _noise(self, chunk: int, step: int) -> Tensor:
        g = self.model.config.geometry
        generator = torch.Generator().manual_seed(seed_for(self.seed, "noise", chunk, step))
        shape = (1, g.latent_channels, g.chunk_latents, g.latent_height, g.latent_width)
        return upload(torch.randn(shape, generator=generator), self._device, self._dtype)

    def _start(self) -> None:
        """Put the reference's latent into the cache's sink."""
        model = self.model
        window = latent_window(0)
        with torch.inference_mode():
            ticks = model.audio.history + len(window)
            silence = np.zeros(ticks * model.audio.encoder.frame_samples, np.float32)
            conditions = self._conditions(silence, silence, window.start, range(1), self._reference)
            prime(model.transformer, self._cache, conditions)
        self._settle()

    def _warm(self, graphs: bool) -> None:
        """Meet every shape once, so that the first chunk is as fast as any: kernels are compiled and chosen, and passes
        recorded. What is made is thrown away, and leaves nothing that a chunk reads."""
        torch.backends.cudnn.benchmark = True  # shapes never change
        model, span = self.model, self.model.config.geometry.chunk_span(1)
        silence = np.zeros(len(self.heard_ticks(1)) * model.audio.encoder.frame_samples, np.float32)
        with torch.inference_mode():
            conditions = self._conditions(silence, silence, self._first(1), span, self._reference)
            x = self._noise(1, 0)
            sigma = torch.ones(x.shape[0], x.shape[2], device=x.device)
            if self._prepares:
                conditions = self._prepared = model.transformer.prepare(conditions)
            if graphs:
                self._sampler = passes = RecordedPasses(model.transformer, self._cache)
                passes.warm(x, sigma, conditions)
            else:
                meet_shapes(model.transformer, self._cache, self._cache.full().stop, x, sigma, conditions)
        self._settle()

    def warm_decoder(self) -> None:
        """The same for the decoder, on the worker that will use it: cuDNN's choices are kept per thread, and memory
        per stream. Before the first chunk; does nothing on a CPU."""
        if self._decoder_device.type != "cuda":
            return
        with torch.inference_mode():
            x = self._noise(1, 0).to(self._decoder_device)
            download(rgb_frames(self.model.codec.decode(x, self.decoder_state)[0]))


def open_maker(
    pipeline: Pipeline, model: AvatarModel, reference: NDArray[np.uint8] | Reference, seed: int, telemetry: Telemetry
) -> ChunkMaker:
    """A maker that is warm on both of its workers."""
    maker = pipeline.call(lambda: ChunkMaker(model, reference, seed, telemetry))
    if next(model.codec.parameters()).device.type == "cuda":
        pipeline.run(lambda: None, lambda _: maker.warm_decoder()).result()
    return maker
