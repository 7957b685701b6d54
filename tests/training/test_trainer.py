"""The loop: a resumed run is the uninterrupted one, and a bad step costs no checkpoint."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamavatar.errors import UserError
from streamavatar.training.checkpoint import load_latest, steps_in
from streamavatar.training.trainer import Method, TrainConfig, Trainer

CONFIG = TrainConfig(steps=20, batch=4, lr=0.05, warmup=3, bf16=False, save_every=5, log_every=4)


class Line(Method):
    """Fits a line to noisy points; `disturb` may interfere with a step."""

    def __init__(self, disturb: Callable[[int, Tensor], Tensor] = lambda step, loss: loss) -> None:
        torch.manual_seed(0)
        self.module: nn.Module = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        self.module[0].bias.requires_grad_(False)
        self.disturb = disturb
        self.steps: list[int] = []

    def loss(self, step: int, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        self.steps.append(step)
        x = torch.randn(batch, 3, generator=generator)
        error = self.module(x) - x.sum(1, keepdim=True) - torch.randn(batch, 1, generator=generator)
        return {"loss": self.disturb(step, error.square().mean()), "largest": error.abs().max()}


def quiet(stage: str, done: int, total: int, text: str) -> None:
    pass


def train(folder: Path, method: Line, config: TrainConfig = CONFIG) -> Trainer:
    trainer = Trainer(method, config, folder, quiet)
    trainer.run()
    return trainer


def flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in flat(item)]
    return [leaf for item in value for leaf in flat(item)] if isinstance(value, list | tuple) else [value]


def same(a: Any, b: Any) -> bool:
    """Bit for bit, through dictionaries and lists."""
    pairs = list(zip(flat(a), flat(b), strict=True))
    return all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in pairs)


def newest(folder: Path) -> tuple[int, dict[str, Any]]:
    found = load_latest(folder)
    assert found is not None
    return found


class Stop(Exception):
    """Stands for a kill."""


def stop_at(step: int) -> Callable[[int, Tensor], Tensor]:
    def disturb(now: int, loss: Tensor) -> Tensor:
        if now == step:
            raise Stop
        return loss

    return disturb


# resume --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("stops", [[12], [3], [7, 8, 19], [10]])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, stops: list[int], bf16: bool) -> None:
    config = replace(CONFIG, bf16=bf16)
    whole = train(tmp_path / "a" / "line", Line(), config)
    for step in stops:
        with pytest.raises(Stop):
            train(tmp_path / "b" / "line", Line(stop_at(step)), config)
    resumed = train(tmp_path / "b" / "line", Line(), config)
    assert resumed.method.steps[0] == stops[-1] // 5 * 5  # type: ignore[attr-defined]
    assert same(whole.method.module.state_dict(), resumed.method.module.state_dict())
    assert newest(tmp_path / "a" / "line")[0] == 20
    assert same(newest(tmp_path / "a" / "line")[1], newest(tmp_path / "b" / "line")[1])


KILLED = """
import os, signal, sys, torch
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

torch.set_num_threads(1)
spec = spec_from_file_location("test_trainer", sys.argv[1])
tests = module_from_spec(spec)
sys.modules["test_trainer"] = tests
spec.loader.exec_module(tests)
saves, save = [], torch.save

def die_in_the_third(state, file):
    saves.append(1)
    if len(saves) < 3:
        return save(state, file)
    file.write(b"half a checkpoint")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

