"""Checkpoints: whole or not there, whatever happens while one is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from streamavatar.errors import UserError
from streamavatar.training.checkpoint import STATE, load_latest, save_checkpoint, steps_in


def state(value: int) -> dict[str, Any]:
    return {"weight": torch.full((100,), float(value)), "step": value}


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_nothing_yet(tmp_path: Path) -> None:
    assert load_latest(tmp_path) is None
    assert load_latest(tmp_path / "not there") is None
    assert steps_in(tmp_path) == []


def test_the_newest_is_read_and_the_last_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 99, 100):
        path = save_checkpoint(tmp_path / "run", step, state(step), keep=2)
        assert path.is_dir()
    assert names(tmp_path / "run") == ["step-0000099", "step-0000100"]
    found = load_latest(tmp_path / "run")
    assert found is not None
    assert found[0] == found[1]["step"] == 100
    assert torch.equal(found[1]["weight"], state(100)["weight"])


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, state(1))
    save_checkpoint(tmp_path, 5, state(2))
    found = load_latest(tmp_path)
    assert found is not None
    assert (found[0], found[1]["step"]) == (5, 2)


def test_a_half_written_folder_is_ignored_and_cleared(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, state(5))
    half = tmp_path / "step-0000010.tmp"
    half.mkdir()
    (half / STATE).write_bytes(b"half")
    found = load_latest(tmp_path)
    assert found is not None
    assert found[0] == 5
    assert steps_in(tmp_path) == [5]
    save_checkpoint(tmp_path, 10, state(10))
    assert names(tmp_path) == ["step-0000005", "step-0000010"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut short": cut,
    "empty": lambda path: path.write_bytes(b""),
    "something else": lambda path: path.write_bytes(b"hello" * 1000),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_newest_falls_back_to_the_one_before(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    for step in (5, 10):
        save_checkpoint(tmp_path, step, state(step))
    damage(tmp_path / "step-0000010" / STATE)
    found = load_latest(tmp_path)
    assert found is not None
    assert found[0] == found[1]["step"] == 5


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    save_checkpoint(tmp_path, 5, state(5))
    save_checkpoint(tmp_path, 10, {"trap": Trap()})
    found = load_latest(tmp_path)
    assert found is not None
    assert found[0] == 5
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed")])
def test_a_full_disk_loses_the_new_checkpoint_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    for step in (5, 10):
        save_checkpoint(tmp_path, step, state(step))

    def full(state: object, file: Any) -> None:
        file.write(b"the first megabyte")
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full)
        with pytest.raises(UserError, match=r"cannot write checkpoint .*step-0000015.*free some space"):
            save_checkpoint(tmp_path, 15, state(15))
    assert names(tmp_path) == ["step-0000005", "step-0000010"]
    for step in (10, 5):
        found = load_latest(tmp_path)
        assert found is not None
        assert found[0] == found[1]["step"] == step
        shutil.rmtree(tmp_path / f"step-{step:07d}")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match="cannot write checkpoint"):
        save_checkpoint(tmp_path / "run", 5, state(5))
