"""A smaller decoder cut out of Wan's: the start of the pruned decoder, which distillation then repairs.

Channels are kept by what they do. While the decoder decodes some latents, the energy that every input channel of every
convolution sends on is measured (its mean square times the squares of the weights that read it), and a channel's worth
is the sum over its readers. Channels that residual sums and shortcuts tie together are kept or dropped together: those
of the stream after a level bring their sources before it, which come first there, where the smaller shortcut reads
(`UpBlock.reads`). Inside a residual block every block keeps its own.

A norm divides by the length of the whole vector, so its gains are corrected by the share of the power that is kept.
Where the dropped channels are silent, the pruned decoder therefore equals the full one exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from streamavatar.models.codec.wan import ChannelNorm, WanDecoder


@torch.no_grad()
def prune(full: WanDecoder, widths: tuple[int, ...], latents: Tensor) -> WanDecoder:
    """A decoder with fewer channels and the most useful of the weights.

    Args:
        full: Wan's decoder (or a codec).
        widths: `WanCodecConfig.decoder_widths`: channels of the middle and after each level, coarsest first.
        latents: of a clip or several, [B, C, T, h, w], to measure on; a few hundred positions are plenty.

    Raises:
        ValueError: widths that do not fit together or exceed the full decoder's.
    """
    if any(new > old for new, old in zip(widths, full.config.widths, strict=False)):
        raise ValueError(f"pruned widths {widths} exceed {full.config.widths}")
    small = WanDecoder(replace(full.config, decoder_widths=widths)).to(full.post_quant_conv.weight)
    with _measuring(full) as (reads, power, sent):
        full.decode_clip(latents)
    _Cut(full, small, reads, power, sent).run()
    return small


Figures = dict[str, Tensor]


@contextmanager
def _measuring(full: WanDecoder) -> Iterator[tuple[Figures, Figures, Figures]]:
    """Collects, while the decoder runs, by module name and per channel: energy that convolutions read, power that
    norms get, and power that convolutions make."""
    reads: Figures = {}
    power: Figures = {}
    sent: Figures = {}

    def note(into: Figures, name: str, x: Tensor, gain: Tensor | float = 1.0) -> None:
        into[name] = into.get(name, 0) + gain * x.double().square().mean((0, *range(2, x.ndim)))

    handles = []
    for name, module in full.named_modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            weight = module.weight.double()
            gain = weight.square().sum((0, *range(2, weight.ndim)))

            def before(_: nn.Module, args: Any, name: str = name, gain: Tensor = gain) -> None:
                note(reads, name, args[0], gain)

            def after(_: nn.Module, __: Any, out: Any, name: str = name) -> None:
                note(sent, name, out[0] if isinstance(out, tuple) else out)

            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
        elif isinstance(module, ChannelNorm):

            def inside(_: nn.Module, args: Any, name: str = name) -> None:
                note(power, name, args[0])

            handles.append(module.register_forward_pre_hook(inside))
    try:
        yield reads, power, sent
    finally:
        for handle in handles:
            handle.remove()


def _top(worth: Tensor, count: int) -> Tensor:
    return worth.topk(count).indices.sort().values


class _Cut:
    """Copies what is kept; `keep` holds the channels of the stream: in the middle and after each level."""

    def __init__(self, full: WanDecoder, small: WanDecoder, reads: Figures, power: Figures, sent: Figures) -> None:
        self.full, self.small, self.reads, self.power, self.sent = full, small, reads, power, sent
        self.levels = len(full.config.dim_mult)
        self.blocks = full.config.res_blocks + 1
        self.keep = self._choose()

    def run(self) -> None:
        keep, everything = self.keep, slice(None)
        self.small.post_quant_conv.load_state_dict(self.full.post_quant_conv.state_dict())
        self._conv("decoder.conv_in", keep[0], everything)
        for index in range(2):
            self._residual(f"decoder.mid_block.resnets.{index}", keep[0], keep[0])
        self._attention("decoder.mid_block.attentions.0", keep[0])
        for level in range(self.levels):
            before, after = keep[level], keep[level + 1]
            for index in range(self.blocks):
                self._residual(f"decoder.up_blocks.{level}.resnets.{index}", after if index else before, after)
            step = f"decoder.up_blocks.{level}.upsampler"
            if f"{step}.time_conv" in self.reads:
                count = self.full.config.widths[level + 1]
                self._conv(f"{step}.time_conv", torch.cat((after, count + after)), after)
            if f"{step}.resample.1" in self.reads:
                self._conv(f"{step}.resample.1", after, after)
        self._norm("decoder.norm_out", keep[-1])
        self._conv("decoder.conv_out", everything, keep[-1])

    # which -----------------------------------------------------------------------------------------

    def _choose(self) -> list[Tensor]:
        widths, ratios = self.small.config.widths, self.full.config.shortcut_ratios
        keep = [_top(self._worth(self.levels), widths[-1])]
        for level in reversed(range(self.levels)):
            worth = self._worth(level)
            if level == self.levels - 1:  # the last level has no shortcut
                keep.insert(0, _top(worth, widths[level]))
                continue
            ratio = ratios[level]
            sources = (ratio * keep[0][:, None] + torch.arange(ratio, device=worth.device)).flatten()
            worth[sources] = -1
            keep.insert(0, torch.cat((sources, _top(worth, widths[level] - len(sources)))))
        return keep

    def _worth(self, stage: int) -> Tensor:
        """Energy that all readers of a stage of the stream take from each channel."""
        readers = []
        if stage == 0:
            readers += [f"mid_block.resnets.{index}.conv1" for index in range(2)] + ["mid_block.attentions.0.to_qkv"]
        else:
            level = f"up_blocks.{stage - 1}"
            readers += [f"{level}.resnets.{index}.conv1" for index in range(1, self.blocks)]
            readers += [f"{level}.upsampler.time_conv", f"{level}.upsampler.resample.1"]
        readers += [f"up_blocks.{stage}.resnets.0.{name}" for name in ("conv1", "conv_shortcut")]
        readers += ["conv_out"] if stage == self.levels else []
        found = [self.reads[f"decoder.{name}"] for name in readers if f"decoder.{name}" in self.reads]
        return torch.stack(found).sum(0)

    # copying ---------------------------------------------------------------------------------------

    def _conv(self, name: str, outputs: Tensor | slice, inputs: Tensor | slice, scale: Tensor | None = None) -> None:
        theirs, ours = self.full.get_submodule(name), self.small.get_submodule(name)
        for leaf in ("weight", "bias"):
            value = getattr(theirs, leaf)[outputs]
            value = value[:, inputs] if leaf == "weight" else value
            if scale is not None:
                value = value * scale.view(-1, *(1 for _ in value.shape[1:]))
            getattr(ours, leaf).copy_(value)

    def _norm(self, name: str, kept: Tensor) -> None:
        power = self.power[name]
        share = power[kept].sum() / power.sum() * len(power) / len(kept)
        theirs, ours = self.full.get_submodule(name), self.small.get_submodule(name)
        assert isinstance(theirs, ChannelNorm)
        assert isinstance(ours, ChannelNorm)
        ours.gamma.copy_(theirs.gamma[kept] * share.sqrt())

    def _residual(self, name: str, before: Tensor, after: Tensor) -> None:
        hidden = _top(self.reads[f"{name}.conv2"], len(after))
        self._norm(f"{name}.norm1", before)
        self._conv(f"{name}.conv1", hidden, before)
        self._norm(f"{name}.norm2", hidden)
        self._conv(f"{name}.conv2", after, hidden)
        if f"{name}.conv_shortcut" in self.reads:
            self._conv(f"{name}.conv_shortcut", after, before)
        elif isinstance(ours := self.small.get_submodule(f"{name}.conv_shortcut"), nn.Conv3d):
            # Wan passes on the stream as it is; a narrower level passes on the channels that go on.
            ours.weight.copy_((after[:, None] == before)[:, :, None, None, None])
            assert ours.bias is not None
            ours.bias.zero_()

    def _attention(self, name: str, kept: Tensor) -> None:
        width = self.full.config.widths[0]
        q, k, _ = self.sent[f"{name}.to_qkv"].chunk(3)
        matched, values = _top(q * k, len(kept)), _top(self.reads[f"{name}.proj"], len(kept))
        rows = torch.cat((matched, width + matched, 2 * width + values))
        scale = torch.ones(len(rows), device=rows.device)
        scale[: len(kept)] = (len(kept) / width) ** 0.5  # attention divides by the root of the width
        self._norm(f"{name}.norm", kept)
        self._conv(f"{name}.to_qkv", rows, kept, scale)
        self._conv(f"{name}.proj", kept, values)
