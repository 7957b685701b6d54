"""Audio lanes to audio tokens: features per video frame, talk and listen masks, windows per latent (paper, 1.4).

The small models' encoder is a log-mel front end and a stack of causal convolutions, so a feature depends on a finite
past and on nothing later than the end of its own video frame; the only look-ahead is that of the window of a latent,
two frames (80 ms). Every call passes `history` frames of audio before the first feature (silence where there is
none), so features made chunk by chunk are those of the whole clip. The full size hears with wav2vec 2.0 instead, see
`models.wav2vec` for what holds there.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from streamavatar.config import AudioConfig
from streamavatar.models.wav2vec import Wav2VecEncoder

WINDOW_SECONDS, HOPS_PER_FRAME = 0.025, 4
BEFORE, AFTER = 2, 2
"""Frames that a latent's window reaches beyond the frames it covers, on each side."""
ACTIVE_RMS = 10 ** (-45 / 20)
HOLD_FRAMES = 5
"""A lane counts as speaking for 0.2 s after its last frame above -45 dBFS."""


CPU = torch.device("cpu")


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # kept for training as well, whoever asked first
def mel_filters(bins: int, mels: int, rate: int, device: torch.device = CPU) -> Tensor:
    """Triangular HTK mel filters, [bins, mels]; kept on the device, so that no chunk waits for them."""
    top = 2595 * math.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, mels + 2, dtype=torch.float64, device=device) / 2595) - 1)
    frequencies = torch.linspace(0, rate / 2, bins, dtype=torch.float64, device=device)[:, None]
    rise = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return torch.minimum(rise, fall).clamp_min(0).float()


def activity(waveform: Tensor, frame_samples: int) -> Tensor:
    """Whether a lane speaks, per video frame: [B, F * frame_samples] to float 0/1 [B, F]; causal, held for 0.2 s."""
    rms = waveform.unflatten(1, (-1, frame_samples)).square().mean(-1).sqrt()
    loud = (rms > ACTIVE_RMS).float()
    held = functional.max_pool1d(functional.pad(loud, (HOLD_FRAMES, 0))[:, None], HOLD_FRAMES + 1, stride=1)
    return held[:, 0]


