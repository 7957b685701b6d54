"""Two workers, so that the decoder makes the frames of one chunk while the transformer makes the next.

One thread each beats two threads in both on two cores, and the caller's own torch settings stay as they are.
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
    """

    def __init__(self, threads: int | None = None) -> None:
        share = threads or max(1, (os.cpu_count() or 2) // 2)
        self._first, self._second = (
            ThreadPoolExecutor(1, name, initializer=torch.set_num_threads, initargs=(share,))
            for name in ("transformer", "decoder")
        )

    def call(self, work: Callable[[], A]) -> A:
        """Run `work` on the transformer's worker and wait for it."""
        return self._first.submit(work).result()

    def run(self, first: Callable[[], A], second: Callable[[A], B]) -> Future[B]:
        """`second(first())`, each half on its worker; the second halves keep the order of the calls."""
        half = self._first.submit(first)
        return self._second.submit(lambda: second(half.result()))
