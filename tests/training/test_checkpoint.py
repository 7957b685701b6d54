"""Checkpoints: whole or not there, whatever happens while one is written; and refused by name if damaged later."""

from __future__ import annotations

import json
import pickle
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from streamavatar.errors import UserError
from streamavatar.training.checkpoint import COMPLETE, OLD_STATE, Checkpoints, steps_in
from streamavatar.training.parallel import World


def state(value: int) -> dict[str, Tensor]:
    return {"weight": torch.full((1000,), float(value)), "step": torch.tensor(value)}


def save(folder: Path, step: int, value: int | None = None, **options: Any) -> Path:
    checkpoints = Checkpoints(folder, World(), **options)
    checkpoints.save(step, state(step if value is None else value))
    checkpoints.finish()
    return checkpoints.path(step)


def newest(folder: Path) -> tuple[int | None, dict[str, Tensor], list[str]]:
    """The step that is loaded, what is in it, and what was said about others."""
    found, refused = state(-1), []
    return Checkpoints(folder, World()).load(found, refused.append), found, refused


def loaded(folder: Path) -> int | None:
    step, found, _ = newest(folder)
    if step is not None:
        assert torch.equal(found["weight"], state(int(found["step"]))["weight"])
    return step


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_nothing_yet(tmp_path: Path) -> None:
    assert loaded(tmp_path) is None
    assert loaded(tmp_path / "not there") is None
    assert steps_in(tmp_path) == []


@pytest.mark.parametrize("background", [False, True])
def test_the_newest_is_read_and_the_last_are_kept(tmp_path: Path, background: bool) -> None:
    for step in (5, 10, 99, 100):
        assert save(tmp_path / "run", step, keep=2, background=background).is_dir()
    assert names(tmp_path / "run") == ["step-0000099", "step-0000100"]
    assert loaded(tmp_path / "run") == 100


def test_what_is_written_in_the_background_is_what_was_there(tmp_path: Path) -> None:
    checkpoints, values = Checkpoints(tmp_path, World(), background=True), state(5)
    checkpoints.save(5, values)
    for value in values.values():
        value.zero_()
    checkpoints.finish()
    assert loaded(tmp_path) == 5
    assert int(newest(tmp_path)[1]["step"]) == 5


def test_it_says_what_made_it(tmp_path: Path) -> None:
    path = save(tmp_path, 5, about=lambda: {"config": {"lr": 0.1}})
    record = json.loads((path / COMPLETE).read_text())
    assert record["step"] == 5
    assert record["config"] == {"lr": 0.1}
    assert record["files"].keys() == {p.name for p in path.iterdir()} - {COMPLETE}


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 5, 1)
    save(tmp_path, 5, 2)
    step, found, _ = newest(tmp_path)
    assert (step, int(found["step"])) == (5, 2)


def test_a_half_written_folder_is_ignored_and_cleared(tmp_path: Path) -> None:
    save(tmp_path, 5)
    half = tmp_path / "step-0000010.tmp"
    half.mkdir()
    (half / "__0_0.distcp").write_bytes(b"half")
    assert loaded(tmp_path) == 5
    assert steps_in(tmp_path) == [5]
    save(tmp_path, 10)
    assert names(tmp_path) == ["step-0000005", "step-0000010"]