class CausalConv(nn.Module):
    """A 1-D convolution that sees the past only."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.pad = (kernel - 1) * dilation + 1 - stride
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.pad(x, (self.pad, 0)))


class AudioEncoder(nn.Module):
    """16 kHz waveform to one feature vector per video frame.

    Args:
        config: sizes.
        fps: video frames per second.
    """

    def __init__(self, config: AudioConfig, fps: int = 25) -> None:
        super().__init__()
        self.config = config
        self.frame_samples = config.sample_rate // fps
        self._hop = self.frame_samples // HOPS_PER_FRAME
        self._window = int(config.sample_rate * WINDOW_SECONDS)
        width = config.width
        self.stem = nn.Sequential(
            CausalConv(config.mels, width, 5),
            nn.GELU(),
            CausalConv(width, width, 4, stride=2),
            nn.GELU(),
            CausalConv(width, width, 4, stride=2),
        )
        self.dilations = tuple(1 + layer % 2 for layer in range(config.depth))
        self.layers = nn.ModuleList(
            nn.Sequential(CausalConv(width, width, 3, dilation=d), nn.GELU(), nn.Conv1d(width, width, 1))
            for d in self.dilations
        )
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, config.feature_dim)

    @property
    def history(self) -> int:
        """Frames of audio before the first feature that a feature may depend on (rounded up)."""
        return 3 + sum(2 * d for d in self.dilations)

    def log_mel(self, waveform: Tensor) -> Tensor:
        """[B, S] to [B, mels, S / hop]; column m ends at sample (m + 1) * hop."""
        padded = functional.pad(waveform.float(), (self._window - self._hop, 0))
        window = torch.hann_window(self._window, device=waveform.device)
        frames = padded.unfold(1, self._window, self._hop) * window
        power = torch.fft.rfft(frames, n=512).abs().square()
        filters = mel_filters(power.shape[-1], self.config.mels, self.config.sample_rate, waveform.device)
        return ((power @ filters).clamp_min(1e-6).log() / 4 + 1).transpose(1, 2)

    def forward(self, waveform: Tensor) -> Tensor:
        """Features of the frames after the history.

        Args:
            waveform: [B, (history + F) * frame_samples], float, about -1..1.

        Returns:
            [B, F, feature_dim].
        """
        x = self.stem(self.log_mel(waveform).to(self.out.weight.dtype))
        for layer in self.layers:
            x = x + layer(x)
        return self.out(self.norm(x[:, :, self.history :].transpose(1, 2)))


def latent_window(latent: int, stride: int = 4) -> range:
    """Frames whose features condition latent k: -2..2 for the reference, else 4k-5 .. 4k+2."""
    if latent == 0:
        return range(-BEFORE, AFTER + 1)
    return range((latent - 1) * stride + 1 - BEFORE, latent * stride + AFTER + 1)


class LaneTokens(nn.Module):
    """The features of a latent's window to its audio tokens (MultiTalk's projection)."""

    def __init__(self, config: AudioConfig, stride: int = 4) -> None:
        super().__init__()
        self.tokens, self.stride = config.tokens, stride
        reference, rest = len(latent_window(0)), len(latent_window(1, stride))
        self.first = nn.Linear(reference * config.feature_dim, config.hidden)
        self.rest = nn.Linear(rest * config.feature_dim, config.hidden)
        self.middle = nn.Linear(config.hidden, config.hidden)
        self.last = nn.Linear(config.hidden, config.tokens * config.dim)
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, features: Tensor, first_frame: int, span: range) -> Tensor:
        """Tokens of the latents in `span`.

        Args:
            features: [B, F, feature_dim]; row 0 is video frame `first_frame`.
            first_frame: see above; may be negative.
            span: latent indices, ascending, step 1.

        Returns:
            [B, len(span), tokens, dim].
        """
        parts = []
        if span.start == 0:
            window = latent_window(0)
            start = window.start - first_frame
            parts.append(self.first(features[:, start : start + len(window)].flatten(1))[:, None])
        later = range(max(span.start, 1), span.stop)
        if len(later):
            window = latent_window(later.start, self.stride)
            start = window.start - first_frame
            stop = start + len(window) + (len(later) - 1) * self.stride
            rows = features[:, start:stop].unfold(1, len(window), self.stride).transpose(2, 3)
            parts.append(self.rest(rows.flatten(2)))
        hidden = functional.relu(torch.cat(parts, dim=1))
        out = self.last(functional.relu(self.middle(hidden)))
        return self.norm(out.unflatten(-1, (self.tokens, -1)))


def _encoder(config: AudioConfig, fps: int) -> AudioEncoder | Wav2VecEncoder:
    if config.wav2vec2 is None:
        return AudioEncoder(config, fps)
    return Wav2VecEncoder(config.wav2vec2, config.sample_rate // fps)


class AudioConditioner(nn.Module):
    """Both lanes to talk and listen tokens; the encoder is shared, the projections are not."""

    def __init__(self, config: AudioConfig, fps: int = 25, stride: int = 4) -> None:
        super().__init__()
        self.config = config
        self.encoder: Any = _encoder(config, fps)  # both have history, frame_samples and features per frame
        self.talk = LaneTokens(config, stride)
        self.listen = LaneTokens(config, stride)

    @property
    def history(self) -> int:
        """Frames of audio that :meth:`features` needs before the first feature."""
        return self.encoder.history + HOLD_FRAMES

    def features(self, agent: Tensor, user: Tensor) -> tuple[Tensor, Tensor]:
        """Masked talk and listen features, [B, F, feature_dim] each.

        With separate lanes the talk mask gates the agent's features and the user's lane always reaches the listen
        attention. With one mixed track, as in real footage, the mask m splits it: m * f and (1 - m) * f.

        Args:
            agent, user: waveforms [B, (history + F) * frame_samples].
        """
        size = self.encoder.frame_samples
        mask = activity(agent, size)
        agent, user, mask = agent[:, HOLD_FRAMES * size :], user[:, HOLD_FRAMES * size :], mask[:, HOLD_FRAMES:]
        track = (agent, user) if self.config.separate_lanes else (agent + user, agent + user)
        listen_mask = torch.ones_like(mask) if self.config.separate_lanes else 1 - mask
        if self.config.mask == "waveform":
            talk, listen = (
                self.encoder(w * m.repeat_interleave(size, dim=1))
                for w, m in zip(track, (mask, listen_mask), strict=True)
            )
            return talk, listen
        keep = slice(self.encoder.history, None)
        talk = self.encoder(track[0])
        listen = self.encoder(track[1]) if self.config.separate_lanes else talk
        return talk * mask[:, keep, None].to(talk.dtype), listen * listen_mask[:, keep, None].to(listen.dtype)

    def tokens(self, talk: Tensor, listen: Tensor, first_frame: int, span: range) -> tuple[Tensor, Tensor]:
        """Talk and listen tokens [B, len(span), tokens, dim] of features that begin at video frame `first_frame`."""
        return self.talk(talk, first_frame, span), self.listen(listen, first_frame, span)
