"""Making chunks: the passes of one chunk and the chunks of one sequence, for run time and for training alike.

A chunk starts as noise and takes one pass per noise level; after each but the last the estimate of x0 is noised again
to the next level. The keys and values of the last pass, whose input is still noisy, are what later chunks see
(`last_noisy`; paper, 2.8); `clean` spends one more pass on the finished chunk instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from streamavatar.cache import KVCache, TapeCache, View
from streamavatar.config import ModelConfig
from streamavatar.models.transformer import Conditions, Transformer
from streamavatar.schedule import add_noise

Noise = Callable[[int, int], Tensor]
"""(chunk, pass) to fresh noise [B, C, chunk_latents, H, W]; pass 0 is the start of the chunk."""


class Sampler(Protocol):
    """A transformer, or what stands for it."""

    def sample(self, x: Tensor, sigma: Tensor, conditions: Conditions, view: View) -> Tensor:
        """See `Transformer.sample`."""


@dataclass(frozen=True)
class Passes:
    """How a chunk is made.

    Attributes:
        sigmas: noise level of each pass, the first 1.0.
        cache_mode: whether context comes from the last (noisy) pass or from a further, clean one.
        exit_step: pass whose estimate is the chunk's output; later passes only fill the cache. Last if None.
        gradient: whether the exit pass keeps gradients; all others never do.
    """

    sigmas: tuple[float, ...]
    cache_mode: Literal["last_noisy", "clean"] = "last_noisy"
    exit_step: int | None = None
    gradient: bool = False

    @staticmethod
    def of(config: ModelConfig) -> Passes:
        return Passes(config.schedule.sigmas, config.context.cache_mode)


@dataclass(frozen=True)
class ExitPass:
    """What the exit pass of a chunk saw; running it again gives the same estimate (the cache must be a tape)."""

    x: Tensor
    sigma: Tensor
    conditions: Conditions
    view: View

    def run(self, model: Sampler) -> Tensor:
        return model.sample(self.x, self.sigma, self.conditions, self.view)


def prime(model: Sampler, cache: KVCache, conditions: Conditions) -> None:
    """Chunk 0: run the clean reference latent once, so that its keys and values are in the cache."""
    reference = conditions.reference
    sigma = torch.zeros(reference.shape[0], 1, device=reference.device)
    view = cache.view(0)
    with torch.no_grad():
        model.sample(reference, sigma, conditions, view)
    view.commit()


def make_chunk(
    model: Sampler,
    cache: KVCache,
    chunk: int,
    conditions: Conditions,
    noise: Noise,
    passes: Passes,
    trace: list[ExitPass] | None = None,
) -> Tensor:
    """One chunk of clean latents [B, C, chunk_latents, H, W]; its keys and values are committed to the cache.

    Args:
        chunk: index, from 1, in order.
        conditions: of this chunk's latents.
        noise: see :data:`Noise`.
        passes: see :class:`Passes`.
        trace: receives the exit pass, to be run again with gradient.
    """
    x = noise(chunk, 0)
    last = len(passes.sigmas) - 1
    exit_step = last if passes.exit_step is None else passes.exit_step
    output = None
    view = None
    for step, level in enumerate(passes.sigmas):
        sigma = torch.full((x.shape[0], x.shape[2]), level, device=x.device)
        view = cache.view(chunk)
        keeps_gradient = passes.gradient and step == exit_step
        with nullcontext() if keeps_gradient else torch.no_grad():
            estimate = model.sample(x, sigma, conditions, view)
        if step == exit_step:
            output = estimate
            if trace is not None:
                trace.append(ExitPass(x, sigma, conditions, cache.view(chunk)))  # without what this pass recorded
        if step < last:
            view.discard()
            following = torch.full_like(sigma, passes.sigmas[step + 1])
            x = add_noise(estimate.detach(), noise(chunk, step + 1), following)
    assert output is not None
    assert view is not None
    if passes.cache_mode == "clean":
        view.discard()
        view = cache.view(chunk)
        with torch.no_grad():
            model.sample(output.detach(), torch.zeros_like(sigma), conditions, view)
    view.commit()
    return output


def make_sequence(
    model: Transformer,
    cache: KVCache,
    conditions: Conditions,
    noise: Noise,
    passes: Passes,
    chunk_latents: int,
    trace: list[ExitPass] | None = None,
) -> Iterator[Tensor]:
    """Student forcing over a whole clip: prime with the reference, then every chunk on the model's own output.

    Args:
        conditions: of all latents of the clip, the reference first.

    Yields:
        Chunks 1, 2, ... of clean latents, [B, C, chunk_latents, H, W].
    """
    prime(model, cache, conditions.latents(range(1)))
    chunks = (conditions.talk.shape[1] - 1) // chunk_latents
    for chunk in range(1, chunks + 1):
        span = range((chunk - 1) * chunk_latents + 1, chunk * chunk_latents + 1)
        yield make_chunk(model, cache, chunk, conditions.latents(span), noise, passes, trace)


def make_forced(
    model: Transformer,
    cache: TapeCache,
    latents: Tensor,
    conditions: Conditions,
    noise: Noise,
    passes: Passes,
    chunk_latents: int,
) -> Iterator[Tensor]:
    """Teacher forcing over a whole clip: every chunk after the true ones, never after the model's own.

    Args:
        latents: the true clip [B, C, T, H, W], the reference first.
        conditions, noise, passes: as for :func:`make_sequence`; the cache mode is not used, context is clean.

    Yields:
        Chunks 1, 2, ... of clean latents, [B, C, chunk_latents, H, W].
    """
    prime(model, cache, conditions.latents(range(1)))
    for chunk, first in enumerate(range(1, latents.shape[2], chunk_latents), start=1):
        own = conditions.latents(range(first, first + chunk_latents))
        given, truth = cache.view(chunk), latents[:, :, first : first + chunk_latents]
        with torch.no_grad():
            model.sample(truth, torch.zeros(truth.shape[0], truth.shape[2], device=truth.device), own, given)
        yield make_chunk(model, cache, chunk, own, noise, passes)
        given.commit()  # in place of the chunk just made


def read_chunks(
    model: Transformer, cache: KVCache, x: Tensor, sigma: Tensor, conditions: Conditions, chunk_latents: int
) -> Tensor:
    """One pass over a given (partly noisy) clip, block-causally: each chunk sees the chunks before it as given.

    Gradients flow within a chunk, and across chunks unless the cache detaches.

    Args:
        x: [B, C, T, H, W], the clean reference first.
        sigma: [B, T], 0 for the reference, equal within a chunk.

    Returns:
        Estimates of x0 for latents 1.., [B, C, T - 1, H, W].
    """
    out = []
    spans = [range(1), *(range(s, s + chunk_latents) for s in range(1, x.shape[2], chunk_latents))]
    for chunk, span in enumerate(spans):
        part = slice(span.start, span.stop)
        view = cache.view(chunk)
        estimate = model.sample(x[:, :, part], sigma[:, part], conditions.latents(span), view)
        view.commit()
        if chunk:
            out.append(estimate)
    return torch.cat(out, dim=2)
