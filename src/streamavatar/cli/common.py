"""What the commands share: options, the console, JSON reports."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from streamavatar.errors import UserError

if TYPE_CHECKING:
    import torch

ModelOption = Annotated[Path | None, typer.Option("--model", help="Model folder; the bundled default if left out.")]
PrecisionOption = Annotated[
    Literal["auto", "float32", "bfloat16"], typer.Option(help="auto takes bfloat16 where the processor multiplies it.")
]
DeviceOption = Annotated[str, typer.Option(help="Torch device, for example cpu or cuda.")]
DecoderOption = Annotated[
    Literal["full", "light", "pruned"],
    typer.Option(help="Who turns latents into pictures; light and pruned need a file in the model's folder."),
]
DecoderDeviceOption = Annotated[str | None, typer.Option(help="Another GPU for the decoder, for example cuda:1.")]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="CPU threads of each of the two workers; half of the cores if left out.")
]


def torch_device(name: str) -> torch.device:
    """The device of that name, if it is there.

    Raises:
        UserError: it is not.
    """
    import torch

    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"cannot use device {name!r} ({str(error).splitlines()[0]}); try --device cpu") from error


@lru_cache(maxsize=1)
def console() -> Console:
    """Made when it is needed: it reads the environment."""
    return Console(stderr=True)


def write_json(path: Path, values: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another place for --json") from error


def check_writable(path: Path | None) -> None:
    """Refuse a report that could not be written, before the work and not after it."""
    if path is not None and (path.is_dir() or not os.access(path.parent, os.W_OK)):
        raise UserError(f"cannot write {path}: choose a file in a folder that exists for --json")
