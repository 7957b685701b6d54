"""Training checkpoints: a folder per step, complete or not there at all.

PyTorch's distributed checkpoints: every rank writes what it holds, and any number of ranks can read it. A checkpoint is
written under a temporary name, a list of its files (`COMPLETE`) is written last, and it is renamed; so a folder named
`step-*` is whole, and a kill or a full disk can only lose the one being written. One that was damaged later is told by
that list, and the one before it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import StorageMeta
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import async_save as dcp_async_save
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save
from torch.distributed.tensor import DTensor

from streamavatar.errors import UserError
from streamavatar.training.parallel import World

COMPLETE, OLD_STATE = "COMPLETE", "state.pt"
HASHED = 2 * 1024**3
"""Bytes of a checkpoint up to which its files are hashed; reading back more than that would cost minutes."""


def steps_in(folder: Path) -> list[int]:
    """Steps of the checkpoints in `folder`, ascending."""
    return sorted(int(p.name.removeprefix("step-")) for p in folder.glob("step-*") if not p.name.endswith(".tmp"))


class Checkpoints:
    """The checkpoints of one stage.

    Args:
        folder: that holds them.
        world: who writes; all ranks see the same folder.
        keep: how many are kept.
        background: return from `save` once the tensors are copied, and write while training goes on.
        about: what else is written into each: settings and the like, for JSON.
    """

    def __init__(
        self,
        folder: Path,
        world: World,
        keep: int = 2,
        *,
        background: bool = False,
        about: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self.folder, self.world, self.keep, self.background, self.about = folder, world, keep, background, about
        # The training step must not meet a checkpoint's messages.
        self._group = dist.new_group(backend="gloo") if background and world.size > 1 else None
        self._writing: tuple[int, Future[None]] | None = None

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:07d}"

    def save(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Write a checkpoint, then delete all but the last `keep`.

        Raises:
            UserError: if the disk is full or the folder cannot be written; earlier checkpoints stay. With `background`
                it may be raised by the next `save` or by `finish`.
        """
        self.finish()
        self.world.once(lambda: self._guarded(step, lambda: self._open(step)))
        temporary = str(self._temporary(step))
        if self.background:
            writing = _quiet(
                dcp_async_save,
                {name: value.clone() if value.device.type == "cpu" else value for name, value in tensors.items()},
                checkpoint_id=temporary,
                process_group=self._group,
            )
            self._writing = step, _then(writing, lambda: self._close(step))
            return
        self._guarded(step, lambda: _quiet(dcp_save, dict(tensors), checkpoint_id=temporary))
        self.world.once(lambda: self._guarded(step, lambda: self._close(step)))

    def finish(self) -> None:
        """Wait for what is written in the background."""
        if self._writing is not None:
            (step, writing), self._writing = self._writing, None
            self._guarded(step, writing.result)

    def load(self, tensors: dict[str, Tensor], refused: Callable[[str], None]) -> int | None:
        """Fill `tensors` from the newest checkpoint that can be read; returns its step, None if there is none.

        Args:
            tensors: by name, as they were saved; each rank has its part.
            refused: told about every checkpoint that is passed over: its name, and why.

        Raises:
            UserError: if there are some and none can be read.
        """
        steps = self.world.once(lambda: steps_in(self.folder))
        for step in reversed(steps):
            fault = self.world.once(partial(self._fault, step)) or self._fill(step, tensors)
            if fault is None:
                return step
            refused(f"{self.path(step).name} is refused: {fault}")
        if steps:
            raise UserError(
                f"{self.folder}: no checkpoint can be read ({self.path(steps[0]).name}: {fault}); "
                "delete this folder to train the stage from its start"
            )
        return None

    # writing ---------------------------------------------------------------------------------------

    def _temporary(self, step: int) -> Path:
        return self.path(step).with_suffix(".tmp")

    def _open(self, step: int) -> None:
        shutil.rmtree(self._temporary(step), ignore_errors=True)
        self._temporary(step).mkdir(parents=True)

    def _close(self, step: int) -> None:
        """On the first rank: list the files, give the folder its name, delete old checkpoints."""
        if not self.world.first:
            return
        temporary = self._temporary(step)
        record = {"step": step, "ranks": self.world.size, "torch": torch.__version__, **self.about()}
        with open(temporary / COMPLETE, "w", encoding="utf-8") as file:
            json.dump({**record, "files": _files(temporary)}, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        shutil.rmtree(self.path(step), ignore_errors=True)
        os.replace(temporary, self.path(step))
        for old in steps_in(self.folder)[: -self.keep]:
            shutil.rmtree(self.path(old), ignore_errors=True)

    def _guarded(self, step: int, work: Callable[[], Any]) -> None:
        """Do some writing; what fails is one line, and leaves nothing half-written."""
        try:
            work()
        except (OSError, RuntimeError, CheckpointException) as error:
            if self.world.first:
                shutil.rmtree(self._temporary(step), ignore_errors=True)
            raise UserError(
                f"cannot write checkpoint {self.path(step)}: {_reason(error)}; "
                "free some space and run the same command again"
            ) from error

    # reading ---------------------------------------------------------------------------------------

    def _fault(self, step: int) -> str | None:
        """What is wrong with a checkpoint's files, if anything."""
        folder = self.path(step)
        if (folder / OLD_STATE).exists():
            return None
        try:
            listed = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))["files"]
        except OSError:
            return f"it has no {COMPLETE}, so it was not written to its end"
        except (ValueError, KeyError, TypeError):
            return f"its {COMPLETE} is damaged"
        found = _files(folder, hashed=any("blake2b" in of for of in listed.values()))
        for name, of in listed.items():
            if name not in found:
                return f"{name} is missing"
            if found[name]["bytes"] != of["bytes"]:
                return f"{name} has {found[name]['bytes']} bytes instead of {of['bytes']}"
            if found[name] != of:
                return f"{name} is damaged"
        return None

    def _fill(self, step: int, tensors: dict[str, Tensor]) -> str | None:
        folder = self.path(step)
        try:
            if (folder / OLD_STATE).exists():
                _fill_old(folder / OLD_STATE, tensors)
            else:
                _quiet(dcp_load, tensors, storage_reader=_Reader(str(folder)))
        except (Exception, CheckpointException) as error:  # any damage: fall back to the one before
            return _reason(error)
        return None


