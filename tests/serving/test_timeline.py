"""The trace of a session."""

from __future__ import annotations

import json

from streamavatar.serving.timeline import Timeline


def test_trace_is_what_chrome_reads() -> None:
    timeline = Timeline("session a")
    timeline.span("engine", "chunk 1", 10.0, 10.07, used=True)
    timeline.mark("speech", "interrupt", 10.5, by_server=False)
    timeline.count("lead", 10.6, 7)
    trace = json.loads(json.dumps(timeline.trace()))
    events = [event for event in trace["traceEvents"] if event["ph"] != "M"]
    assert [(event["name"], event["ph"], event["ts"]) for event in events] == [
        ("chunk 1", "X", 10_000_000),
        ("interrupt", "i", 10_500_000),
        ("lead", "C", 10_600_000),
    ]
    assert events[0]["dur"] == 70_000
    names = {event["tid"]: event["args"]["name"] for event in trace["traceEvents"] if event["name"] == "thread_name"}
    assert {names[event["tid"]] for event in events} == {"engine", "speech", "playout"}


def test_oldest_events_are_forgotten() -> None:
    timeline = Timeline("session a", capacity=10)
    for n in range(100):
        timeline.mark("state", str(n), n)
    marks = [event["name"] for event in timeline.trace()["traceEvents"] if event["ph"] == "i"]
    assert marks == [str(n) for n in range(90, 100)]
