"""Two people in conversation: an agent lane and a user lane on one clock.

Why: the product hears two lanes at once and has to know who talks, so the data needs turns, pauses,
backchannels, a bit of overlap and idle time, with half of the speech in each lane.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from streamavatar.errors import UserError
from streamavatar.synth.acoustics import Acoustics
from streamavatar.synth.align import AlignError
from streamavatar.synth.scripts import EVERYDAY, Grammar, Scripts
from streamavatar.synth.speech import PAUSE, SAMPLE_RATE, VOICES, Phone, Samples, Utterance, synthesize
from streamavatar.synth.voices import split

MAX_TURN = 8.0  # seconds


@dataclass(frozen=True)
class Line:
    """What was said when: text and seconds on the lane's clock."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Lane:
    """One speaker on a clock of its own.

    Attributes:
        samples: float32 16 kHz [S], as the microphone hears it.
        phones: what is spoken (no pauses), in seconds.
        lines: the sentences, where they are known.
        backchannels: seconds at which a backchannel ("mm hmm") begins.
        clean: the samples before room and microphone, where these were added; behaviour follows them.
    """

    samples: Samples
    phones: tuple[Phone, ...]
    lines: tuple[Line, ...] = ()
    backchannels: tuple[float, ...] = ()
    clean: Samples | None = None

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE

    @property
    def voice(self) -> Samples:
        """What the person says, without what the room adds."""
        return self.samples if self.clean is None else self.clean

    def cut(self, first: int, count: int) -> Samples:
        """`count` samples from sample `first` on, zeros where the lane has none."""
        out = np.zeros(count, np.float32)
        low, high = max(0, first), min(len(self.samples), first + count)
        if high > low:
            out[low - first : high - first] = self.samples[low:high]
        return out


@dataclass(frozen=True)
class Dialogue:
    """Two lanes of equal length."""

    agent: Lane
    user: Lane

    @property
    def seconds(self) -> float:
        return self.agent.seconds


@dataclass(frozen=True)
class Speaker:
    """A voice with its own pitch and speed."""

    voice: str
    pitch: float
    rate: float


Speak = Callable[[str, Speaker], Utterance | None]
"""None where a sentence cannot be spoken with phone times; it is left out then."""


@dataclass
class _Track:
    """A lane under construction."""

    samples: Samples
    phones: list[Phone] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    backchannels: list[float] = field(default_factory=list)
    busy: float = 0.0  # seconds until which this lane speaks

    def place(self, utterance: Utterance, at: float, backchannel: bool = False) -> float:
        """Mix the utterance in at `at` seconds; returns where it ends. The tail beyond the lane is cut."""
        first = round(at * SAMPLE_RATE)
        count = min(len(utterance.samples), len(self.samples) - first)
        if count > 0:
            self.samples[first : first + count] += utterance.samples[:count]
            limit = len(self.samples) / SAMPLE_RATE
            shift = first / SAMPLE_RATE
            spoken = (p.moved(shift) for p in utterance.phones if p.name != PAUSE)
            self.phones.extend(Phone(p.name, p.start, min(p.end, limit)) for p in spoken if p.start < limit)
            self.lines.append(Line(utterance.text, at, min(limit, at + utterance.seconds)))
            self.backchannels.extend([at] if backchannel else [])
        self.busy = at + utterance.seconds
        return self.busy

    def lane(self, gain_db: float, noise: Samples, acoustics: Acoustics | None = None) -> Lane:
        samples = np.clip(self.samples * 10.0 ** (gain_db / 20.0) + noise, -1, 1).astype(np.float32)
        heard, clean = (samples, None) if acoustics is None else (acoustics.apply(samples), samples)
        return Lane(heard, tuple(self.phones), tuple(self.lines), tuple(self.backchannels), clean)


@lru_cache(maxsize=64)
def _spoken(text: str, voice: str, pitch: float, rate: float, cache_dir: Path | None) -> Utterance:
    return synthesize(text, voice, pitch=pitch, rate=rate, cache_dir=cache_dir)