torch.save = die_in_the_third
tests.train(Path(sys.argv[2]), tests.Line())
"""


def test_a_kill_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "killed" / "line"
    command = [sys.executable, "-c", KILLED, __file__, str(folder)]
    assert subprocess.run(command, timeout=120, check=False).returncode == -signal.SIGKILL
    assert sorted(p.name for p in folder.glob("step-*")) == ["step-0000005", "step-0000010", "step-0000015.tmp"]
    resumed = train(folder, Line())
    whole = train(tmp_path / "whole" / "line", Line())
    assert resumed.method.steps[0] == 10  # type: ignore[attr-defined]
    assert same(whole.method.module.state_dict(), resumed.method.module.state_dict())
    assert steps_in(folder) == [15, 20]
    assert not list(folder.glob("*.tmp"))


def test_a_finished_run_only_loads_its_average(tmp_path: Path) -> None:
    first = train(tmp_path, Line())
    again = train(tmp_path, Line())
    assert again.method.steps == []  # type: ignore[attr-defined]
    assert same(first.method.module.state_dict(), again.method.module.state_dict())


def test_longer_training_goes_on_from_the_end(tmp_path: Path) -> None:
    train(tmp_path, Line())
    longer = train(tmp_path, Line(), replace(CONFIG, steps=24))
    assert longer.method.steps == [20, 21, 22, 23]  # type: ignore[attr-defined]


# bad steps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite(tmp_path: Path, value: float) -> None:
    def disturb(step: int, loss: Tensor) -> Tensor:
        return loss * value if step == 12 else loss

    with pytest.raises(UserError, match=r"the loss is not finite at step 12 \(seed 0\).*checkpoint is intact"):
        train(tmp_path, Line(disturb))
    step, state = newest(tmp_path)
    assert step == 10
    assert all(bool(t.isfinite().all()) for t in flat(state) if isinstance(t, Tensor))


def test_a_gradient_that_is_not_finite(tmp_path: Path) -> None:
    """Step 14 is followed by a checkpoint: its weights must not have been spoilt by then."""

    def disturb(step: int, loss: Tensor) -> Tensor:
        return loss + (loss * 0).sqrt() if step == 14 else loss  # 0 * inf on the way back

    with pytest.raises(UserError, match="the gradient is not finite at step 14"):
        train(tmp_path, Line(disturb))
    step, state = newest(tmp_path)
    assert step == 10
    assert all(bool(t.isfinite().all()) for t in flat(state) if isinstance(t, Tensor))


# optimiser, average, log ---------------------------------------------------------------------------


def test_training_learns_and_leaves_frozen_parameters_alone(tmp_path: Path) -> None:
    method = Line()
    frozen = method.module[0].bias.clone()  # type: ignore[index]
    train(tmp_path, method, replace(CONFIG, steps=150, batch=64))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.6 * losses[0]
    assert torch.equal(method.module[0].bias, frozen)  # type: ignore[index]


def test_the_result_is_the_average(tmp_path: Path) -> None:
    trainer = train(tmp_path, Line())
    _, state = newest(tmp_path)
    weights = dict(trainer.method.module.named_parameters())
    for name, value in state["ema"].items():
        assert torch.equal(weights[name], value)
        assert not torch.equal(state["module"][name], value)


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    a = train(tmp_path / "a" / "line", Line())
    b = train(tmp_path / "b" / "line", Line(), replace(CONFIG, seed=1))
    assert not same(a.method.module.state_dict(), b.method.module.state_dict())


def test_learning_rate() -> None:
    config = TrainConfig(steps=100, lr=2.0, warmup=10, final_lr=0.1)
    rates = [config.rate(step) for step in range(101)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10] == max(rates) == pytest.approx(2.0)
    assert rates[55] == pytest.approx(1.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == config.rate(500) == pytest.approx(0.2)


def test_the_rate_reaches_the_optimizer(tmp_path: Path) -> None:
    seen: list[float] = []

    def disturb(step: int, loss: Tensor) -> Tensor:
        seen.append(trainer.main.optimizer.param_groups[0]["lr"])
        return loss

    trainer = Trainer(Line(disturb), CONFIG, tmp_path, quiet)
    trainer.run()
    assert seen == [CONFIG.rate(step) for step in range(20)]


def test_gradients_are_clipped(tmp_path: Path) -> None:
    """Adam forgets scale, so one clipped step is told by the moments that it leaves."""
    train(tmp_path, Line(lambda step, loss: 1e4 * loss), replace(CONFIG, steps=1, clip=0.5))
    moments = [s["exp_avg"] for s in newest(tmp_path)[1]["optimizer"]["state"].values()]
    norm = torch.stack([m.square().sum() for m in moments]).sum().sqrt()
    assert float(norm) == pytest.approx(0.1 * 0.5, rel=1e-4)


def test_log_and_progress(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    method = Line()
    Trainer(method, replace(CONFIG, steps=10), tmp_path / "stage", lambda *told_of: told.append(told_of[:3])).run()
    lines = [json.loads(line) for line in (tmp_path / "stage" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8, 10]
    assert {"step", "lr", "loss", "largest", "grad"} <= lines[0].keys()
    assert told == [("stage", 4, 10), ("stage", 8, 10), ("stage", 10, 10)]
    assert steps_in(tmp_path / "stage") == [5, 10]
