"""`streamavatar train`: run a recipe's stages; `--set` changes its settings."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from streamavatar.cli.common import DeviceOption, console, torch_device
from streamavatar.errors import UserError


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
    """Train a model on this machine; run the same command again to go on after a stop."""
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
    where = torch_device(device)
    if threads:
        torch.set_num_threads(threads)
    folder = out or Path("runs") / recipe
    columns = (TextColumn("{task.description:8}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[text]}"), console=console()) as progress:
        tasks: dict[str, Any] = {}

        def tell(stage: str, done: int, total: int, text: str) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total, text="")
            progress.update(tasks[stage], completed=done, total=total, text=text)

        try:
            Run(settings, folder, tell, where).run(wanted)
        except OSError as error:
            raise UserError(f"{folder}: {error}; what is finished stays: mend that and run the same command") from error
    print(f"{folder}: done; the model is in {folder / 'model'}")


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