class _Reader(FileSystemReader):
    """Reads a checkpoint without running what may be pickled in it; its tensors are read as weights only anyway."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
        with open(Path(self.path) / ".metadata", "rb") as file:
            metadata = _Unpickler(file).load()
        metadata.storage_meta = StorageMeta()
        return metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = None if "." in name else super().find_class(module, name)
        known = module.startswith("torch.distributed.checkpoint.") and isinstance(found, type)
        if known or isinstance(found, torch.dtype | torch.layout) or (module, name) in _PLAIN:
            return found
        raise pickle.UnpicklingError(f"{module}.{name} does not belong into a checkpoint")


_PLAIN = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
}


def _files(folder: Path, hashed: bool = True) -> dict[str, dict[str, Any]]:
    """Size and, unless there is much of it, digest of a checkpoint's files."""
    paths = [p for p in sorted(folder.iterdir()) if p.name != COMPLETE]
    hashed = hashed and sum(p.stat().st_size for p in paths) <= HASHED
    files: dict[str, dict[str, Any]] = {}
    for path in paths:
        files[path.name] = {"bytes": path.stat().st_size}
        if hashed:
            files[path.name]["blake2b"] = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    return files


def _fill_old(path: Path, tensors: dict[str, Tensor]) -> None:
    """Read the former format, one file of one process: modules, and optimisers by position."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    found: dict[str, Tensor] = {}
    for player, values in (("main", state), ("critic", state.get("critic", {}))):
        names = list(values.get("ema", {}))  # in the order of the parameters
        for part in ("module", "ema"):
            found |= {f"{player}.{part}.{name}": value for name, value in values.get(part, {}).items()}
        for index, slots in values.get("optimizer", {}).get("state", {}).items():
            found |= {f"{player}.optimizer.{names[index]}.{slot}": value for slot, value in slots.items()}
    if missing := tensors.keys() - found.keys():
        raise ValueError(f"{path.name} lacks {min(missing)}")
    for name, tensor in tensors.items():
        if tensor.shape != found[name].shape or isinstance(tensor, DTensor):
            raise ValueError(f"{path.name}: {name} does not fit; old checkpoints go on with the same model on one rank")
        tensor.copy_(found[name])


def _quiet(work: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Without the warning that one process is one process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        return work(*args, **options)


def _then(writing: Future[Any], work: Callable[[], None]) -> Future[None]:
    """A future that ends when `writing` has ended and `work` is done."""
    finished: Future[None] = Future()

    def go_on(written: Future[Any]) -> None:
        try:
            written.result()
            work()
        except BaseException as error:
            finished.set_exception(error)
        else:
            finished.set_result(None)

    writing.add_done_callback(go_on)
    return finished


def _reason(error: BaseException) -> str:
    """One line."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    return (str(error) or type(error).__name__).splitlines()[0]
