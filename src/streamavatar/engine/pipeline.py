"""Two workers, so that the decoder makes the frames of one chunk while the transformer makes the next.

One thread each beats two threads in both on two cores, and the caller's own torch settings stay as they are. On GPUs
each worker has a stream of its own, on one GPU or on two.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

A = TypeVar("A")
B = TypeVar("B")


class Pipeline:
    """A transformer worker and a decoder worker, both in order of submission.

    Args:
        threads: of each worker; by default half of the cores.
        devices: of the transformer and of the decoder.
    """

    def __init__(self, threads: int | None = None, devices: tuple[torch.device, torch.device] | None = None) -> None:
        share = threads or max(1, (os.cpu_count() or 2) // 2)
        self._first, self._second = (
            ThreadPoolExecutor(1, name, initializer=_settle, initargs=(share, device))
            for name, device in zip(("transformer", "decoder"), devices or (None, None), strict=True)
        )

    def call(self, work: Callable[[], A]) -> A:
        """Run `work` on the transformer's worker and wait for it."""
        return self._first.submit(work).result()

    def run(self, first: Callable[[], A], second: Callable[[A], B]) -> Future[B]:
        """`second(first())`, each half on its worker; the second halves keep the order of the calls."""
        half = self._first.submit(lambda: (first(), _mark()))

        def finish() -> B:
            made, asked = half.result()
            if asked is not None:
                asked.wait()  # this worker's stream does; the host goes on
            return second(made)

        return self._second.submit(finish)


def _settle(threads: int, device: torch.device | None) -> None:
    """A worker's own threads, and on a GPU its own stream."""
    torch.set_num_threads(threads)
    if device is not None and device.type == "cuda":
        torch.cuda.set_device(device)
        torch.cuda.set_stream(torch.cuda.Stream(device))


def _mark() -> torch.cuda.Event | None:
    """The point that this worker's stream has to reach until what it was asked for is done."""
    return torch.cuda.current_stream().record_event() if torch.cuda.is_initialized() else None
