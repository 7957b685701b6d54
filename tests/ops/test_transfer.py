"""Frames as bytes, checked by hand and against PyAV's own conversion."""

from __future__ import annotations

import av
import numpy as np
import torch

from streamavatar.ops.transfer import download, i420_frames, rgb_frames, upload


def test_rgb_frames() -> None:
    pixels = torch.tensor([-2.0, -1.0, 0.0, 1.0]).reshape(1, 1, 1, 2, 2).expand(1, 3, 1, 2, 2)
    frames = rgb_frames(pixels)
    assert frames.dtype == torch.uint8
    assert frames.is_contiguous()
    assert frames[..., 1].flatten().tolist() == [0, 0, 128, 255]
    assert frames.shape == (1, 2, 2, 3)


def test_i420_is_what_the_encoder_would_make() -> None:
    ramp = np.linspace(0, 255, 64)
    down, across = np.meshgrid(ramp, ramp, indexing="ij")
    picture = np.stack([(down + across) / 2, (down - across) / 2 + 127.5, 255 - down], -1)
    picture = picture.round().astype(np.uint8)
    theirs = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p").to_ndarray()
    ours = i420_frames(torch.from_numpy(picture)[None])[0].numpy()
    assert ours.shape == theirs.shape == (96, 64)
    assert np.abs(ours.astype(int) - theirs).max() <= 2


def test_i420_of_colours_known_by_hand() -> None:
    colours = torch.tensor([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 0, 255]], dtype=torch.uint8)
    planes = i420_frames(colours[:, None, None].expand(4, 2, 2, 3))
    assert planes[:, 0, 0].tolist() == [16, 235, 81, 41]
    assert planes[:, 2].tolist() == [[128, 128], [128, 128], [90, 240], [240, 110]]


def test_there_and_back() -> None:
    x = torch.arange(6, dtype=torch.uint8).reshape(2, 3).t()
    there = upload(x, torch.device("cpu"), torch.float32)
    assert there.dtype == torch.float32
    assert np.array_equal(download(x), x.numpy())
