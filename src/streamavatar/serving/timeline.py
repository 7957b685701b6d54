"""What happened in a session, as a trace that Chrome and Perfetto open. Bounded: the oldest events are forgotten."""

from __future__ import annotations

from collections import deque
from typing import Any

ROWS = {"engine": 1, "playout": 2, "speech": 3, "state": 4, "peers": 5}


class Timeline:
    """Events on one row each, at times in seconds of one clock.

    Args:
        name: of the session.
        capacity: events that are kept; the default is a quarter of an hour of chunks and speech, and 3 MB.
    """

    def __init__(self, name: str, capacity: int = 5_000) -> None:
        self._name = name
        self._events: deque[dict[str, Any]] = deque(maxlen=capacity)

    def span(self, row: str, name: str, begin: float, end: float, **details: Any) -> None:
        """Something that took time."""
        self._add(row, name, begin, {"ph": "X", "dur": round((end - begin) * 1e6), "args": details})

    def mark(self, row: str, name: str, at: float, **details: Any) -> None:
        """Something that happened."""
        self._add(row, name, at, {"ph": "i", "s": "t", "args": details})

    def count(self, name: str, at: float, value: float) -> None:
        """A value that is drawn as a curve."""
        self._add("playout", name, at, {"ph": "C", "args": {name: value}})

    def trace(self) -> dict[str, Any]:
        """All events in the trace event format, with the names of the rows."""
        names = [_meta("process_name", 0, self._name), *(_meta("thread_name", row, name) for name, row in ROWS.items())]
        return {"traceEvents": [*names, *self._events], "displayTimeUnit": "ms"}

    def _add(self, row: str, name: str, at: float, fields: dict[str, Any]) -> None:
        self._events.append({"name": name, "ts": round(at * 1e6), "pid": 1, "tid": ROWS[row], **fields})


def _meta(kind: str, row: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": 1, "tid": row, "args": {"name": name}}
