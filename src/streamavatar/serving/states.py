"""What the avatar is doing, observed from the lanes: nothing is switched, both lanes always reach the model."""

from __future__ import annotations

from typing import Literal

from streamavatar.serving.playout import Tick
from streamavatar.serving.vad import audible

State = Literal["idle", "listening", "talking", "interrupting"]
Overlap = Literal["agent", "user"]
Agent = Literal["voice", "pause", "none", "late"]
"""What a tick holds of the agent: its voice, a pause inside a speech, no speech, or nothing since a chunk is late."""


class Hysteresis:
    """A switch that needs `on` trues in a row to go on and `off` falses in a row to go off."""

    def __init__(self, on: int, off: int) -> None:
        self._needed = {False: max(1, on), True: max(1, off)}
        self._run = 0
        self.value = False

    def update(self, raw: bool) -> bool:
        self._run = self._run + 1 if raw != self.value else 0
        if self._run >= self._needed[self.value]:
            self.value, self._run = raw, 0
        return self.value


class StateLabel:
    """Names the state of each tick.

    The agent talks (`talking`) from the first tick in which it is heard, and for `hold` ticks of a pause inside its
    speech; while a chunk is late, it does what it did. After an interruption the state is `interrupting` until the
    avatar rests. While both speak, `overlap` says who has the floor: with "agent" the state is `talking`, with "user"
    it is `interrupting`.
    """

    def __init__(self, overlap: Overlap, hold: int) -> None:
        self._overlap = overlap
        self._hold = hold
        self._pause = hold
        self.talking = False
        self.state: State = "idle"

    def update(self, agent: Agent, user: bool, interrupted: bool) -> State | None:
        """The new state, or None if it has not changed.

        Args:
            agent: what the tick holds of the agent.
            user: the user speaks.
            interrupted: the avatar has been interrupted and does not rest yet.
        """
        if agent != "late":
            self._pause = {"voice": 0, "pause": self._pause + 1, "none": self._hold}[agent]
        self.talking = talking = self._pause < self._hold
        state: State = "listening" if user else "idle"
        if interrupted or (talking and user and self._overlap == "user"):
            state = "interrupting"
        elif talking:
            state = "talking"
        if state == self.state:
            return None
        self.state = state
        return state


def agent_in(tick: Tick) -> Agent:
    """What a tick holds of the agent: the silence around and between the words of a recording is a pause."""
    if tick.kind in ("repeat", "freeze"):
        return "late"
    if tick.speech is not None and audible(tick.samples):
        return "voice"
    return "pause" if tick.speech is not None or tick.starved else "none"
