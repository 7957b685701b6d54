"""Production of shards: the same whoever makes them, whatever kills them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cv2", reason="needs the extra synth")

from streamavatar.data.produce import produce
from streamavatar.data.reader import ShardSet
from streamavatar.data.shards import ShardWriter, read_manifest
from streamavatar.errors import UserError
from streamavatar.synth.source import Puppets

SOURCE = Puppets(seed=1, size=32, frames=10, tones=True)
TWO_SHARDS = 2 * 8 * 10 / 25 / 3600  # hours


def silent(done: float, total: float) -> None:
    pass


def digests(folder: Path) -> dict[str, str]:
    return {name: line["sha256"] for name, line in read_manifest(folder).items()}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two shards by one worker."""
    folder = tmp_path_factory.mktemp("reference")
    produced = produce(SOURCE, folder, hours=TWO_SHARDS, workers=1, tell=silent)
    assert (produced.shards, produced.clips, produced.seconds, produced.made) == (2, 16, 6.4, 2)
    return digests(folder)


def test_workers_make_the_same_and_more_hours_only_add(tmp_path: Path, reference: dict[str, str]) -> None:
    told: list[tuple[float, float]] = []
    produce(SOURCE, tmp_path, hours=TWO_SHARDS, workers=2, tell=lambda *seconds: told.append(seconds))
    assert digests(tmp_path) == reference
    assert told[0] == (0, 6.4)
    assert told[-1] == pytest.approx((6.4, 6.4))
    assert sorted(told) == told
    before = (tmp_path / "synth-000000.tar").stat().st_mtime_ns
    produced = produce(SOURCE, tmp_path, hours=1.1 * TWO_SHARDS, workers=2, tell=silent)
    assert (produced.shards, produced.made) == (3, 1)
    assert (tmp_path / "synth-000000.tar").stat().st_mtime_ns == before
    assert produce(SOURCE, tmp_path, hours=TWO_SHARDS, workers=2, tell=silent).made == 0


def test_a_folder_belongs_to_one_source(tmp_path: Path) -> None:
    produce(SOURCE, tmp_path, hours=0.0001, workers=1, tell=silent)
    with pytest.raises(UserError, match=r"holds shards made with another size; give another --out"):
        produce(replace(SOURCE, size=64), tmp_path, hours=0.0001, workers=1, tell=silent)


@dataclass(frozen=True)
class Broken(Puppets):
    def describe(self) -> dict[str, Any]:
        raise UserError("assets are damaged")


def test_what_the_source_lacks_is_said_before_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="assets are damaged"):
        produce(Broken(seed=1), tmp_path / "out", hours=1, workers=1, tell=silent)
    assert not (tmp_path / "out").exists()


def killer(times: int) -> Callable[[float, float], None]:
    """Kills the worker that has just made a clip, so many times."""
    left = [times]

    def tell(done: float, total: float) -> None:
        if done > 0 and left[0]:
            left[0] -= 1
            for child in active_children():
                assert child.pid is not None
                os.kill(child.pid, signal.SIGKILL)

    return tell


def test_a_killed_worker_costs_nothing_but_time(tmp_path: Path, reference: dict[str, str]) -> None:
    produce(SOURCE, tmp_path, hours=TWO_SHARDS, workers=1, tell=killer(1))
    assert digests(tmp_path) == reference
    assert list(tmp_path.glob("*.partial")) == []


def test_a_unit_that_kills_its_workers_is_named(tmp_path: Path) -> None:
    slower = replace(SOURCE, frames=100)  # it must not be finished before the signal arrives
    with pytest.raises(UserError, match=r"makes synth-000000.tar died 2 times \(signal SIGKILL\).*fewer workers"):
        produce(slower, tmp_path, hours=0.0001, workers=1, tell=killer(2))
    assert not list(tmp_path.glob("synth-*"))
    assert not active_children()


def test_stopping_leaves_no_process_and_no_half_shard(tmp_path: Path) -> None:
    def stop(done: float, total: float) -> None:
        if done > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        produce(SOURCE, tmp_path, hours=TWO_SHARDS, workers=1, tell=stop)
    assert not active_children()
    assert not list(tmp_path.glob("*.partial"))


def test_work_of_another_process_is_waited_for(tmp_path: Path, reference: dict[str, str]) -> None:
    claimed = ShardWriter.claim(tmp_path / "synth-000000.tar")
    assert claimed is not None
    others = [claimed]

    def let_go(done: float, total: float) -> None:
        if done > 3.19 and others:  # the other shard is done
            others.pop().__exit__()

    produce(SOURCE, tmp_path, hours=TWO_SHARDS, workers=1, tell=let_go)
    assert digests(tmp_path) == reference


RUN = """
from pathlib import Path
from streamavatar.data.produce import produce
from streamavatar.synth.source import Puppets
if __name__ == "__main__":
    produce({source!r}, Path({folder!r}), hours={hours!r}, workers=2, tell=lambda done, total: None)
"""


@pytest.mark.slow
def test_kill_nine_at_any_time_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """The whole process group, again and again, at moments that differ."""
    hours = 3 * TWO_SHARDS
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    produce(SOURCE, whole, hours=hours, workers=2, tell=silent)
    script = tmp_path / "run.py"
    script.write_text(RUN.format(source=SOURCE, folder=str(killed), hours=hours))
    stopped = 0
    for attempt in range(12):
        process = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
        begin = time.monotonic()
        while process.poll() is None and not list(killed.glob("*.partial")):
            time.sleep(0.02)
        time.sleep(0.17 * attempt % 0.9)
        assert time.monotonic() - begin < 60
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        stopped += 1
    assert stopped >= 2
    produce(SOURCE, killed, hours=hours, workers=2, tell=silent)
    assert digests(killed) == digests(whole)
    assert sorted(p.name for p in killed.iterdir()) == sorted(p.name for p in whole.iterdir())
    assert len({entry.key for entry in ShardSet(killed).entries}) == len(ShardSet(killed)) == 48


@pytest.mark.slow
def test_a_disk_that_is_full_in_the_middle(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the kernel refuses the write itself."""
    folder = tmp_path / "out"
    script = tmp_path / "run.py"
    script.write_text(
        "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))\n"
        + RUN.format(source=SOURCE, folder=str(folder), hours=TWO_SHARDS)
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert "UserError: cannot write" in done.stderr
    assert "free some space" in done.stderr
    assert not list(folder.glob("synth-*"))
    assert produce(SOURCE, folder, hours=TWO_SHARDS, workers=2, tell=silent).made == 2
