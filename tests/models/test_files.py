"""Tensors to files and back, one at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from streamavatar.errors import UserError
from streamavatar.models.files import check, fill, shapes_of, size_of, write_safetensors
from streamavatar.models.weights import open_weights

TENSORS = {
    "a": torch.randn(3, 5),
    "b.weight": torch.randn(2, 3, 4).transpose(0, 2),
    "empty": torch.zeros(0, 4),
    "one": torch.tensor(2.5),
}
SHAPES = {
    name: (dtype, tuple(TENSORS[name].shape))
    for name, dtype in zip(TENSORS, (torch.float32, torch.bfloat16, torch.float16, torch.float32), strict=True)
}


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    path, told = tmp_path / "x.safetensors", []
    write_safetensors(path, SHAPES, TENSORS.__getitem__, {"who": "me"}, lambda done, total: told.append((done, total)))
    loaded = load_file(path)
    assert list(tmp_path.iterdir()) == [path]
    for name, (dtype, _) in SHAPES.items():
        assert loaded[name].dtype == dtype
        assert torch.equal(loaded[name], TENSORS[name].to(dtype)), name
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"who": "me"}
    assert told[-1] == (size_of(SHAPES), size_of(SHAPES)) == (60 + 48 + 0 + 4,) * 2


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"before")
    with pytest.raises(UserError, match=r"a has shape \(3, 5\), expected \(3, 6\)"):
        write_safetensors(path, {"a": (torch.float32, (3, 6))}, TENSORS.__getitem__)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(UserError, match="cannot write"):
        write_safetensors(tmp_path / "no" / "x.safetensors", SHAPES, TENSORS.__getitem__)


def test_fill_makes_tensors_where_they_stay(tmp_path: Path) -> None:
    source = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False))
    state = source.state_dict()
    write_safetensors(
        tmp_path / "x.safetensors", {n: (torch.float32, tuple(v.shape)) for n, v in state.items()}, state.__getitem__
    )
    with torch.device("meta"):
        target = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False))
    with open_weights(tmp_path / "x.safetensors") as stored:
        fill(target, stored, state, "cpu", lambda name: torch.bfloat16 if name.startswith("0.") else None)
    for name, value in target.state_dict().items():
        assert value.dtype == (torch.bfloat16 if name.startswith("0.") else torch.float32)
        assert torch.equal(value, state[name].to(value.dtype))
    assert shapes_of(target) == shapes_of(source)


def test_check_names_every_difference() -> None:
    good = {"a": (1, 2), "b": (3,)}
    check("file", good, dict(good))
    for found, message in (
        ({"a": (1, 2)}, r"^file: is missing 1 tensor: b; give"),
        ({**good, "z": (1,), "c": (1,)}, "has unexpected 2 tensors: c, z"),
        ({**good, "a": (2, 1)}, r"a has shape \(2, 1\) but the configuration asks for \(1, 2\)"),
    ):
        with pytest.raises(UserError, match=message):
            check("file", good, found)
