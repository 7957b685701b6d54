"""Training checkpoints: a folder per step, complete or not there at all.

A checkpoint is written under a temporary name, flushed, and renamed; so a folder named `step-*` is always whole, and a
kill or a full disk can only lose the one being written.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from streamavatar.errors import UserError

STATE = "state.pt"


def steps_in(folder: Path) -> list[int]:
    """Steps of the complete checkpoints in `folder`, ascending."""
    return sorted(int(p.name.removeprefix("step-")) for p in folder.glob("step-*") if not p.name.endswith(".tmp"))


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int = 2) -> Path:
    """Write `state` as checkpoint `step`, then delete all but the last `keep`.

    Raises:
        UserError: if the disk is full or the folder cannot be written; earlier checkpoints stay.
    """
    final = folder / f"step-{step:07d}"
    temporary = final.with_suffix(".tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        with open(temporary / STATE, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
    except (OSError, RuntimeError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(
            f"cannot write checkpoint {final}: {error}; free some space and run the same command again"
        ) from error
    for old in steps_in(folder)[:-keep]:
        shutil.rmtree(folder / f"step-{old:07d}", ignore_errors=True)
    return final


def load_latest(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """The newest readable checkpoint as (step, state); None if there is none.

    Raises:
        UserError: if there are some and none can be read.
    """
    for step in reversed(steps_in(folder)):
        try:
            state = torch.load(folder / f"step-{step:07d}" / STATE, map_location="cpu", weights_only=True)
        except Exception:  # any damage: fall back to the one before
            continue
        return step, state
    if steps_in(folder):
        raise UserError(f"{folder}: no checkpoint can be read; delete this folder to train the stage from its start")
    return None
