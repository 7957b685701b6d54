"""`streamavatar train`: run a recipe's stages; `--set` changes its settings."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from streamavatar.cli.common import DeviceOption, console, torch_device
from streamavatar.errors import UserError

if TYPE_CHECKING:
    from streamavatar.training.parallel import World
    from streamavatar.training.trainer import Progress


def train(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe: puppets, micro.")],
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/RECIPE if left out.")] = None,
    stages: Annotated[str, typer.Option(help="Comma-separated stages; all if left out.")] = "",
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, for example teacher.steps=100.")
    ] = None,
    device: DeviceOption = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all cores if left out.")] = None,
) -> None:
    """Train a model; run the same command again to go on after a stop. torchrun starts it on many GPUs."""
    import torch

    try:
        from streamavatar.recipes import RECIPES
        from streamavatar.training.stages import STAGES, Run
    except ModuleNotFoundError as error:
        raise UserError(f"training needs {error.name}; install it with: pip install 'streamavatar[train]'") from error

    if recipe not in RECIPES:
        raise UserError(f"no recipe {recipe!r}; there are: {', '.join(RECIPES)}")
    wanted = [s for s in stages.split(",") if s] or list(STAGES)
    if unknown := [s for s in wanted if s not in STAGES]:
        raise UserError(f"no stage {unknown[0]!r}; stages are: {', '.join(STAGES)}")
    settings = RECIPES[recipe]()
    for change in changes or []:
        settings = _set(settings, change)
    if threads:
        torch.set_num_threads(threads)
    folder = out or Path("runs") / recipe
    with _world(device) as world:
        try:
            with _progress(shown=world.first) as tell:
                Run(settings, folder, tell, world).run(wanted)
        except OSError as error:
            raise UserError(f"{folder}: {error}; what is finished stays: mend that and run the same command") from error
        if world.first:
            print(f"{folder}: done; the model is in {folder / 'model'}")


@contextmanager
def _world(device: str) -> Iterator[World]:
    """This process alone, or among those that torchrun started."""
    from streamavatar.training.parallel import World, join, leave

    said = os.environ
    if "TORCHELASTIC_RUN_ID" not in said:
        yield World(torch_device(device))
        return
    where = torch_device(f"cuda:{said['LOCAL_RANK']}" if device == "cuda" else device)
    rank = int(said["RANK"])
    yield join(
        where,
        rank,
        int(said["WORLD_SIZE"]),
        said["MASTER_ADDR"],
        int(said["MASTER_PORT"]),
        attempt=int(said["TORCHELASTIC_RESTART_COUNT"]),
        serve=rank == 0 and said.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
    )
    leave()  # only when all went well: after an error the others are not where they could take part


@contextmanager
def _progress(*, shown: bool) -> Iterator[Progress]:
    """A bar per stage, or nothing."""
    if not shown:
        yield lambda stage, done, total, text: None
        return
    columns = (TextColumn("{task.description:8}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, TextColumn("{task.fields[text]}"), console=console()) as bars:
        tasks: dict[str, Any] = {}

        def tell(stage: str, done: int, total: int, text: str) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, completed=done, text="")  # the rate starts from here
            bars.update(tasks[stage], completed=done, total=total, text=text)

        yield tell


def _set(settings: Any, change: str) -> Any:
    """Replace one nested field of frozen dataclasses; the value is JSON, or a plain word."""
    path, separator, text = change.partition("=")
    if not separator:
        raise UserError(f"--set {change}: write key=value, for example teacher.steps=100")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    try:
        return _replaced(settings, path.split("."), tuple(value) if isinstance(value, list) else value)
    except ValueError as error:
        raise UserError(f"--set {change}: {error}") from error


def _replaced(settings: Any, path: list[str], value: Any) -> Any:
    """`settings` with the field at `path` replaced; ValueError says what is wrong."""
    names = [f.name for f in fields(settings)] if is_dataclass(settings) else []
    if path[0] not in names:
        raise ValueError(f"no setting {path[0]!r}; there are: {', '.join(names) or 'none below this one'}")
    inner = getattr(settings, path[0])
    if path[1:]:
        value = _replaced(inner, path[1:], value)
    elif type(value) is not type(inner) and not (isinstance(inner, float) and type(value) is int):
        raise ValueError(f"{path[0]} is {inner!r}; give a value of that kind")
    return replace(settings, **{path[0]: value})