def make_dialogue(
    seed: int, seconds: float, *, cache_dir: Path | None = None, voices: Sequence[str] = VOICES,
    grammar: Grammar = EVERYDAY, acoustics: bool = False,
) -> Dialogue:  # fmt: skip
    """A spoken conversation of `seconds` s, a function of its arguments; about a second of CPU per minute with flite.

    Args:
        seed: chooses speakers, sentences, pauses and rooms.
        seconds: length of both lanes.
        cache_dir: where spoken sentences are kept.
        voices: at least two, see `voices.available_voices`; every synthesiser among them speaks equally often.
        grammar: what is talked about; `topics.WIDE` hardly ever repeats a sentence.
        acoustics: put each speaker into a room with a microphone of its own.

    Raises:
        UserError: a voice is unknown or its synthesiser is missing.
    """
    rng = np.random.default_rng((seed, 0xD1A))
    speakers = _two_speakers(rng, voices)

    def speak(text: str, speaker: Speaker) -> Utterance | None:
        try:
            return _spoken(text, speaker.voice, speaker.pitch, speaker.rate, cache_dir)
        except AlignError:
            return None

    return _converse(rng, seconds, speakers, speak, grammar, acoustics)


def tone_dialogue(seed: int, seconds: float) -> Dialogue:
    """The same turn taking with vowel-like tones instead of speech; needs no flite, for tests."""
    rng = np.random.default_rng((seed, 0x70E))
    speakers = (Speaker("tone-a", 1.0, 1.0), Speaker("tone-b", 1.6, 1.1))
    return _converse(rng, seconds, speakers, lambda text, speaker: tone_utterance(text, speaker))


def scripted_dialogue(
    turns: tuple[tuple[str, str], ...], speakers: tuple[Speaker, Speaker], *, gap: float = 0.5, lead: float = 0.6
) -> Dialogue:
    """A fixed conversation: turns are ("agent" or "user", text); speakers are (agent, user). For the demo."""
    spoken = [
        (who, _spoken(text, s.voice, s.pitch, s.rate, None))
        for who, text in turns
        for s in (speakers[0 if who == "agent" else 1],)
    ]
    total = lead + sum(u.seconds + gap for _, u in spoken) + 0.4
    tracks = {who: _Track(np.zeros(round(total * SAMPLE_RATE), np.float32)) for who in ("agent", "user")}
    clock = lead
    for who, utterance in spoken:
        clock = tracks[who].place(utterance, clock) + gap
    quiet = np.zeros(1, np.float32)
    return Dialogue(tracks["agent"].lane(0.0, quiet), tracks["user"].lane(0.0, quiet))


def _two_speakers(rng: np.random.Generator, voices: Sequence[str] = VOICES) -> tuple[Speaker, Speaker]:
    """Two different voices, each with its own pitch and speed."""
    if len({split(voice) for voice in voices}) < 2:
        raise UserError("a dialogue needs two different voices: name two or more")

    def speaker(voice: str) -> Speaker:
        pitch = float(np.round(rng.uniform(0.86, 1.22), 3))
        return Speaker(voice, pitch, float(np.round(rng.uniform(0.9, 1.15), 3)))

    first, second = _two_voices(rng, voices)
    return speaker(first), speaker(second)


def _two_voices(rng: np.random.Generator, voices: Sequence[str]) -> tuple[str, str]:
    """Synthesisers equally often, however many voices each has."""
    engines: dict[str, list[str]] = {}
    for (engine, _), voice in {split(voice): voice for voice in voices}.items():
        engines.setdefault(engine, []).append(voice)
    if len(engines) == 1:
        (names,) = engines.values()
        one, other = rng.permutation(len(names))[:2]
        return names[one], names[other]
    groups = list(engines.values())

    def draw() -> str:
        names = groups[int(rng.integers(len(groups)))]
        return names[int(rng.integers(len(names)))]

    first = second = draw()
    while second == first:
        second = draw()
    return first, second


