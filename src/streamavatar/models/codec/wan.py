"""Wan2.2's video autoencoder, stateless: f16 x t4, 48 channels, one latent for frame 0 and one for every four after.

Equal to `AutoencoderKLWan` of diffusers with `is_residual=True` (and to Wan2.2's own `wan/modules/vae2_2.py`), whose
parameter names it bears. All that a pass needs of the passes before is a value, `WanState`: for every causal
convolution the last frames of its input. Every layer takes the history (empty at a clip's start) and returns its
share of the new one, so that a clip may be cut anywhere and sessions share nothing but weights.

A clip's first frame is special in two places, both written out below: time is neither halved nor doubled for it, and
the time convolution of an upsampler never sees it (its history starts with zeros). So the first pass has exactly one
frame, or one latent, and no later pass has a special case.

No copies: the norm and SiLU before a causal convolution write their result right behind its history, into the tensor
that the convolution reads (`CausalConv3d.after`), and what changes resolution writes its result once, in the memory
format that it got. Only where gradients are wanted, and before convolutions of time alone, is an input joined to its
history.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from streamavatar.config import WanCodecConfig
from streamavatar.models.codec.names import from_wan, is_wan, load_exactly
from streamavatar.ops.fused import norm_silu

if TYPE_CHECKING:
    from typing_extensions import Self

History = Mapping[str, Tensor]
"""Of each causal convolution, by its name, the last frames of its input [B, C, 1 or 2, h, w]; empty at the start."""

Pass = tuple[Tensor, dict[str, Tensor]]
"""What a layer returns: its output and its share of the new history."""


@dataclass(frozen=True)
class WanState:
    """What a pass needs of the passes before: `layers`, see `History`. A value; nothing writes to it."""

    layers: History


def _in_turn(layers: Iterable[nn.Module], x: Tensor, past: History) -> Pass:
    new: dict[str, Tensor] = {}
    for layer in layers:
        x, share = layer(x, past)
        new |= share
    return x, new


def _per_frame(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a layer of pictures to [B, C, T, h, w]; no copy where channels are last."""
    return layer(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (x.shape[0], -1)).transpose(1, 2)


def _empty_like(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Memory for [B, C, T, h, w], channels-last if x is."""
    last = x.is_contiguous(memory_format=torch.channels_last_3d)
    layout = torch.channels_last_3d if last else torch.contiguous_format
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=layout)


class CausalConv3d(nn.Conv3d):
    """A convolution that pads space with zeros and takes the frames before from its history (zeros at the start)."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int, int], stride: int = 1) -> None:
        space = (0, kernel[1] // 2, kernel[2] // 2)
        super().__init__(inputs, outputs, kernel, stride=(stride, 1, 1), padding=space)
        self.keeps = kernel[0] - stride
        self.name = ""  # in the codec, set by it

    def forward(self, x: Tensor, past: History) -> Pass:  # type: ignore[override]  # the history is not a plain input
        """[B, inputs, T, h, w] to [B, outputs, T / stride, h, w] and the last frames of the input."""
        if self.name in past:
            return self._convolve(torch.cat((past[self.name], x), dim=2))
        return self._convolve(functional.pad(x, (0, 0, 0, 0, self.keeps, 0)))

    def after(self, norm: ChannelNorm, x: Tensor, past: History) -> Pass:
        """The same of silu(norm(x)), written where it is read unless a gradient is wanted or a hook wants to see it."""
        wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (x, norm.gamma, self.weight))
        if wanted or self._forward_pre_hooks:
            return self(functional.silu(norm(x)), past)
        batch, channels, frames, *size = x.shape
        joined = _empty_like(x, (batch, channels, self.keeps + frames, *size))
        joined[:, :, : self.keeps] = past.get(self.name, 0)
        norm_silu(x, norm.gamma, joined[:, :, self.keeps :])
        return self._convolve(joined)

    def _convolve(self, joined: Tensor) -> Pass:
        # A view of the last frames would keep the whole input alive for as long as the session waits.
        return super().forward(joined), {self.name: joined[:, :, -self.keeps :].clone()}


class ChannelNorm(nn.Module):
    """Channels to unit root mean square, times a learned factor; `dims` of space (and time) follow the channels."""

    def __init__(self, channels: int, dims: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *(1 for _ in range(dims))))

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(x, dim=1) * (self.gamma * self.gamma.shape[0] ** 0.5)


