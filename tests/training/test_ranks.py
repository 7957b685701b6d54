"""Two ranks, as processes that talk over gloo, do what one process does."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from streamavatar.training.checkpoint import COMPLETE
from streamavatar.training.lora import merge
from streamavatar.training.trainer import Trainer

SCRIPT = Path(__file__).parent / "ranks.py"


@pytest.fixture(scope="module")
def ranks() -> ModuleType:
    spec = spec_from_file_location("ranks", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["ranks"] = module
    spec.loader.exec_module(module)
    return module


def start(folder: Path, *jobs: str) -> list[int]:
    """Two ranks do some jobs; returns their exit statuses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    outputs = [open(folder / f"rank-{rank}.out", "w") for rank in range(2)]  # noqa: SIM115
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), "2", port, str(folder), *jobs], stdout=out, stderr=out
        )
        for rank, out in enumerate(outputs)
    ]
    try:
        return [process.wait(timeout=500) for process in processes]
    finally:
        for process, out in zip(processes, outputs, strict=True):
            process.kill()
            process.wait()
            out.close()


def output(folder: Path) -> str:
    return "".join((folder / f"rank-{rank}.out").read_text()[-3000:] for rank in range(2))


@pytest.fixture(scope="module")
def trained(ranks: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process and what two make of the same steps, in `one/`, `two/` and more."""
    folder = tmp_path_factory.mktemp("ranks")
    for name in ranks.QUICK:
        ranks.train(name, folder / "one", steps=ranks.STEPS.get(name, 2))
    ranks.train("teacher", folder / "one then two")
    assert start(folder, "parity", "unlucky") == [0, 0], output(folder)
    return folder


@pytest.fixture(scope="module")
def more(ranks: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of other methods and settings."""
    folder = tmp_path_factory.mktemp("more")
    for name in (*ranks.SLOW, "sid", "adversarial", "teacher"):
        ranks.train(name, folder / "one")
    assert start(folder, "more") == [0, 0], output(folder)
    return folder


def at(ranks: ModuleType, folder: Path, name: str, step: int) -> dict[str, Tensor]:
    """All tensors of a checkpoint, read by one process."""
    reader: Trainer = ranks.trainer(name, folder)
    for path in (folder / name).glob("step-*"):
        if path != reader.checkpoints.path(step):
            path.rename(path.with_name(f"other-{path.name}"))
    tensors = reader._tensors()
    try:
        assert reader.checkpoints.load(tensors, pytest.fail) == step
    finally:
        for path in (folder / name).glob("other-*"):
            path.rename(path.with_name(path.name.removeprefix("other-")))
    return tensors


def assert_same(one: dict[str, Tensor], two: dict[str, Tensor], bound: float = 1e-5) -> None:
    """Equal gradients, as the first moments show them, to `bound` of each player's largest; and equal weights.

    Adam makes a whole step of a gradient that is zero but for rounding (of a bias in a difference of logits, say), so
    weights are compared where their gradient is not small.
    """
    assert one.keys() == two.keys()
    for player in {name.split(".")[0] for name in one}:
        moments = [n for n in one if n.startswith(f"{player}.optimizer.") and n.endswith(".exp_avg")]
        scale = max(float(one[name].abs().max()) for name in moments)
        assert scale > 0
        for moment in moments:
            assert float((one[moment] - two[moment]).abs().max()) <= bound * scale, moment
            clear = one[moment].abs() > 1e-3 * scale
            for kind in ("module", "ema"):
                name = moment.replace("optimizer", kind).removesuffix(".exp_avg")
                change = (one[name] - two[name])[clear].abs()
                assert change.numel() == 0 or float(change.max()) <= bound, name


@pytest.mark.parametrize("name", ["line", "teacher", "sid", "adversarial"])
def test_two_ranks_make_the_step_of_one(ranks: ModuleType, trained: Path, name: str) -> None:
    assert_same_steps(ranks, trained, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ode", "replay", "lora"])
def test_two_ranks_make_the_step_of_one_in_other_methods(ranks: ModuleType, more: Path, name: str) -> None:
    assert_same_steps(ranks, more, name)


def assert_same_steps(ranks: ModuleType, trained: Path, name: str) -> None:
    """Gradients, as the first moments show them, of student and critic; and the losses of every step."""
    assert_same(*(at(ranks, trained / folder, name, 2) for folder in ("one", "two")))
    logs = [
        [json.loads(line) for line in (trained / folder / name / "log.jsonl").read_text().splitlines()]
        for folder in ("one", "two")
    ]
    assert [line["step"] for line in logs[1]][:2] == [1, 2]
    for a, b in zip(*logs, strict=True):
        assert a.keys() == b.keys()
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4, abs=1e-5)
        assert b["grad"] == pytest.approx(a["grad"], rel=1e-4)


def test_one_process_goes_on_from_two_and_two_from_one(ranks: ModuleType, trained: Path) -> None:
    whole = at(ranks, trained / "one", "teacher", 4)
    assert_same(whole, at(ranks, trained / "one then two", "teacher", 4), 1e-4)
    steps = sorted((trained / "two" / "teacher").glob("step-*"))
    there = trained / "two then one" / "teacher"
    there.mkdir(parents=True)
    steps[0].rename(there / steps[0].name)
    try:
        resumed = ranks.train("teacher", trained / "two then one", steps=4)
    finally:
        (there / steps[0].name).rename(steps[0])
    found = resumed._tensors()
    shown = {name: whole[name] for name in found if ".module." in name}  # the module has its average by now
    assert_same(whole, {**found, **shown}, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sid", "adversarial"])
def test_less_memory_is_the_same_step(ranks: ModuleType, more: Path, name: str) -> None:
    """Activation checkpointing, micro-batches and a checkpoint in the background, on two ranks."""
    assert_same(*(at(ranks, more / folder, name, 2) for folder in ("one", "recomputed")))


@pytest.mark.slow
def test_adapters_of_two_ranks_merge(ranks: ModuleType, more: Path) -> None:
    found, plain = torch.load(more / "merged.pt"), ranks.model(0).state_dict()
    expected = merge(ranks.trainer("lora", more / "one").run()).state_dict()
    assert found.keys() == expected.keys() == plain.keys()
    for name, value in expected.items():
        assert float((found[name] - value).abs().mean()) < 1e-6, name
    name = "transformer.blocks.0.ffn.0.weight"
    assert float((found[name] - plain[name]).abs().mean()) > 1e-3


@pytest.mark.slow
def test_rows_of_ranks_that_hold_the_same(ranks: ModuleType, more: Path) -> None:
    assert_same(*(at(ranks, more / folder, "teacher", 2) for folder in ("one", "rows")))


@pytest.mark.slow
def test_half_precision_keeps_full_weights(more: Path) -> None:
    found = torch.load(more / "half.pt")
    assert all(value.dtype == torch.float32 for name, value in found.items() if name.startswith("transformer."))
    assert all(bool(value.isfinite().all()) for value in found.values())


def test_a_checkpoint_says_what_made_it(trained: Path) -> None:
    record = json.loads((trained / "two" / "sid" / "step-0000002" / COMPLETE).read_text())
    assert record["ranks"] == 2
    assert record["config"]["batch"] == 4
    assert {"commit", "torch", "step"} <= record.keys()
    assert all("blake2b" in file for file in record["files"].values())


def test_a_number_that_is_not_finite_on_one_rank_stops_both(trained: Path) -> None:
    for rank in range(2):
        said = (trained / f"said-{rank}").read_text()
        assert said.startswith("UserError: line: the loss is not finite at step 3 (seed 0; its batch is drawn from ")
    assert sorted(p.name for p in (trained / "unlucky" / "line").glob("step-*")) == ["step-0000002"]


@pytest.mark.slow
def test_a_kill_of_everything_and_a_resume(ranks: ModuleType, tmp_path: Path) -> None:
    """Bit-equal to the run that was not interrupted."""
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    for folder in (cut, whole):
        folder.mkdir()
    for rank in range(2):
        (whole / f"died-{rank}").touch()
    assert start(cut, "killed") == [-signal.SIGKILL, -signal.SIGKILL]
    assert start(cut, "killed") == [0, 0], output(cut)
    assert start(whole, "killed") == [0, 0], output(whole)
    a, b = (at(ranks, folder, "sid", 8) for folder in (cut, whole))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_a_kill_of_one_rank_under_torchrun(ranks: ModuleType, tmp_path: Path) -> None:
    """The launcher starts all ranks again, and they end where the uninterrupted run does."""
    found = []
    for name in ("cut", "whole"):
        folder = tmp_path / name
        folder.mkdir()
        if name == "whole":
            (folder / "died").touch()
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        command += ["--max-restarts=1", str(SCRIPT), "torchrun", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, env=dict(os.environ))
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(at(ranks, folder, "sid", 8))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
