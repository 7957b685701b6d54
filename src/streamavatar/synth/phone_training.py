"""Trains and measures the phone recogniser: synthesised speech with known times, through many rooms.

`main(SHIPPED)` makes the file that ships (ten minutes on two cores; needs flite, espeak-ng and the extra `voices`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from streamavatar.seeds import seed_for
from streamavatar.synth.acoustics import Acoustics
from streamavatar.synth.align import AlignError
from streamavatar.synth.phone_model import CLASSES, COLUMNS, MELS, SHIPPED, PhoneModel, log_mel
from streamavatar.synth.phones import PAUSE, SAMPLE_RATE, Phone, Samples
from streamavatar.synth.scripts import Grammar, Scripts
from streamavatar.synth.speech import Utterance, synthesize
from streamavatar.synth.topics import WIDE
from streamavatar.synth.visemes import mouth_tracks

FLITE = ("flite:kal16", "flite:awb", "flite:rms", "flite:slt")
ESPEAK = tuple(
    f"espeak:{accent}+{speaker}"
    for accent, speakers in (
        ("en-us", ("m1", "f2", "Andrea", "m6", "Hugo")), ("en-gb", ("m3", "Annie", "f5")),
        ("en-gb-scotland", ("m7", "f1")), ("en-029", ("f3", "m2")), ("en-gb-x-rp", ("Denis", "steph")),
        ("en-gb-x-gbcwmd", ("Hugo",)), ("en-gb-x-gbclan", ("m4",)),
    )
    for speaker in speakers
)  # fmt: skip
PICO = ("pico:en-US", "pico:en-GB")
# Sentences per voice: the synthesisers that sound like people speak more.
SENTENCES = {"flite": 120, "espeak": 24, "pico": 80}
_SAME = {"dx": "d", "axr": "er"}
_CROP = 200  # columns


@dataclass(frozen=True)
class Example:
    """Log-mels [M, 40] and the class of every column [M]."""

    mel: Tensor
    classes: Tensor


def speak_corpus(voice: str, sentences: int, grammar: Grammar = WIDE, seed: int = 0) -> list[Utterance]:
    """Different sentences, each in another pitch and speed; those that cannot be aligned are left out."""
    rng = np.random.default_rng(seed_for(seed, f"corpus of {voice}"))
    scripts = Scripts(rng, grammar)
    spoken = []
    for index in range(sentences):
        scripts.change_topic()
        text = (scripts.answer, scripts.statement, scripts.question, scripts.reaction)[index % 4]()
        pitch, rate = float(rng.uniform(0.82, 1.22)), float(rng.uniform(0.85, 1.2))
        with suppress(AlignError):
            spoken.append(synthesize(text, voice, pitch=pitch, rate=rate))
    return spoken


def make_example(utterance: Utterance, rng: np.random.Generator, acoustics: Acoustics) -> Example:
    """One sentence with up to 0.6 s of a quiet room on both sides, as a microphone hears it."""
    lead, tail = (round(rng.uniform(0, 0.6) * SAMPLE_RATE) for _ in range(2))
    sound = np.pad(utterance.samples, (lead, tail))
    sound = sound + rng.standard_normal(len(sound)).astype(np.float32) * np.float32(10 ** rng.uniform(-4.5, -3))
    mel = log_mel(acoustics.apply(sound.astype(np.float32)))
    return Example(mel, column_classes([p.moved(lead / SAMPLE_RATE) for p in utterance.phones], len(mel)))


def quiet_example(rng: np.random.Generator, seconds: float = 3.0) -> Example:
    """Noise without speech, so that a room is not heard as talking."""
    sound = (rng.standard_normal(round(seconds * SAMPLE_RATE)) * 1e-3).astype(np.float32)
    mel = log_mel(Acoustics.random(rng).apply(sound))
    return Example(mel, torch.zeros(len(mel), dtype=torch.long))


def column_classes(phones: Sequence[Phone], count: int) -> Tensor:
    """The class of each of `count` columns; pause where no phone is."""
    classes = torch.zeros(count, dtype=torch.long)
    for phone in phones:
        span = slice(round(phone.start * COLUMNS), round(phone.end * COLUMNS))
        classes[span] = CLASSES.index(_SAME.get(phone.name, phone.name))
    return classes


def train_phone_model(corpus: Sequence[Utterance], steps: int = 3000, seed: int = 0, batch: int = 16) -> PhoneModel:
    """A recogniser for these sentences, each heard in two rooms; the same arguments give the same weights."""
    rng = np.random.default_rng(seed_for(seed, "phones"))
    examples = [make_example(utterance, rng, Acoustics.random(rng)) for utterance in corpus for _ in range(2)]
    examples += [quiet_example(rng) for _ in range(1 + len(examples) // 25)]
    examples = [example for example in examples if len(example.mel) >= _CROP]
    torch.manual_seed(seed)
    model = PhoneModel().train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for _ in range(steps):
        mel, classes = _batch(examples, batch, rng)
        loss = functional.cross_entropy(model(mel).flatten(0, 1), classes.flatten(), label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def _batch(examples: Sequence[Example], size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Crops of two seconds, each in another colour and with a few bands missing."""
    mels, classes = [], []
    for index in rng.integers(len(examples), size=size):
        example = examples[index]
        first = int(rng.integers(len(example.mel) - _CROP + 1))
        color = torch.from_numpy(rng.normal(0, 0.1, MELS)).float()
        mel = example.mel[first : first + _CROP] + color
        missing = int(rng.integers(MELS - 4))
        mel[:, missing : missing + 4] = 0.0
        mels.append(mel)
        classes.append(example.classes[first : first + _CROP])
    return torch.stack(mels), torch.stack(classes)


