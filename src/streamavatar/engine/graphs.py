"""Passes as CUDA graphs: recorded once, then started with one call instead of a thousand.

The host is seldom what limits a pass of the full size, but a busy host makes single chunks late. Once the ring is full,
all passes that write the same slot differ in numbers alone: the noise level, the noise, the conditions, the angles. So
there is one graph per slot. The first chunks of a session run as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from streamavatar.cache import RingCache, View
from streamavatar.cache.ring import RingView
from streamavatar.models.transformer import Conditions, Transformer


class Recorded(NamedTuple):
    """A recorded pass: how to run it, and where its result is afterwards."""

    replay: Callable[[], None]
    output: Tensor


Record = Callable[[Callable[[], Tensor]], Recorded]
"""Runs and records some work whose inputs stay where they are."""


class RecordedPasses:
    """What `Transformer.sample` does for one session, recorded; stands for the transformer in `make_chunk`.

    Args:
        transformer: with its weights where they will stay.
        cache: the session's.
        record: by default as CUDA graphs.
    """

    def __init__(self, transformer: Transformer, cache: RingCache, record: Record | None = None) -> None:
        self._transformer, self._cache = transformer, cache
        self._record = record or record_on(cache.keys.device)
        self._passes: dict[tuple[int, int, int], Recorded] = {}

    def warm(self, x: Tensor, sigma: Tensor, conditions: Conditions) -> None:
        """Meet every shape that a pass may have and record one for every slot, before the session's first chunk; the
        slots are left as if they were used.

        Args:
            x, sigma, conditions: what passes get, in the shapes of a chunk; prepared. The reference and the text's keys
                stay the same for a session, and are used where they are.
        """
        moving = {id(tensor) for tensor in _audio(conditions)}
        keys = tree_map(lambda t: t.clone() if id(t) in moving else t, conditions.keys)
        self._inputs = x, sigma, inputs = x.clone(), sigma.clone(), replace(conditions, keys=keys)
        self._filled_with = conditions
        meet_shapes(self._transformer, self._cache, self._cache.full().start, x, sigma, inputs)
        for chunk in self._cache.full():
            view = self._cache.view(chunk)
            self._passes[view.place] = self._record(partial(self._transformer.sample, x, sigma, inputs, view))

    def sample(self, x: Tensor, sigma: Tensor, conditions: Conditions, view: View) -> Tensor:
        """See `Transformer.sample`."""
        assert isinstance(view, RingView)
        found = self._passes.get(view.place)
        if found is None:
            return self._transformer.sample(x, sigma, conditions, view)
        self._inputs[0].copy_(x)
        self._inputs[1].copy_(sigma)
        if conditions is not self._filled_with:
            for place, value in zip(_audio(self._inputs[2]), _audio(conditions), strict=True):
                place.copy_(value)
            self._filled_with = conditions
        found.replay()
        return found.output.clone()  # the next pass writes there, and the decoder may still be reading


def meet_shapes(
    transformer: Transformer, cache: RingCache, stop: int, x: Tensor, sigma: Tensor, conditions: Conditions
) -> None:
    """A pass of every shape that chunks 1 .. stop - 1 have: libraries choose and build their kernels per shape."""
    seen: set[tuple[int, ...]] = set()
    for chunk in range(1, stop):
        view = cache.view(chunk)
        if view.place[1:] not in seen:
            transformer.sample(x, sigma, conditions, view)
            seen.add(view.place[1:])


def _audio(conditions: Conditions) -> list[Tensor]:
    """Those of the inputs that differ between chunks."""
    return [tensor for keys in conditions.keys or () for tensor in (*keys.talk, *keys.listen)]


def record_on(device: torch.device) -> Record:
    """Recording of CUDA graphs that share their memory: of one session's passes only one runs at a time.

    All run on one stream of their own, first as they are and then recorded: the default stream cannot be recorded, and
    libraries keep workspaces per stream, which are to be there before.
    """
    pool: Any = torch.cuda.graph_pool_handle()
    stream = torch.cuda.Stream(device)

    def record(work: Callable[[], Tensor]) -> Recorded:
        torch.cuda.synchronize(device)  # the inputs come from the caller's stream
        with torch.cuda.stream(stream):
            work()  # compiles kernels and lets libraries take their memory, neither of which can be recorded
        torch.cuda.synchronize(device)
        graph = torch.cuda.CUDAGraph()
        # The decoder's thread goes on meanwhile and may do what a recording thread may not.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            output = work()
        torch.cuda.synchronize(device)
        return Recorded(graph.replay, output)

    return record
