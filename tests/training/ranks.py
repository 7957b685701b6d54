"""One rank of several, in a process of its own: `python ranks.py RANK SIZE PORT FOLDER JOB`; and what it trains.

`test_ranks.py` starts it and trains the same on one process.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from streamavatar.cli.train import _world
from streamavatar.draws import Draws
from streamavatar.models.avatar import AvatarModel
from streamavatar.training.lora import LoraConfig, LoraLinear, adapted, merge
from streamavatar.training.methods.adversarial import AdversarialConfig, AdversarialMethod
from streamavatar.training.methods.ode import OdeMethod
from streamavatar.training.methods.sid import SidConfig, SidMethod
from streamavatar.training.methods.teacher import TeacherMethod
from streamavatar.training.parallel import World, gather, join, leave
from streamavatar.training.trainer import Method, TrainConfig, Trainer

HERE = Path(__file__).parent
CONFIG = TrainConfig(steps=2, batch=4, lr=1e-3, warmup=2, bf16=False, save_every=2, log_every=1, keep=9)


def load(path: Path) -> ModuleType:
    """A module of the tests by its path."""
    name = "_".join(path.with_suffix("").parts[-2:])
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


MODELS, CLIPS = load(HERE.parent / "conftest.py"), load(HERE / "conftest.py")
WINDOW = 10


def model(seed: int) -> AvatarModel:
    """Three blocks, every weight drawn."""
    config = MODELS.SMALL
    sizes = replace(config.transformer, layers=3, prediction="sample", residual=True)
    torch.manual_seed(seed)
    made = AvatarModel(replace(config, transformer=sizes))
    MODELS.redraw(made, seed)
    return made


def clips() -> Any:
    return CLIPS.random_clips(MODELS.SMALL, latents=WINDOW + 3)


class Line(Method):
    """A small network that is not split; rows count unequally."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module: nn.Module = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def loss(self, step: int, batch: int, draws: Draws) -> dict[str, Tensor]:
        x, weight = draws.randn(batch, 3), draws.rand(batch, 1)
        error = self.module(x) - x.sum(1, keepdim=True)
        return {"loss": (weight * error.square()).sum() / weight.sum(), "weight": weight.sum()}


def ode() -> OdeMethod:
    student, data = model(0), clips().take(torch.arange(6)).crop(torch.ones(6, dtype=torch.long), WINDOW)
    levels = len(student.config.schedule.sigmas)
    points = torch.randn(6, levels, *data.latents.shape[1:], generator=torch.Generator().manual_seed(1)).half()
    return OdeMethod(student, data, points, data.latents.half())


def sid(**changes: Any) -> SidMethod:
    return SidMethod(model(0), model(1), model(2), clips(), WINDOW, SidConfig(ratio=1, **changes))


def adversarial() -> AdversarialMethod:
    student, teacher = model(0), model(1)
    torch.manual_seed(0)
    return AdversarialMethod(student, teacher, clips(), WINDOW, AdversarialConfig(width=16, penalty_weight=1.0))


def lora() -> SidMethod:
    """Student and fake score are adapters on the real score."""
    real = model(0)
    student, fake = (adapted(real, LoraConfig(rank=2), seed) for seed in (1, 2))
    for number, network in enumerate((student, fake)):
        MODELS.redraw(nn.ModuleList(m for m in network.modules() if isinstance(m, LoraLinear)), number)
    return SidMethod(student, real, fake, clips(), WINDOW, SidConfig(ratio=1))


METHODS: dict[str, Callable[[], Method]] = {
    "line": Line,
    "teacher": lambda: TeacherMethod(model(0), clips(), WINDOW),
    "ode": ode,
    "sid": sid,
    "replay": lambda: sid(grad_mode="replay", last_chunks=2),
    "adversarial": adversarial,
    "lora": lora,
}

STEPS = {"teacher": 4}
QUICK, SLOW = ("line", "teacher", "sid", "adversarial"), ("ode", "replay", "lora")


def trainer(name: str, folder: Path, world: World | None = None, **changes: Any) -> Trainer:
    return Trainer(METHODS[name](), replace(CONFIG, **changes), folder / name, lambda *report: None, world)


def train(name: str, folder: Path, world: World | None = None, **changes: Any) -> Trainer:
    made = trainer(name, folder, world, **changes)
    made.run()
    return made


# jobs ----------------------------------------------------------------------------------------------


def parity(world: World, folder: Path) -> None:
    """A few steps, and further from what one process left."""
    for name in QUICK:
        train(name, folder / "two", world, steps=STEPS.get(name, 2))
    train("teacher", folder / "one then two", world, steps=4)


def more(world: World, folder: Path) -> None:
    """The other methods and settings."""
    for name in SLOW:
        train(name, folder / "two", world)
    for name in ("sid", "adversarial"):
        train(name, folder / "recomputed", world, recompute=True, accumulate=2, async_save=True)
    train("teacher", folder / "rows", world, shard=1)
    merged = gather(merge(trainer("lora", folder / "two", world).run()), world)
    if world.first:
        torch.save(merged, folder / "merged.pt")
    half = train("teacher", folder / "half", world, bf16=True)
    found = gather(half.method.module, world)
    if world.first:
        torch.save(found, folder / "half.pt")


def unlucky(world: World, folder: Path) -> None:
    """One rank meets a number that is not finite."""

    class Bad(Line):
        def loss(self, step: int, batch: int, draws: Draws) -> dict[str, Tensor]:
            values = super().loss(step, batch, draws)
            if step == 3 and world.rank == 1:
                values["loss"] = values["loss"] * float("nan")
            return values

    METHODS["line"] = Bad
    try:
        train("line", folder / "unlucky", world, steps=4)
    except Exception as error:
        (folder / f"said-{world.rank}").write_text(f"{type(error).__name__}: {error}")


def killed(world: World, folder: Path) -> None:
    """All die at once, the first time."""
    interrupted(world, folder, folder / f"died-{world.rank}")


def interrupted(world: World, folder: Path, mark: Path | None, step: int = 5) -> None:
    """A rank with a mark dies in a step, unless the mark is there already."""
    taken = trainer("sid", folder, world, steps=8)
    loss = taken.method.loss

    def die(now: int, batch: int, draws: Draws) -> dict[str, Tensor]:
        if mark is not None and now == step and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return loss(now, batch, draws)

    taken.method.loss = die  # type: ignore[method-assign]
    taken.run()


JOBS = {"parity": parity, "more": more, "unlucky": unlucky, "killed": killed}


def launched(folder: Path) -> None:
    """As torchrun starts it: rank 1 dies once."""
    with _world("cpu") as together:
        interrupted(together, folder, folder / "died" if together.rank else None)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "torchrun":
        launched(Path(sys.argv[2]))
    else:
        rank, size, port = map(int, sys.argv[1:4])
        together = join(torch.device("cpu"), rank, size, "127.0.0.1", port, attempt=0, serve=rank == 0)
        for job in sys.argv[5:]:
            JOBS[job](together, Path(sys.argv[4]))
        leave()
