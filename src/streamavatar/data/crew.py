"""Worker processes that are told one unit of work at a time, and whose death is noticed and survived once per unit.

An executor of the standard library cannot say which task a killed process had; here every process has a pipe of its
own, so it is known, and the others go on.
"""

from __future__ import annotations

import signal
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from streamavatar.errors import UserError

Report = Callable[[float], None]
Work = Callable[[int, Report], bool]
"""(unit, report) -> whether the unit is finished; False if another process has it. Must be picklable."""
Tell = Callable[[int, float], None]
"""(unit, what its worker last reported); 0 when it begins anew."""

TRIES = 2
_LATER = 1.0  # seconds until a unit that another process has is looked at again


@dataclass
class _Hand:
    process: SpawnProcess
    pipe: Connection
    unit: int | None = None


def run_units(work: Work, units: Sequence[int], workers: int, tell: Tell, name: Callable[[int], str] = str) -> None:
    """Do all units; those that another process has are waited for. Stops the workers however it ends.

    Args:
        name: how a unit is called in messages.

    Raises:
        UserError: from the work itself, or if a unit's worker was killed twice.
        RuntimeError: the work failed otherwise; the message holds the worker's traceback.
    """
    waiting, elsewhere = deque(units), deque[int]()
    deaths: Counter[int] = Counter()
    hands: list[_Hand] = []
    try:
        while waiting or elsewhere or any(hand.unit is not None for hand in hands):
            while len(hands) < min(workers, len(waiting) + sum(hand.unit is not None for hand in hands)):
                hands.append(_hire(work))
            for hand in hands:
                if hand.unit is None and waiting:
                    hand.unit = waiting.popleft()
                    tell(hand.unit, 0.0)
                    with suppress(OSError):  # it died while idle: the end of its pipe says so below
                        hand.pipe.send(hand.unit)
            ready = wait([hand.pipe for hand in hands], timeout=_LATER if elsewhere else None)
            for hand in [hand for hand in hands if hand.pipe in ready]:
                if not _listen(hand, tell, elsewhere):
                    hands.remove(hand)
                    waiting.extendleft(_bury(hand, deaths, name))
            if not waiting and not ready:
                waiting.extend(elsewhere)
                elsewhere.clear()
    finally:
        for hand in hands:
            hand.process.terminate()
            hand.pipe.close()
        for hand in hands:
            hand.process.join()


def _hire(work: Work) -> _Hand:
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=_serve, args=(work, theirs), daemon=True)
    process.start()
    theirs.close()
    return _Hand(process, ours)


def _listen(hand: _Hand, tell: Tell, elsewhere: deque[int]) -> bool:
    """Take one message; False if the worker is dead."""
    try:
        kind, value = hand.pipe.recv()
    except (EOFError, OSError):
        return False
    if kind == "wrong input":
        raise UserError(value)
    if kind == "failed":
        raise RuntimeError(f"a worker failed:\n{value}")
    unit = hand.unit
    assert unit is not None
    if kind == "progress":
        tell(unit, value)
    else:
        hand.unit = None
        if not value:
            elsewhere.append(unit)
    return True


def _bury(hand: _Hand, deaths: Counter[int], name: Callable[[int], str]) -> list[int]:
    """The units to do again after a worker died."""
    hand.process.join()
    hand.pipe.close()
    if hand.unit is None:
        return []
    deaths[hand.unit] += 1
    if deaths[hand.unit] == TRIES:
        code = hand.process.exitcode or 0
        reason = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        raise UserError(
            f"the worker that makes {name(hand.unit)} died {TRIES} times ({reason}): it may lack memory; give fewer "
            "workers and run the same command again"
        )
    return [hand.unit]


def _serve(work: Work, pipe: Any) -> None:
    """A worker's life: units from the pipe until it closes. Ctrl-C is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
        while True:
            unit = pipe.recv()
            try:
                answer: tuple[str, Any] = ("finished", work(unit, lambda value: pipe.send(("progress", value))))
            except UserError as error:
                answer = ("wrong input", str(error))
            except (BrokenPipeError, ConnectionResetError):
                raise
            except Exception:
                answer = ("failed", traceback.format_exc())
            pipe.send(answer)