def _converse(
    rng: np.random.Generator, seconds: float, speakers: tuple[Speaker, Speaker], speak: Speak,
    grammar: Grammar = EVERYDAY, acoustics: bool = False,
) -> Dialogue:  # fmt: skip
    """Turns until the clock runs out: 0 is the agent, 1 the user."""
    count = round(seconds * SAMPLE_RATE)
    tracks = (_Track(np.zeros(count, np.float32)), _Track(np.zeros(count, np.float32)))
    scripts = Scripts(rng, grammar)
    who = int(rng.integers(2))
    clock = float(rng.uniform(0.3, 1.0))
    while clock < seconds:
        start = clock
        for text in scripts.turn():
            utterance = speak(text, speakers[who])
            if utterance is None:
                continue
            if clock > start and clock - start + utterance.seconds > MAX_TURN:
                break
            clock = tracks[who].place(utterance, max(clock, tracks[who].busy)) + float(rng.uniform(0.1, 0.4))
        if clock - start > 2.5 and rng.random() < 0.4:
            other = 1 - who
            at = start + float(rng.uniform(0.45, 0.8)) * (clock - start)
            if tracks[other].busy < at - 0.3:
                reply = speak(scripts.backchannel(), speakers[other])
                if reply is not None:
                    tracks[other].place(reply, at, backchannel=True)
        clock += _pause(rng)
        who = who if rng.random() < 0.12 else 1 - who
        clock = max(clock, tracks[who].busy + 0.2)
    lanes = []
    for track in tracks:
        noise = rng.standard_normal(count).astype(np.float32) * np.float32(10.0 ** rng.uniform(-4.2, -3.0))
        gain = float(rng.uniform(-10, 3))
        # The microphone sets its own level.
        lanes.append(track.lane(0.0, noise, Acoustics.random(rng)) if acoustics else track.lane(gain, noise))
    return Dialogue(lanes[0], lanes[1])


def _pause(rng: np.random.Generator) -> float:
    """Seconds between turns: mostly 0.2-1.2, sometimes an overlap, sometimes an idle stretch."""
    kind = rng.random()
    if kind < 0.08:
        return float(rng.uniform(-0.6, -0.3))
    if kind < 0.20:
        return float(rng.uniform(1.5, 3.5))
    return float(rng.uniform(0.0, 1.0))  # the last sentence already left 0.1-0.4 s


# tones -----------------------------------------------------------------------------------------------

_TONE_VOWELS = {"aa": (730, 1090), "iy": (270, 2290), "uw": (300, 870), "eh": (530, 1840), "ow": (570, 840)}
_TONE_CONSONANTS = ("m", "b", "s", "t", "l")


def tone_utterance(text: str, speaker: Speaker) -> Utterance:
    """One consonant-vowel syllable per three letters of `text`: harmonic tones shaped by two formants."""
    rng = np.random.default_rng((sum(text.encode()), len(text)))
    phones: list[Phone] = []
    parts: list[Samples] = []
    clock = 0.0
    for _ in range(max(2, len(text) // 4)):
        vowel = list(_TONE_VOWELS)[int(rng.integers(len(_TONE_VOWELS)))]
        consonant = _TONE_CONSONANTS[int(rng.integers(len(_TONE_CONSONANTS)))]
        for name, length in ((consonant, rng.uniform(0.06, 0.1)), (vowel, rng.uniform(0.1, 0.24))):
            length = round(length / speaker.rate * SAMPLE_RATE) / SAMPLE_RATE
            phones.append(Phone(name, clock, clock + length))
            parts.append(_tone(name, length, 110.0 * speaker.pitch, rng))
            clock += length
    return Utterance(text, speaker.voice, np.concatenate(parts).astype(np.float32), tuple(phones))


def _tone(name: str, seconds: float, pitch: float, rng: np.random.Generator) -> Samples:
    count = round(seconds * SAMPLE_RATE)
    t = np.arange(count) / SAMPLE_RATE
    if name not in _TONE_VOWELS:
        return (0.03 * rng.standard_normal(count)).astype(np.float32)
    first, second = _TONE_VOWELS[name]
    wave = np.zeros(count)
    for k in range(1, int(3500 / pitch)):
        f = k * pitch
        wave += np.sin(2 * np.pi * f * t) / (1 + ((f - first) / 120) ** 2)
        wave += 0.4 * np.sin(2 * np.pi * f * t) / (1 + ((f - second) / 160) ** 2)
    envelope = np.sin(np.pi * np.clip(np.arange(count) / count, 0, 1)) ** 0.5
    return (0.4 * envelope * wave / max(1e-6, np.abs(wave).max())).astype(np.float32)