class ResidualBlock(nn.Module):
    """Norm, SiLU, causal 3x3x3 convolution, twice, around a residual."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(inputs, 3)
        self.conv1 = CausalConv3d(inputs, outputs, (3, 3, 3))
        self.norm2 = ChannelNorm(outputs, 3)
        self.conv2 = CausalConv3d(outputs, outputs, (3, 3, 3))
        self.conv_shortcut = nn.Conv3d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, past: History) -> Pass:
        h, first = self.conv1.after(self.norm1, x, past)
        h, second = self.conv2.after(self.norm2, h, past)
        return h + self.conv_shortcut(x), first | second


class AttentionBlock(nn.Module):
    """Single-head self-attention inside each frame; it has no history."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels, 2)
        self.to_qkv = nn.Conv2d(channels, channels * 3, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def _attend(self, x: Tensor) -> Tensor:
        """[N, C, h, w] to the same."""
        q, k, v = self.to_qkv(self.norm(x)).flatten(2).transpose(1, 2)[:, None].chunk(3, dim=-1)
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y[:, 0].transpose(1, 2).unflatten(2, x.shape[2:]))

    def forward(self, x: Tensor, past: History) -> Pass:
        return x + _per_frame(self._attend, x), {}


class MidBlock(nn.Module):
    """Residual block, attention, residual block at the coarsest level."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([AttentionBlock(channels)])
        self.resnets = nn.ModuleList([ResidualBlock(channels, channels) for _ in range(2)])

    def forward(self, x: Tensor, past: History) -> Pass:
        return _in_turn((self.resnets[0], self.attentions[0], self.resnets[1]), x, past)


class Downsampler(nn.Module):
    """Halve space by a strided convolution and, if `temporal`, time by another."""

    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))
        self.time_conv = CausalConv3d(channels, channels, (3, 1, 1), stride=2) if temporal else None

    def forward(self, x: Tensor, past: History) -> Pass:
        x = _per_frame(self.resample, x)
        if self.time_conv is None:
            return x, {}
        if not past:  # the clip's first frame is passed on, and is the history of the second
            return x, {self.time_conv.name: x}
        return self.time_conv(x, past)


class Upsampler(nn.Module):
    """Double time, if `temporal`, by a convolution that makes two frames of one, then space by the nearest pixel."""

    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(channels, channels, 3, padding=1))
        self.time_conv = CausalConv3d(channels, 2 * channels, (3, 1, 1)) if temporal else None

    def forward(self, x: Tensor, past: History) -> Pass:
        new: dict[str, Tensor] = {}
        if self.time_conv is not None:
            if past:
                pairs, new = self.time_conv(x, past)
                pairs = pairs.unflatten(1, (2, -1))
                batch, _, channels, frames, *size = pairs.shape
                x = _empty_like(x, (batch, channels, 2 * frames, *size))
                x.unflatten(2, (frames, 2)).copy_(pairs.permute(0, 2, 3, 1, 4, 5))
            else:  # the clip's first frame is not doubled, and is no history to the second: that has zeros
                nothing = torch.zeros_like(x)
                new = {self.time_conv.name: torch.cat((nothing, nothing), dim=2)}
        return _per_frame(self.resample, x), new


def average_down(x: Tensor, channels: int, time: int, space: int) -> Tensor:
    """Space-time blocks to channels, then the mean of neighbouring channels: a shortcut without parameters.

    Args:
        x: [B, C, T, H, W]; an incomplete block of frames (the clip's first) is filled with zeros before it.
        channels: of the output.
        time, space: the block.

    Returns:
        [B, channels, T / time, H / space, W / space].
    """
    x = functional.pad(x, (0, 0, 0, 0, -x.shape[2] % time, 0))
    blocks = x.unflatten(4, (-1, space)).unflatten(3, (-1, space)).unflatten(2, (-1, time))
    return blocks.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4).unflatten(1, (channels, -1)).mean(2)


def duplicate_up(x: Tensor, channels: int, time: int, space: int) -> Tensor:
    """Repeated channels to space-time blocks, the inverse of `average_down`: [B, C, T, H, W] to [B, channels, ...]."""
    batch, inputs, frames, height, width = x.shape
    out = _empty_like(x, (batch, channels, time * frames, space * height, space * width))
    blocks = out.unflatten(4, (width, space)).unflatten(3, (height, space)).unflatten(2, (frames, time))
    # [B, channels, time, space, space, T, H, W] on both sides; each input fills a run of the blocks' cells.
    repeated = x[:, :, None].expand(-1, -1, channels * time * space**2 // inputs, -1, -1, -1)
    blocks.permute(0, 1, 3, 5, 7, 2, 4, 6).copy_(_cells(repeated, channels, time, space))
    return out


def _cells(repeated: Tensor, channels: int, time: int, space: int) -> Tensor:
    """[B, C, repeats, T, H, W] to [B, channels, time, space, space, T, H, W]; a view where repeats end with a cell."""
    return repeated.reshape(repeated.shape[0], channels, time, space, space, *repeated.shape[3:])


class DownBlock(nn.Module):
    """One level of the encoder: residual blocks and, where `space` is 2, a step to the next, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, blocks: int, time: int, space: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResidualBlock(outputs if i else inputs, outputs) for i in range(blocks)])
        self.downsampler = Downsampler(outputs, time == 2) if space == 2 else None
        self.outputs, self.time, self.space = outputs, time, space

    def forward(self, x: Tensor, past: History) -> Pass:
        steps = self.resnets if self.downsampler is None else [*self.resnets, self.downsampler]
        y, new = _in_turn(steps, x, past)
        return y + average_down(x, self.outputs, self.time, self.space), new


