"""A light codec for Wan2.2's latents with the shape of TAEHV, stateless; loads `taew2_2.pth` by name.

After madebyollin/taehv, `TAEHV(patch_size=2, latent_channels=48)`: 3x3 convolutions on single frames; all that
passes along time are memory blocks, which see the frame before, and the steps that grow or pool time. It decodes at
about a two-hundredth of the work of Wan's own decoder and works on the latents as the transformer makes them,
(z - mean) / std, like `WanCodec`.

The network makes four frames of every latent, the first too; of those the last is frame 0 and the other three are
dropped, as the reference does. The encoder pools frames 4k .. 4k+3 into latent k, the clip's last frame repeated to
fill up, again as the reference does; Wan's encoder reads 4k-3 .. 4k there. A reference picture deserves Wan's: see
`Taehv.decode_start`.

Copies: a memory block joins its input and its memory. A version without would split the first convolution's weight in
two and add, in `MemBlock.forward`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from streamavatar.config import TaehvConfig
from streamavatar.models.codec.names import load_exactly


@dataclass(frozen=True)
class TaehvState:
    """What the decoder needs of the past: by layer, the last frame of its input [B, C, h, w]; nothing writes to it."""

    layers: Mapping[str, Tensor]


def _conv(inputs: int, outputs: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias)


class Bound(nn.Module):
    """Latents softly to -3..3."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class MemBlock(nn.Module):
    """A residual block that also sees the frame before."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(2 * channels, channels), nn.ReLU(), _conv(channels, channels), nn.ReLU(), _conv(channels, channels)
        )

    def forward(self, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """Frames [B, T, C, h, w] and the one before, [B, C, h, w], or none: the same, and the one to remember."""
        first = torch.zeros_like(x[:, :1]) if before is None else before[:, None]
        past = torch.cat((first, x[:, :-1]), dim=1)
        y = self.conv(torch.cat((x, past), dim=2).flatten(0, 1)).unflatten(0, x.shape[:2])
        return functional.relu(y + x), x[:, -1].clone()  # a view would keep all of x


class TPool(nn.Module):
    """`stride` frames to one: [N stride, C, h, w] to [N, C, h, w], time the outer part of the channels."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(channels * stride, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.unflatten(0, (-1, self.stride)).flatten(1, 2))


class TGrow(nn.Module):
    """One frame to `stride`: [N, C, h, w] to [N stride, C, h, w]; with stride 1, a product of the channels."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(channels, channels * stride, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).unflatten(1, (self.stride, -1)).flatten(0, 1)


def _encoder(config: TaehvConfig) -> nn.Sequential:
    width = config.encoder_width
    layers: list[nn.Module] = [_conv(3 * config.patch**2, width), nn.ReLU()]
    for time in config.encoder_time:
        layers += [TPool(width, 1 + time), _conv(width, width, stride=2, bias=False)]
        layers += [MemBlock(width) for _ in range(3)]
    return nn.Sequential(*layers, _conv(width, config.latent_channels))


def _decoder(config: TaehvConfig) -> nn.Sequential:
    widths = config.decoder_widths
    layers: list[nn.Module] = [Bound(), _conv(config.latent_channels, widths[0]), nn.ReLU()]
    for width, following, time in zip(widths[:-1], widths[1:], config.decoder_time, strict=True):
        layers += [MemBlock(width) for _ in range(3)]
        layers += [nn.Upsample(scale_factor=2), TGrow(width, 1 + time), _conv(width, following, bias=False)]
    return nn.Sequential(*layers, nn.ReLU(), _conv(widths[-1], 3 * config.patch**2))


def _in_turn(layers: nn.Sequential, x: Tensor, past: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Frames [B, T, C, h, w] through all layers; the memories by the layers' numbers, none at a clip's start."""
    batch, new = x.shape[0], {}
    for name, layer in layers.named_children():
        if isinstance(layer, MemBlock):
            x, new[name] = layer(x, past.get(name))
        else:
            x = layer(x.flatten(0, 1)).unflatten(0, (batch, -1))
    return x, new


class Taehv(nn.Module):
    """See the module's docstring. Frames and latents go in and come out in float32, whatever the weights are in.

    Args:
        config: sizes.
    """

    def __init__(self, config: TaehvConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = _encoder(config), _decoder(config)

    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _decode(self, latents: Tensor, past: Mapping[str, Tensor]) -> tuple[Tensor, TaehvState]:
        x, new = _in_turn(self.decoder, latents.transpose(1, 2).to(self._dtype()), past)
        frames = functional.pixel_shuffle(x, self.config.patch).transpose(1, 2)
        return frames.float().clamp(0, 1) * 2 - 1, TaehvState(new)

    def encode(self, frames: Tensor) -> Tensor:
        """A clip [B, 3, 1 + 4n, H, W] in -1..1 to latents [B, C, 1 + n, H/16, W/16]."""
        space, time = self.config.spatial_stride, self.config.temporal_stride
        if frames.shape[3] % space or frames.shape[4] % space or frames.shape[2] % time != 1 % time:
            raise ValueError(f"taehv: 1 + {time}n frames, their sides multiples of {space}, not {tuple(frames.shape)}")
        full = torch.cat((frames, frames[:, :, -1:].expand(-1, -1, time - 1, -1, -1)), dim=2)
        x = functional.pixel_unshuffle((full.transpose(1, 2) + 1) / 2, self.config.patch)
        return _in_turn(self.encoder, x.to(self._dtype()), {})[0].transpose(1, 2).float()

    def open(self, picture: Tensor) -> tuple[Tensor, TaehvState]:
        """Reference picture [B, 3, H, W] in -1..1 to its latent [B, C, 1, h, w] and the state to decode from."""
        latent = self.encode(picture[:, :, None])
        return latent, self.decode_start(latent)[1]

    def decode_start(self, latent: Tensor) -> tuple[Tensor, TaehvState]:
        """A clip's first latent [B, C, 1, h, w], of either codec, to frame 0 [B, 3, 1, H, W] and the state to go on."""
        if latent.shape[2] != 1:
            raise ValueError(f"taehv: a clip starts with one latent, not {latent.shape[2]}")
        frames, state = self._decode(latent, {})
        return frames[:, :, -1:], state

    def decode(self, latents: Tensor, state: TaehvState) -> tuple[Tensor, TaehvState]:
        """Later latents [B, C, T, h, w] to frames [B, 3, 4 T, H, W] in -1..1 and the state to go on with."""
        return self._decode(latents, state.layers)

    def decode_clip(self, latents: Tensor) -> Tensor:
        """A clip's latents [B, C, 1 + n, h, w] in one pass to frames [B, 3, 1 + 4n, H, W]."""
        return self._decode(latents, {})[0][:, :, self.config.temporal_stride - 1 :]

    def load(self, tensors: Mapping[str, Tensor], source: str = "weights") -> None:
        """Take over weights under taehv's names; where a TGrow has more rows than ours, its last frames' are taken.

        Raises:
            UserError: a tensor is missing, too many or of another shape.
        """
        tensors = dict(tensors)
        for name, layer in self.decoder.named_children():
            key = f"decoder.{name}.conv.weight"
            if isinstance(layer, TGrow) and key in tensors:
                tensors[key] = tensors[key][-layer.conv.out_channels :]
        load_exactly(self, tensors, source)
