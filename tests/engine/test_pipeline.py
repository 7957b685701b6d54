"""Two workers: order, overlap, errors, and the caller's thread settings."""

from __future__ import annotations

import threading

import pytest
import torch

from streamavatar.engine import Pipeline


def test_order_and_overlap() -> None:
    pipeline = Pipeline(1)
    second_started, order = threading.Event(), []

    def decode(number: int) -> int:
        if number == 0:
            assert second_started.wait(10), "the next chunk's first half did not run beside this second half"
        order.append(number)
        return number * 10

    def transform(number: int) -> int:
        if number == 1:
            second_started.set()
        return number

    futures = [pipeline.run(lambda n=n: transform(n), decode) for n in range(4)]
    assert [future.result() for future in futures] == [0, 10, 20, 30]
    assert order == [0, 1, 2, 3]


def test_errors_reach_the_caller_and_the_workers_live_on() -> None:
    pipeline = Pipeline(1)
    with pytest.raises(ZeroDivisionError):
        pipeline.run(lambda: 1 / 0, lambda x: x).result()
    with pytest.raises(KeyError):
        pipeline.run(lambda: {}, lambda x: x["missing"]).result()
    assert pipeline.run(lambda: 1, lambda x: x + 1).result() == 2


def test_the_callers_thread_settings_stay() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert Pipeline(1).call(torch.get_num_threads) == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
