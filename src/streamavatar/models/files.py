"""Tensors between files and modules, one at a time: no second copy of a model in memory, either way."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from streamavatar.errors import UserError
from streamavatar.models.weights import Stored, place, together

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def check(
    source: Path | str,
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    hint: str = "give the weights of this model",
) -> None:
    """Same names and shapes, or a message that names every tensor that differs.

    Raises:
        UserError: tensors are missing, too many, or of another shape.
    """
    problems = [
        f"{title} {len(names)} tensor{'s' if len(names) > 1 else ''}: {', '.join(together(sorted(names)))}"
        for title, names in (
            ("is missing", expected.keys() - found.keys()),
            ("has unexpected", found.keys() - expected.keys()),
        )
        if names
    ]
    problems += together(
        f"{name} has shape {tuple(found[name])} but the configuration asks for {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    )
    if problems:
        raise UserError(f"{source}: {'; '.join(problems)}; {hint}")


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


@torch.no_grad()
def fill(
    module: nn.Module,
    stored: Stored,
    names: Iterable[str],
    device: torch.device | str = "cpu",
    dtype_of: Callable[[str], torch.dtype | None] = lambda name: None,
) -> None:
    """Read tensors of these names into a module; what is on the meta device is made on `device`, in `dtype_of`."""
    for name in names:
        place(module, name, stored.read(name), device, dtype_of(name))


def write_safetensors(
    path: Path,
    shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    read: Callable[[str], Tensor],
    metadata: Mapping[str, str] | None = None,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write a safetensors file tensor by tensor; it appears under its name when it is whole.

    Args:
        path: of the file.
        shapes: type and shape of every tensor.
        read: the tensor of a name, any type.
        metadata: words that go into the header.
        tell: told the bytes written and in all.

    Raises:
        UserError: a tensor is not of the announced shape, or the file cannot be written.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, (dtype, shape) in shapes.items():
        begin, end = end, end + dtype.itemsize * torch.Size(shape).numel()
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with open(temporary, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            done = 0
            for name, (dtype, shape) in shapes.items():
                value = read(name).detach().to("cpu", dtype).contiguous()
                if tuple(value.shape) != tuple(shape):
                    raise UserError(f"{path}: {name} has shape {tuple(value.shape)}, expected {tuple(shape)}")
                file.write(value.flatten().view(torch.uint8).numpy().data)
                done += value.nbytes
                tell(done, end)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot write ({error.strerror}); free space or choose another folder") from error
    finally:
        temporary.unlink(missing_ok=True)


def size_of(shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> int:
    """Bytes of the tensors."""
    return sum(dtype.itemsize * torch.Size(shape).numel() for dtype, shape in shapes.values())