def damage(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def flip(data: bytes) -> bytes:
    """One bit, in the middle of the weights."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DATA = "__0_0.distcp"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut short": (lambda path: damage(path / DATA, lambda data: data[:-50]), f"{DATA} has .* bytes instead of"),
    "empty": (lambda path: (path / DATA).write_bytes(b""), f"{DATA} has 0 bytes"),
    "a bit": (lambda path: damage(path / DATA, flip), f"{DATA} is damaged"),
    "missing": (lambda path: (path / DATA).unlink(), f"{DATA} is missing"),
    "no metadata": (lambda path: (path / ".metadata").unlink(), ".metadata is missing"),
    "not finished": (lambda path: (path / COMPLETE).unlink(), "it has no COMPLETE, so it was not written to its end"),
    "list cut": (lambda path: damage(path / COMPLETE, lambda data: data[:-9]), "its COMPLETE is damaged"),
    "nothing": (lambda path: shutil.rmtree(path) or path.mkdir(), "it has no COMPLETE"),
}


@pytest.mark.parametrize(("harm", "reason"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_one_is_refused_by_name(tmp_path: Path, harm: Callable[[Path], object], reason: str) -> None:
    paths = [save(tmp_path, step) for step in (5, 10)]
    harm(paths[1])
    step, found, refused = newest(tmp_path)
    assert (step, int(found["step"])) == (5, 5)
    assert len(refused) == 1
    assert refused[0].startswith("step-0000010 is refused: ")
    assert re.search(reason, refused[0]), refused
    harm(paths[0])
    with pytest.raises(UserError, match=r"no checkpoint can be read .*delete this folder"):
        loaded(tmp_path)


def test_another_network_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 5)
    with pytest.raises(UserError, match="no checkpoint can be read"):
        Checkpoints(tmp_path, World()).load({"weight": torch.zeros(7)}, lambda text: None)
    with pytest.raises(UserError, match="no checkpoint can be read"):
        Checkpoints(tmp_path, World()).load({"another": torch.zeros(1000)}, lambda text: None)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    save(tmp_path, 5)
    path = save(tmp_path, 10)
    (path / ".metadata").write_bytes(pickle.dumps(Trap()))
    record = json.loads((path / COMPLETE).read_text())
    record["files"] = {}  # a list that fits
    (path / COMPLETE).write_text(json.dumps(record))
    step, _, refused = newest(tmp_path)
    assert step == 5
    assert "does not belong into a checkpoint" in refused[0]
    assert not (tmp_path / "sprung").exists()


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file of this process can grow beyond `room` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("room", [0, 1000, 5900], ids=["at once", "in the weights", "later"])
def test_a_full_disk_loses_the_new_checkpoint_alone(tmp_path: Path, background: bool, room: int) -> None:
    for step in (5, 10):
        save(tmp_path, step)
    with full_disk(room), pytest.raises(UserError, match=r"cannot write checkpoint .*free some space"):
        save(tmp_path, 15, background=background)
    assert names(tmp_path) == ["step-0000005", "step-0000010"]
    for step in (10, 5):
        assert loaded(tmp_path) == step
        shutil.rmtree(tmp_path / f"step-{step:07d}")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match="cannot write checkpoint"):
        save(tmp_path / "run", 5)


def test_the_former_format_is_read(tmp_path: Path) -> None:
    """One file of one process: a module, an optimiser by position, an average, and a critic of the same form."""

    def player(value: float) -> dict[str, Any]:
        slots = {"step": torch.tensor(value), "exp_avg": torch.full((2,), value)}
        module = {"frozen": torch.zeros(1), "b": torch.full((2,), value), "a": torch.full((2,), value + 1)}
        later = {"step": torch.tensor(value), "exp_avg": torch.full((2,), value + 1)}
        return {
            "module": module,
            "optimizer": {"state": {0: slots, 1: later}, "param_groups": [{"lr": 0.1, "params": [0, 1]}]},
            "ema": {"b": torch.full((2,), value + 2), "a": torch.full((2,), value + 3)},
        }

    (tmp_path / "step-0000007").mkdir()
    torch.save({**player(1.0), "critic": player(10.0)}, tmp_path / "step-0000007" / OLD_STATE)
    parts = ("module.frozen", "module.a", "ema.b", "optimizer.a.exp_avg", "optimizer.b.exp_avg")
    sizes = (1, 2, 2, 2, 2)
    found = {
        f"{who}.{n}": torch.zeros(size) for who in ("main", "critic") for n, size in zip(parts, sizes, strict=True)
    }
    assert Checkpoints(tmp_path, World()).load(found, pytest.fail) == 7
    assert [float(value[-1]) for value in found.values()] == [0, 2, 3, 2, 1, 0, 11, 12, 11, 10]
    found["main.module.new"] = torch.zeros(1)
    with pytest.raises(UserError, match=r"state\.pt lacks main\.module\.new"):
        Checkpoints(tmp_path, World()).load(found, lambda text: None)
