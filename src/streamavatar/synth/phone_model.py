"""Phones from sound alone: a small network that hears real recordings after training on synthesised speech.

Why phones rather than mouth shapes: from phones everything else follows as it does for synthesised speech (closures
that close, coarticulation, stresses), so nothing downstream knows where a lane came from. It also measured better
than regression of the mouth itself, whose closures stay half open.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from streamavatar.errors import UserError
from streamavatar.models.audio import mel_filters
from streamavatar.synth.phones import PAUSE, SAMPLE_RATE, Phone, Samples, tile

SHIPPED = Path(__file__).parents[1] / "assets" / "phones" / "phones.safetensors"
COLUMNS = 100
"""Log-mel columns per second."""
MELS = 40
_HOP = SAMPLE_RATE // COLUMNS
_WINDOW = 400
_WIDTH = 96
_DILATIONS = (1, 2, 4, 8, 1, 2, 4, 8)
_SWITCH = 3.0  # nats that a change of phone must earn
_SILENT_RMS = 10 ** (-65 / 20)  # a recording that is nowhere louder holds no speech

CLASSES = (
    PAUSE, "p", "b", "m", "f", "v", "th", "dh", "t", "d", "k", "g", "ng", "hh", "ch", "jh", "sh", "zh", "s", "z", "n",
    "l", "r", "er", "aa", "ae", "ah", "ax", "ay", "aw", "eh", "ey", "ih", "iy", "ao", "ow", "oy", "uh", "uw", "w", "y",
)  # fmt: skip


def log_mel(samples: Samples) -> Tensor:
    """[S] to [S / 160, 40]: column m is centred on 10 m + 5 ms; level and colour of the microphone are taken out."""
    count = len(samples) // _HOP
    margin = (_WINDOW - _HOP) // 2
    padded = functional.pad(torch.from_numpy(samples[: count * _HOP]).float(), (margin, margin))
    frames = padded.unfold(0, _WINDOW, _HOP) * torch.hann_window(_WINDOW)
    spectrum = torch.fft.rfft(frames, n=512).abs().square()
    power = spectrum @ mel_filters(spectrum.shape[-1], MELS, SAMPLE_RATE)
    level = power.mean(dim=1)
    loud = level >= level.max() * 1e-3
    # A floor 50 dB below speech: digital silence and a quiet room look alike.
    mel = (power / level[loud].mean().clamp_min(1e-12) + 1e-5).log()
    return (mel - mel[loud].mean(dim=0)) / 3.0


class _Block(nn.Module):
    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.wide = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.point = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.wide(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.point(functional.gelu(hidden))


class PhoneModel(nn.Module):
    """Log-mels [B, M, 40] to scores of `CLASSES` [B, M, classes]; sees 0.3 s before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(MELS, _WIDTH, 5, padding=2)
        self.blocks = nn.Sequential(*(_Block(_WIDTH, d) for d in _DILATIONS))
        self.head = nn.Linear(_WIDTH, len(CLASSES))

    def forward(self, mel: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(mel.transpose(1, 2)).transpose(1, 2)))

    @torch.inference_mode()
    def hear(self, samples: Samples) -> tuple[Phone, ...]:
        """Phones that tile the samples (16 kHz, -1..1), pauses among them."""
        seconds = len(samples) / SAMPLE_RATE
        if len(samples) < _WINDOW or loudest(samples) < _SILENT_RMS:
            return tile([(PAUSE, seconds)])
        scores = self(log_mel(samples)[None])[0].log_softmax(-1).numpy()
        path = best_path(scores, _SWITCH)
        ends = np.append(np.flatnonzero(np.diff(path)) + 1, len(path))
        return tile([*((CLASSES[path[end - 1]], float(end / COLUMNS)) for end in ends), (PAUSE, seconds)])

    def save(self, path: Path) -> None:
        """Half precision: a phone recogniser does not need more."""
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.half().contiguous() for name, value in self.state_dict().items()}, path)


def loudest(samples: Samples) -> float:
    """RMS of the loudest 10 ms."""
    frames = samples[: len(samples) // _HOP * _HOP].reshape(-1, _HOP)
    return float(np.sqrt((frames.astype(np.float64) ** 2).mean(axis=1).max())) if len(frames) else 0.0


def best_path(scores: NDArray[np.float32], switch: float) -> NDArray[np.int64]:
    """The best sequence of classes [M] for log scores [M, C], where every change costs `switch` (Viterbi)."""
    count, classes = scores.shape
    total = scores[0].copy()
    came = np.zeros((count, classes), np.int64)
    stay = np.arange(classes)
    for index in range(1, count):
        best = int(total.argmax())
        change = total[best] - switch
        came[index] = np.where(total >= change, stay, best)
        total = np.maximum(total, change) + scores[index]
    path = np.zeros(count, np.int64)
    path[-1] = total.argmax()
    for index in range(count - 1, 0, -1):
        path[index - 1] = came[index, path[index]]
    return path


@lru_cache(maxsize=2)
def load_phone_model(path: Path = SHIPPED) -> PhoneModel:
    """The recogniser that ships, or one that was trained anew.

    Raises:
        UserError: the file is missing or of another model.
    """
    model = PhoneModel()
    try:
        model.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    except FileNotFoundError:
        raise UserError(f"the phone recogniser {path} is missing: reinstall the package") from None
    except Exception as error:
        raise UserError(f"{path} is not a phone recogniser of this version: {error}") from error
    return model.eval()
