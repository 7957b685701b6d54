"""Motion truth: what a person does while the agent lane talks and the user lane is heard.

Independent of any renderer. Lips, beats and nods are deterministic functions of the two lanes, so that a
model can learn them from sound alone; what is random (sway, gaze, blinks, raising the hand) is slow and small.
Frame j covers the audio [j/25, (j+1)/25) s on the dialogue's clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from streamavatar.synth.dialogue import Dialogue, Lane
from streamavatar.synth.speech import SAMPLE_RATE, Phone
from streamavatar.synth.visemes import SHAPES, VOWELS, mouth_tracks

FPS = 25
FRAME_SAMPLES = SAMPLE_RATE // FPS
IDLE, LISTENING, TALKING, BOTH = range(4)

NOD_DELAY = 0.2  # seconds from the end of a phrase, or from a strong stress, to the start of a nod
NOD_GAP = 1.5  # seconds between the starts of two nods
_PHRASE = 0.5  # seconds of speech that make a phrase
_DROP = 0.12  # seconds of silence that end one

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Performance:
    """Motion over F frames at 25 fps.

    Attributes:
        visemes: [F,15] in the order of `visemes.VISEMES`, rows sum to 1.
        mouth_open: [F] 0 closed .. 1 wide open.
        mouth_wide: [F] -1 round .. 1 spread.
        blink: [F] 0 open .. 1 closed.
        gaze: [F,2] -1..1, right and down as seen by the viewer; 0 is the camera.
        head: [F,3] degrees: yaw (to the viewer's right), pitch (down), roll (clockwise).
        brow: [F] -1 lowered .. 1 raised.
        smile: [F] 0..1.
        hand: [F,3] raise (0 is out of frame), sway -1..1, rotation in degrees.
        breath: [F] -1..1.
        state: [F] int8: 0 idle, 1 listening, 2 talking, 3 both.
    """

    visemes: Array
    mouth_open: Array
    mouth_wide: Array
    blink: Array
    gaze: Array
    head: Array
    brow: Array
    smile: Array
    hand: Array
    breath: Array
    state: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.mouth_open)

    def cut(self, start: int, frames: int) -> Performance:
        """Frames `start` .. `start + frames`; both must lie inside."""
        if start < 0 or start + frames > len(self):
            raise ValueError(f"performance has {len(self)} frames, asked for {start}..{start + frames}")
        return Performance(**{f.name: getattr(self, f.name)[start : start + frames] for f in fields(self)})


def neutral(frames: int = 1) -> Performance:
    """The pose of reference pictures: mouth closed, eyes to the camera, hand out of frame."""
    zeros = np.zeros(frames, np.float32)
    visemes = np.zeros((frames, 15), np.float32)
    visemes[:, 0] = 1.0
    wide = np.zeros((frames, 3), np.float32)
    return Performance(
        visemes, zeros, zeros, zeros, wide[:, :2], wide, zeros, zeros + 0.25, wide, zeros, zeros.astype(np.int8)
    )


def perform(dialogue: Dialogue, seed: int, frames: int, start: int = 0) -> Performance:
    """Motion for frames `start` .. `start + frames` of the dialogue (silence beyond its end).

    The whole timeline is made and then cut, so that any cut of one dialogue and seed agrees with any other.
    """
    total = max(start + frames, int(np.ceil(dialogue.seconds * FPS)))
    rng = np.random.default_rng((seed, 0xFACE))
    talk, hear = _activity(dialogue.agent.phones, total), _activity(dialogue.user.phones, total)
    state = (2 * talk + hear).astype(np.int8)
    visemes, mouth, width = mouth_tracks(dialogue.agent.phones, total, FPS)
    talking = _ease(talk, 0.3)
    listening = _ease(hear & ~talk, 0.4)
    stresses = lane_stresses(dialogue.agent)
    ends = phrase_ends(dialogue.user)
    nods = nod_times(dialogue)
    brow, smile = _expression(total, talking, listening, stresses, ends, rng)
    parts = {
        "visemes": visemes, "mouth_open": mouth, "mouth_wide": width, "blink": _blinks(total, rng),
        "gaze": _gaze(total, talking, listening, rng),
        "head": _head(total, dialogue, talking, listening, stresses, nods, rng),
        "brow": brow, "smile": smile, "hand": _hand(total, talk, stresses, rng),
        "breath": np.sin(2 * np.pi * (np.arange(total) / FPS * rng.uniform(0.22, 0.3) + rng.random())),
    }  # fmt: skip
    arrays = {name: value[start : start + frames].astype(np.float32) for name, value in parts.items()}
    return Performance(**arrays, state=state[start : start + frames])


# what is heard ---------------------------------------------------------------------------------------


def loudness(lane: Lane) -> NDArray[np.float64]:
    """Level in dB per 10 ms of the lane without its room, over the 30 ms that end there (causal)."""
    hop = SAMPLE_RATE // 100
    count = len(lane.voice) // hop
    power = (lane.voice[: count * hop].astype(np.float64).reshape(count, hop) ** 2).mean(axis=1)
    summed = np.cumsum(np.concatenate([np.zeros(3), power]))
    return 10 * np.log10(np.maximum(summed[3:] - summed[:-3], 0) / 3 + 1e-9)


def _speech_level(level: NDArray[np.float64]) -> NDArray[np.float64]:
    """A running peak (falls 1.5 dB/s) against which speech and silence are told apart, causally."""
    peak = np.empty_like(level)
    held = -45.0
    for index, value in enumerate(level):
        held = max(value, held - 0.015, -45.0)
        peak[index] = held
    return peak


def phrase_ends(lane: Lane) -> list[float]:
    """Seconds at which at least 0.5 s of speech fell silent; each is known 0.12 s later, never needing more."""
    level = loudness(lane)
    loud = level > np.maximum(_speech_level(level) - 24.0, -48.0)
    ends: list[float] = []
    spoken, silent, last = 0, 0, 0
    for index, active in enumerate(loud):
        if active:
            spoken, silent, last = spoken + 1, 0, index + 1
        else:
            silent += 1
            if silent == round(_DROP * 100):
                if spoken >= _PHRASE * 100:
                    ends.append(last / 100)
                spoken = 0
    return ends


def lane_stresses(lane: Lane) -> list[float]:
    """Ends (s) of strong vowels: full, long and loud against the lane's past level; at least 0.35 s apart."""
    level = loudness(lane)
    peak = _speech_level(level)
    found: list[float] = []
    for phone in lane.phones:
        if phone.name not in VOWELS or SHAPES[phone.name][1] < 0.3 or phone.end - phone.start < 0.09:
            continue
        low, high = round(phone.start * 100), min(round(phone.end * 100), len(level))
        if high <= low or level[low:high].max() < peak[high - 1] - 3.0:
            continue
        if not found or phone.end - found[-1] >= 0.35:
            found.append(phone.end)
    return found


def nod_times(dialogue: Dialogue) -> list[float]:
    """Starts (s) of nods: 0.2 s after each end of a user phrase, and after strong stresses in long phrases.

    A phrase end always wins its nod unless one began less than 0.8 s before; stress nods keep `NOD_GAP`.
    """
    ends = phrase_ends(dialogue.user)
    marks = [(t, True) for t in ends] + [(t, False) for t in lane_stresses(dialogue.user)]
    nods: list[float] = []
    for time, is_end in sorted(marks):
        gap = 0.8 if is_end else NOD_GAP
        since = [e for e in ends if e < time]
        if not is_end and time - (since[-1] if since else 0.0) < 1.0:
            continue
        if not nods or time + NOD_DELAY - nods[-1] >= gap:
            nods.append(time + NOD_DELAY)
    return nods


def _activity(phones: Sequence[Phone], frames: int) -> NDArray[np.bool_]:
    """Whether the lane speaks in each frame; gaps of up to 0.3 s are filled."""
    active = np.zeros(frames, bool)
    last = -1.0
    for phone in sorted(phones, key=lambda p: p.start):
        begin = last if last >= 0 and phone.start - last < 0.3 else phone.start
        active[max(0, int(begin * FPS)) : max(0, int(np.ceil(phone.end * FPS)))] = True
        last = max(last, phone.end)
    return active


# what is done ----------------------------------------------------------------------------------------


def _ease(active: NDArray[np.bool_], seconds: float) -> NDArray[np.float64]:
    """0..1, smoothed with a window of `seconds`."""
    window = np.hanning(round(seconds * FPS) + 2)
    padded = np.pad(active.astype(float), len(window), mode="edge")
    return np.convolve(padded, window / window.sum(), "same")[len(window) : -len(window)]


def _slow(frames: int, rng: np.random.Generator, low: float = 0.04, high: float = 0.16) -> NDArray[np.float64]:
    """A smooth random curve within -1..1 from three slow sines (Hz)."""
    t = np.arange(frames) / FPS
    waves = [np.sin(2 * np.pi * (t * rng.uniform(low, high) + rng.random())) for _ in range(3)]
    return np.asarray(sum(waves)) / 3.0


def _add(track: NDArray[np.float64], time: float, shape: NDArray[np.float64]) -> None:
    """Add `shape` to the track from `time` seconds on, cut at both ends."""
    first = round(time * FPS)
    low, high = max(0, first), min(len(track), first + len(shape))
    if high > low:
        track[low:high] += shape[low - first : high - first]


def _bump(seconds: float, skew: float = 1.0) -> NDArray[np.float64]:
    """A smooth rise and fall 0 -> 1 -> 0; `skew` below 1 rises faster."""
    t = np.linspace(0, 1, max(3, round(seconds * FPS) + 1))
    return np.sin(np.pi * t**skew) ** 2


def _head(
    frames: int, dialogue: Dialogue, talking: NDArray[np.float64], listening: NDArray[np.float64],
    stresses: list[float], nods: list[float], rng: np.random.Generator,
) -> NDArray[np.float64]:  # fmt: skip
    """Yaw, pitch, roll in degrees: slow sway, prosody while talking, nods while listening."""
    calm = 1.0 - 0.7 * listening
    yaw = 2.0 * _slow(frames, rng) * calm
    pitch = 1.2 * _slow(frames, rng) * calm
    roll = 1.6 * _slow(frames, rng) * calm
    level = loudness(dialogue.agent)
    loud = np.clip((level - _speech_level(level) + 24.0) / 24.0, 0, 1)
    at = (np.arange(frames) * 100 // FPS).astype(int)
    prosody = np.where(at < len(loud), loud[np.minimum(at, len(loud) - 1)], 0.0) if len(loud) else np.zeros(frames)
    prosody = np.convolve(prosody, np.hanning(9)[1:-1] / np.hanning(9).sum(), "same")
    pitch += talking * 1.6 * (0.5 - prosody)
    beats = np.zeros(frames)
    sides = np.zeros(frames)
    for index, time in enumerate(stresses):
        _add(beats, time - 0.16, _bump(0.44))
        _add(sides, time - 0.24, _bump(0.8) * (1 if index % 2 else -1))
    pitch += 2.2 * np.clip(beats, 0, 1.2)
    yaw += 1.0 * np.clip(sides, -1, 1)
    roll += 0.8 * np.clip(sides, -1, 1)
    nodding = np.zeros(frames)
    for time in nods:
        _add(nodding, time, _bump(0.6, 0.85))
    own = np.zeros(frames)
    for time in dialogue.agent.backchannels:
        _add(own, time, _bump(0.6, 0.85))
    # While the agent talks its own prosody leads: a nod at the end of an overlap would look like a beat.
    # A backchannel of its own is said with a nod.
    pitch += 5.0 * np.maximum(np.clip(nodding, 0, 1) * (1.0 - 0.8 * talking), np.clip(own, 0, 1))
    return np.stack([yaw, pitch, roll], axis=1)


def _blinks(frames: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """One blink of 6 frames every 2-5 s: quick down, slower up."""
    blink = np.zeros(frames)
    shape = np.array([0.35, 0.95, 1.0, 0.75, 0.4, 0.12])
    time = rng.uniform(0.8, 4.0)
    while time * FPS < frames:
        _add(blink, time, shape)
        time += rng.uniform(2.0, 5.0)
    return np.clip(blink, 0, 1)


def _gaze(
    frames: int, talking: NDArray[np.float64], listening: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Looks that hold 0.8-2.2 s and jump in two frames; to the camera while listening."""
    gaze = np.zeros((frames, 2))
    time = 0.0
    while time * FPS < frames:
        hold = rng.uniform(0.8, 2.2)
        away = rng.random() < 0.55
        target = rng.uniform(-1, 1, 2) * (0.75, 0.4) if away else np.zeros(2)
        gaze[round(time * FPS) : round((time + hold) * FPS)] = target
        time += hold
    kernel = np.array([0.15, 0.35, 0.35, 0.15])
    gaze = np.stack([np.convolve(np.pad(g, 4, mode="edge"), kernel, "same")[4:-4] for g in gaze.T], axis=1)
    return gaze * (1.0 - 0.95 * listening - 0.35 * talking * (1 - listening))[:, None].clip(0, 1)


def _expression(
    frames: int, talking: NDArray[np.float64], listening: NDArray[np.float64], stresses: list[float],
    ends: list[float], rng: np.random.Generator,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:  # fmt: skip
    """Brow and smile: brows rise on every third stress; both react to the end of a user phrase."""
    brow = 0.12 * _slow(frames, rng)
    smile = 0.25 + 0.15 * listening - 0.10 * talking
    for time in stresses[::3]:
        _add(brow, time - 0.2, 0.6 * _bump(0.7))
    for time in ends:
        _add(brow, time + NOD_DELAY, 0.55 * _bump(0.9))
        _add(smile, time + NOD_DELAY, 0.35 * _bump(1.2))
    return np.clip(brow, -1, 1), np.clip(smile, 0, 1)


def _hand(frames: int, talk: NDArray[np.bool_], stresses: list[float], rng: np.random.Generator) -> NDArray[np.float64]:
    """Raise, sway, rotation: up for part of some turns, one beat per stress while it is up."""
    up = np.zeros(frames, bool)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], talk.astype(int), [0]])))
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        if end - begin > 1.6 * FPS and rng.random() < 0.6:
            # Raised after half a second of speech, down a little before the turn ends.
            up[begin + FPS // 2 : end - FPS // 5] = True
    raised = np.clip(_ease(up, 0.7), 0, 1)
    beat = np.zeros(frames)
    side = np.zeros(frames)
    for index, time in enumerate(stresses):
        _add(beat, time - 0.2, _bump(0.5))
        _add(side, time - 0.2, _bump(0.6) * (1 if index % 2 else -1))
    raise_ = np.clip(raised * (0.88 - 0.28 * np.clip(beat, 0, 1) + 0.06 * _slow(frames, rng)), 0, 1)
    raise_[raise_ < 0.01] = 0.0
    sway = raised * np.clip(0.3 * _slow(frames, rng) + 0.5 * np.clip(side, -1, 1), -1, 1)
    rotation = raised * (8.0 * np.clip(side, -1, 1) + 6.0 * _slow(frames, rng))
    return np.stack([raise_, sway, rotation], axis=1)