class UpBlock(nn.Module):
    """One level of the decoder: residual blocks and, where `space` is 2, a step to the next beside a shortcut.

    The shortcut reads the first `reads` channels: all of them in Wan's own decoder, fewer where a level is pruned more
    than the one before.
    """

    def __init__(self, inputs: int, outputs: int, blocks: int, time: int, space: int, reads: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResidualBlock(outputs if i else inputs, outputs) for i in range(blocks)])
        self.upsampler = Upsampler(outputs, time == 2) if space == 2 else None
        self.outputs, self.time, self.space, self.reads = outputs, time, space, reads

    def forward(self, x: Tensor, past: History) -> Pass:
        if self.upsampler is None:
            return _in_turn(self.resnets, x, past)
        y, new = _in_turn((*self.resnets, self.upsampler), x, past)
        around = duplicate_up(x[:, : self.reads], self.outputs, self.time, self.space)
        return y + (around if past else around[:, :, self.time - 1 :]), new  # the clip's first frame is not doubled


class Encoder(nn.Module):
    """Patches [B, 3 p p, T, H / p, W / p] to the latents' mean and log-variance [B, 2 z, T', h, w]."""

    def __init__(self, config: WanCodecConfig) -> None:
        super().__init__()
        widths = [config.encoder_dim * m for m in (1, *config.dim_mult)]
        self.conv_in = CausalConv3d(3 * config.patch**2, widths[0], (3, 3, 3))
        factors = [*((1 + temporal, 2) for temporal in config.temporal_down), (1, 1)]
        levels = zip(widths[:-1], widths[1:], factors, strict=True)
        self.down_blocks = nn.ModuleList([DownBlock(a, b, config.res_blocks, *factor) for a, b, factor in levels])
        self.mid_block = MidBlock(widths[-1])
        self.norm_out = ChannelNorm(widths[-1], 3)
        self.conv_out = CausalConv3d(widths[-1], 2 * config.z_dim, (3, 3, 3))

    def forward(self, x: Tensor, past: History) -> Pass:
        x, new = _in_turn((self.conv_in, *self.down_blocks, self.mid_block), x, past)
        x, last = self.conv_out.after(self.norm_out, x, past)
        return x, new | last


