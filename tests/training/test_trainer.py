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

from streamavatar.draws import Draws
from streamavatar.errors import UserError
from streamavatar.media import read_video
from streamavatar.seeds import seed_for
from streamavatar.training.checkpoint import steps_in
from streamavatar.training.journal import Screen
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

    def loss(self, step: int, batch: int, draws: Draws) -> dict[str, Tensor]:
        self.steps.append(step)
        x = draws.randn(batch, 3)
        error = self.module(x) - x.sum(1, keepdim=True) - draws.randn(batch, 1)
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


def newest(folder: Path, method: Line | None = None) -> tuple[int, dict[str, Tensor]]:
    """Step and tensors of the newest checkpoint."""
    reader = Trainer(method or Line(), CONFIG, folder, quiet)
    tensors = reader._tensors()
    step = reader.checkpoints.load(tensors, pytest.fail)
    assert step is not None
    return step, tensors


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
from streamavatar.training.checkpoint import Checkpoints

closes, close = [], Checkpoints._close

def die_in_the_third(self, step):
    closes.append(1)
    if len(closes) < 3:
        return close(self, step)
    os.kill(os.getpid(), signal.SIGKILL)

Checkpoints._close = die_in_the_third
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

    with pytest.raises(
        UserError, match=r"the loss is not finite at step 12 \(seed 0; its batch is drawn from \d+\).*intact"
    ):
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
    averages = {name.removeprefix("main.ema."): value for name, value in state.items() if ".ema." in name}
    assert averages
    for name, value in averages.items():
        assert torch.equal(weights[name], value)
        assert not torch.equal(state[f"main.module.{name}"], value)


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
    moments = [value for name, value in newest(tmp_path)[1].items() if name.endswith(".exp_avg")]
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


# parts of a batch, old checkpoints, samples --------------------------------------------------------


def test_micro_batches_make_the_same_step(tmp_path: Path) -> None:
    one, four = (
        train(tmp_path / str(n) / "line", Line(), replace(CONFIG, steps=3, batch=8, accumulate=n)) for n in (1, 4)
    )
    for name, value in one._tensors().items():
        torch.testing.assert_close(four._tensors()[name], value, rtol=1e-5, atol=1e-6)
    logs = [(tmp_path / n / "line" / "log.jsonl").read_text().splitlines() for n in ("1", "4")]
    assert json.loads(logs[1][-1])["loss"] == pytest.approx(json.loads(logs[0][-1])["loss"], rel=1e-5)


def test_a_batch_that_cannot_be_divided(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a batch of 4 cannot be divided by 3 \(1 ranks x accumulate=3\)"):
        Trainer(Line(), replace(CONFIG, accumulate=3), tmp_path, quiet)


def test_a_checkpoint_of_the_former_format_goes_on(tmp_path: Path) -> None:
    whole = train(tmp_path / "a" / "line", Line())
    half = Trainer(Line(stop_at(10)), CONFIG, tmp_path / "b" / "line", quiet)
    with pytest.raises(Stop):
        half.run()
    main = half.main
    old = {
        "module": main.module.state_dict(),
        "optimizer": main.optimizer.state_dict(),
        "ema": main.ema.state_dict(),
    }
    folder = tmp_path / "c" / "line" / "step-0000010"
    folder.mkdir(parents=True)
    torch.save(old, folder / "state.pt")
    resumed = train(tmp_path / "c" / "line", Line())
    assert resumed.method.steps[0] == 10  # type: ignore[attr-defined]
    assert same(whole.method.module.state_dict(), resumed.method.module.state_dict())


def test_a_refused_checkpoint_is_named(tmp_path: Path) -> None:
    whole = train(tmp_path / "a" / "line", Line())
    with pytest.raises(Stop):
        train(tmp_path / "b" / "line", Line(stop_at(12)))
    (tmp_path / "b" / "line" / "step-0000010" / "COMPLETE").unlink()
    told: list[str] = []
    resumed = Trainer(Line(), CONFIG, tmp_path / "b" / "line", lambda stage, done, total, text: told.append(text))
    resumed.run()
    assert told[0].startswith("step-0000010 is refused: it has no COMPLETE")
    assert told[0] in (tmp_path / "b" / "line" / "log.jsonl").read_text()
    assert same(whole.method.module.state_dict(), resumed.method.module.state_dict())


class Seen(Line):
    """Shows its weights as latents."""

    def sample(self, draws: Draws, reference: Tensor) -> Tensor:
        weight = self.module[0].weight.detach()[None, :, :, None, None]  # type: ignore[index]
        return weight + draws.randn(1, 8, 3, 1, 1) + reference


class Glass:
    """A codec that keeps what it is shown."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def open(self, picture: Tensor) -> tuple[Tensor, str]:
        return picture.mean() + torch.zeros(1, 8, 1, 1, 1), "opened"

    def decode(self, latents: Tensor, state: str) -> tuple[Tensor, str]:
        assert state == "opened"
        self.seen.append(latents.clone())
        return torch.linspace(-1, 1, 8)[:, None, None].expand(1, 3, 8, 32, 64), state


def test_samples_are_shown_and_change_nothing(tmp_path: Path) -> None:
    """By the averaged weights, as video and for TensorBoard; training goes on as without."""
    glass = Glass()
    screen = Screen(glass, torch.full((1, 3, 32, 64), 0.5), 25)
    plain = train(tmp_path / "a" / "line", Line())
    folder = tmp_path / "b" / "line"
    trainer = Trainer(Seen(), replace(CONFIG, sample_every=8), folder, quiet, screen=screen)
    trainer.run()
    assert same(plain.method.module.state_dict(), trainer.method.module.state_dict())
    assert [p.name for p in sorted((folder / "samples").iterdir())] == [
        "step-0000008.mp4",
        "step-0000016.mp4",
        "step-0000020.mp4",
    ]
    frames = read_video(folder / "samples" / "step-0000008.mp4")
    assert frames.shape == (9, 32, 64, 3)
    assert abs(int(frames[0, 16, 32, 0]) - 191) < 4  # the picture
    assert frames[1].mean() < 4 < 250 < frames[8].mean()
    assert not torch.equal(glass.seen[0], glass.seen[1])
    average = trainer.method.module[0].weight.detach()  # type: ignore[index]  # the last sample was made of it
    noise = Draws.seeded(seed_for(0, "sample")).randn(1, 8, 3, 1, 1)
    assert torch.equal(glass.seen[-1], (average[None, :, :, None, None] + noise + 0.5)[:, :, 1:])


def test_curves_for_tensorboard(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with pytest.raises(Stop):
        train(tmp_path / "line", Line(stop_at(14)))
    train(tmp_path / "line", Line())
    events = reader.EventAccumulator(str(tmp_path / "line" / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("loss")] == [4, 8, 12, 16, 20]
    lines = [json.loads(line) for line in (tmp_path / "line" / "log.jsonl").read_text().splitlines()]
    assert events.Scalars("loss")[-1].value == pytest.approx(lines[-1]["loss"])


def test_without_tensorboard_there_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    train(tmp_path, Line())
    assert "no curves for TensorBoard" in (tmp_path / "log.jsonl").read_text().splitlines()[0]