@dataclass(frozen=True)
class Agreement:
    """How near estimated phones come to known ones, at 25 frames per second.

    Attributes:
        opening, width: correlation of mouth opening and width.
        viseme: share of frames with the same strongest viseme.
        closed: share of the frames with closed lips (p, b, m) in which the estimate closes too.
        false_closed: share of the frames with a mouth open by 0.3 or more in which the estimate closes.
    """

    opening: float
    width: float
    viseme: float
    closed: float
    false_closed: float


def agreement(
    known: Sequence[Sequence[Phone]], estimated: Sequence[Sequence[Phone]], seconds: Sequence[float]
) -> Agreement:
    """Compare the mouth that follows from estimated phones with the one from known phones."""
    tracks: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for pair in zip(known, estimated, seconds, strict=True):
        frames = int(pair[2] * 25)
        for phones, out in zip(pair[:2], tracks, strict=True):
            visemes, opening, width = mouth_tracks([p for p in phones if p.name != PAUSE], frames, 25)
            out.append(np.concatenate([visemes, opening[:, None], width[:, None]], axis=1))
    truth, guess = (np.concatenate(track) for track in tracks)
    shut = truth[:, 1] > 0.8
    return Agreement(
        opening=float(np.corrcoef(truth[:, 15], guess[:, 15])[0, 1]),
        width=float(np.corrcoef(truth[:, 16], guess[:, 16])[0, 1]),
        viseme=float((truth[:, :15].argmax(1) == guess[:, :15].argmax(1)).mean()),
        closed=float((guess[shut, 15] < 0.1).mean()),
        false_closed=float((guess[truth[:, 15] >= 0.3, 15] < 0.1).mean()),
    )


def measure(model: PhoneModel, utterances: Sequence[Utterance], acoustics: Acoustics | None = None) -> Agreement:
    """How well the model hears sentences with known phones, clean or through `acoustics`."""
    sounds: list[Samples] = [u.samples if acoustics is None else acoustics.apply(u.samples) for u in utterances]
    heard = [model.hear(sound) for sound in sounds]
    return agreement([u.phones for u in utterances], heard, [u.seconds for u in utterances])


def make_corpus(voices: Sequence[str], seed: int = 0) -> list[Utterance]:
    """`SENTENCES` of every voice.

    Raises:
        UserError: a synthesiser is not installed.
    """
    return [
        utterance
        for voice in voices
        for utterance in speak_corpus(voice, SENTENCES[voice.partition(":")[0]], seed=seed)
    ]


def main(out: Path = SHIPPED) -> None:
    """Train on all voices and write the weights."""
    train_phone_model(make_corpus(FLITE + ESPEAK + PICO)).save(out)