class Decoder(nn.Module):
    """Latents [B, z, T, h, w] to patches [B, 3 p p, T', H / p, W / p]."""

    def __init__(self, config: WanCodecConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = CausalConv3d(config.z_dim, widths[0], (3, 3, 3))
        self.mid_block = MidBlock(widths[0])
        factors = [*((1 + temporal, 2) for temporal in reversed(config.temporal_down)), (1, 1)]
        levels = zip(widths[:-1], widths[1:], factors, (*config.shortcut_ratios, 0), strict=True)
        self.up_blocks = nn.ModuleList(
            [UpBlock(a, b, config.res_blocks + 1, *factor, reads=b * ratio) for a, b, factor, ratio in levels]
        )
        self.norm_out = ChannelNorm(widths[-1], 3)
        self.conv_out = CausalConv3d(widths[-1], 3 * config.patch**2, (3, 3, 3))

    def forward(self, x: Tensor, past: History) -> Pass:
        x, new = _in_turn((self.conv_in, self.mid_block, *self.up_blocks), x, past)
        x, last = self.conv_out.after(self.norm_out, x, past)
        return x, new | last


@lru_cache(maxsize=16)
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """[1, C, 1, 1, 1] in float32. Not a buffer: the weights may be cast to bfloat16, this must not."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None, None][None]


def _name_convolutions(module: nn.Module) -> None:
    """Tell every causal convolution the name under which it finds its history."""
    for name, part in module.named_modules():
        if isinstance(part, CausalConv3d):
            part.name = name


def _channels_last(module: nn.Module) -> None:
    """Lay out the convolutions' weights channels-last, in place."""
    for part in module.modules():
        if isinstance(part, nn.Conv3d):
            part.weight.data = part.weight.data.to(memory_format=torch.channels_last_3d)
        elif isinstance(part, nn.Conv2d):
            part.weight.data = part.weight.data.to(memory_format=torch.channels_last)


class _Half(nn.Module):
    """What the two halves of the codec share; each works alone."""

    def __init__(self, config: WanCodecConfig) -> None:
        super().__init__()
        self.config = config

    @torch.no_grad()
    def channels_last(self) -> Self:
        """Lay out the convolutions' weights channels-last, in place; `Module.to` cannot mix 4 and 5 dimensions."""
        _channels_last(self)
        return self

    def load(self, tensors: Mapping[str, Tensor], source: str = "weights") -> None:
        """Take over weights under Wan's or diffusers' names.

        Raises:
            UserError: a tensor is missing, too many or of another shape.
        """
        if is_wan(tensors):
            tensors = from_wan(tensors, self.state_dict(), self.config.res_blocks)
        load_exactly(self, tensors, source)


class WanEncoder(_Half):
    """Frames to latents; they go in and come out in float32, whatever the weights are in."""

    def __init__(self, config: WanCodecConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv3d(2 * config.z_dim, 2 * config.z_dim, 1)
        _name_convolutions(self)

    def _encode(self, frames: Tensor, past: History) -> tuple[Tensor, WanState]:
        p = self.config.patch
        x = frames.to(self.quant_conv.weight.dtype).unflatten(4, (-1, p)).unflatten(3, (-1, p))
        x, new = self.encoder(x.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3), past)
        z = self.quant_conv(x).chunk(2, dim=1)[0].float()
        means, stds = (_per_channel(v, z.device) for v in (self.config.means, self.config.stds))
        return (z - means) / stds, WanState(new)

    def encode(self, frames: Tensor, at_once: int = 1) -> Tensor:
        """A clip [B, 3, 1 + 4n, H, W] in -1..1 to latents (means) [B, C, 1 + n, H/16, W/16].

        `at_once` is how many latents one pass makes; it changes memory and speed, not the result.
        """
        latent, state = self.encode_start(frames[:, :, :1])
        latents, step = [latent], at_once * self.config.temporal_stride
        for first in range(1, frames.shape[2], step):
            latent, state = self.encode_more(frames[:, :, first : first + step], state)
            latents.append(latent)
        return torch.cat(latents, dim=2)

    def encode_start(self, frame: Tensor) -> tuple[Tensor, WanState]:
        """A clip's first frame [B, 3, 1, H, W] to its latent [B, C, 1, h, w] and the state to go on with."""
        stride = self.config.spatial_stride
        if frame.shape[2] != 1 or frame.shape[3] % stride or frame.shape[4] % stride:
            raise ValueError(f"wan codec: one frame, its sides multiples of {stride}, not {tuple(frame.shape)}")
        return self._encode(frame, {})

    def encode_more(self, frames: Tensor, state: WanState) -> tuple[Tensor, WanState]:
        """The next frames [B, 3, 4n, H, W] to latents [B, C, n, h, w] and the state to go on with."""
        stride = self.config.temporal_stride
        if not frames.shape[2] or frames.shape[2] % stride:
            raise ValueError(f"wan codec: later frames come in multiples of {stride}, not {frames.shape[2]}")
        return self._encode(frames, state.layers)

    def encode_picture(self, picture: Tensor) -> Tensor:
        """Reference picture [B, 3, H, W] in -1..1 to its latent [B, C, 1, h, w]."""
        return self.encode_start(picture[:, :, None])[0]


class WanDecoder(_Half):
    """Latents to frames; they go in and come out in float32, whatever the weights are in."""

    def __init__(self, config: WanCodecConfig) -> None:
        super().__init__(config)
        self.decoder = Decoder(config)
        self.post_quant_conv = nn.Conv3d(config.z_dim, config.z_dim, 1)
        _name_convolutions(self)

    def _decode(self, latents: Tensor, past: History) -> tuple[Tensor, WanState]:
        p = self.config.patch
        means, stds = (_per_channel(v, latents.device) for v in (self.config.means, self.config.stds))
        z = (latents.float() * stds + means).to(self.post_quant_conv.weight.dtype)
        x, new = self.decoder(self.post_quant_conv(z), past)
        frames = x.unflatten(1, (3, p, p)).permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)
        return frames.float().clamp(-1, 1), WanState(new)

    def decode_start(self, latent: Tensor) -> tuple[Tensor, WanState]:
        """A clip's first latent [B, C, 1, h, w] to its frame [B, 3, 1, H, W] and the state to decode from."""
        if latent.shape[2] != 1:
            raise ValueError(f"wan codec: a clip starts with one latent, got {latent.shape[2]}")
        return self._decode(latent, {})

    def decode(self, latents: Tensor, state: WanState) -> tuple[Tensor, WanState]:
        """Later latents [B, C, T, h, w] to frames [B, 3, 4 T, H, W] in -1..1 and the state to go on with."""
        return self._decode(latents, state.layers)

    def decode_clip(self, latents: Tensor, at_once: int = 1) -> Tensor:
        """A clip's latents [B, C, 1 + n, h, w] to frames [B, 3, 1 + 4n, H, W], `at_once` latents per pass."""
        part, state = self.decode_start(latents[:, :, :1])
        frames = [part]
        for first in range(1, latents.shape[2], at_once):
            part, state = self.decode(latents[:, :, first : first + at_once], state)
            frames.append(part)
        return torch.cat(frames, dim=2)


class WanCodec(WanDecoder, WanEncoder):
    """Both halves; see the module's docstring.

    Args:
        config: sizes.
    """

    def open(self, picture: Tensor) -> tuple[Tensor, WanState]:
        """Reference picture [B, 3, H, W] in -1..1 to its latent [B, C, 1, h, w] and the state to decode from."""
        latent = self.encode_picture(picture)
        return latent, self.decode_start(latent)[1]
