"""Between host and GPU without stopping the host: through pinned memory, in the order of the current stream."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def upload(x: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """x on `device`. From ordinary memory the host would wait until the GPU has done all that was asked before."""
    x = x.to(dtype or x.dtype)  # first: a copy that also converts goes through ordinary memory
    if device.type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()  # PyTorch keeps it until the copy is done
    return x.to(device, non_blocking=True)


def download(x: Tensor) -> NDArray[np.uint8]:
    """uint8 values on the host; waits for the current stream of their GPU."""
    if x.device.type != "cuda":
        return np.ascontiguousarray(x.cpu().numpy())
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    host.copy_(x, non_blocking=True)
    torch.cuda.current_stream(x.device).synchronize()
    return host.numpy()


def rgb_frames(pixels: Tensor) -> Tensor:
    """[1, 3, F, H, W] in -1..1 to uint8 [F, H, W, 3], where the pixels are."""
    scaled = pixels[0].float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.permute(1, 2, 3, 0).contiguous()


def i420_frames(frames: Tensor) -> Tensor:
    """RGB to what video encoders take: BT.601, limited range, colour at half the resolution each way.

    Args:
        frames: uint8 [F, H, W, 3] with even H and W.

    Returns:
        uint8 [F, 3 H / 2, W]: rows of luma, then both colour planes, each row of these holding two of theirs.
    """
    red, green, blue = frames.float().div(255).unbind(-1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    colours = torch.stack(((blue - luma) / 1.772, (red - luma) / 1.402), dim=1)
    colours = torch.nn.functional.avg_pool2d(colours, 2) * 224 + 128
    planes = torch.cat(((luma * 219 + 16).flatten(1), colours.flatten(1)), dim=1)
    return planes.round().clamp(0, 255).to(torch.uint8).unflatten(1, (-1, frames.shape[2]))
