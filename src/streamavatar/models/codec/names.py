"""Names of the Wan2.2 codec's weights: ours, which are diffusers', and those of Wan2.2_VAE.pth."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from streamavatar.models.files import check, shapes_of

_TO_WAN = (
    (r"^quant_conv", "conv1"),
    (r"^post_quant_conv", "conv2"),
    (r"mid_block\.attentions\.0", "middle.1"),
    (r"mid_block\.resnets\.0", "middle.0"),
    (r"mid_block\.resnets\.1", "middle.2"),
    (r"(down|up)_blocks\.(\d+)\.resnets\.(\d+)", r"\1samples.\2.\1samples.\3"),
    (r"(down|up)_blocks\.(\d+)\.\1sampler", r"\1samples.\2.\1samples.#"),  # numbered after the residual blocks
    (r"norm1", "residual.0"),
    (r"(?<=\d\.)conv1", "residual.2"),
    (r"norm2", "residual.3"),
    (r"(?<=\d\.)conv2", "residual.6"),
    (r"conv_shortcut", "shortcut"),
    (r"conv_in", "conv1"),
    (r"norm_out", "head.0"),
    (r"conv_out", "head.2"),
)
"""Our names, which are diffusers', to those of Wan2.2_VAE.pth: patterns and replacements, applied in this order."""


def wan_name(name: str, res_blocks: int) -> str:
    """The name in Wan2.2_VAE.pth of our parameter `name`."""
    blocks = str(res_blocks + name.startswith("decoder."))
    for pattern, replacement in _TO_WAN:
        name = re.sub(pattern, replacement.replace("#", blocks), name)
    return name


def to_wan(tensors: Mapping[str, Tensor], res_blocks: int) -> dict[str, Tensor]:
    """A state dict under our names, which are diffusers', to the names of Wan2.2_VAE.pth."""
    return {wan_name(name, res_blocks): value for name, value in tensors.items()}


def is_wan(names: Iterable[str]) -> bool:
    """Whether a file has the names of Wan2.2_VAE.pth, not ours."""
    return any(name.startswith(("encoder.downsamples.", "decoder.upsamples.")) for name in names)


def from_wan(tensors: Mapping[str, Tensor], ours: Iterable[str], res_blocks: int) -> dict[str, Tensor]:
    """The inverse of `to_wan` for our names `ours`; names that are not Wan's stay as they are."""
    back = {wan_name(name, res_blocks): name for name in ours}
    return {back.get(name, name): value for name, value in tensors.items()}


def load_exactly(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy tensors into a module that must have the same names and shapes.

    Raises:
        UserError: every difference, by name and shapes.
    """
    check(source, shapes_of(module), {name: tuple(value.shape) for name, value in tensors.items()})
    module.load_state_dict(dict(tensors))
