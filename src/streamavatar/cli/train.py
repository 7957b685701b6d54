"""`streamavatar train`: run a recipe's stages, or say what they would cost; `--set` changes its settings."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
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
    recipe: Annotated[str, typer.Argument(help="Name of a recipe: default, puppets, micro, wan22_5b.")],
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/RECIPE if left out.")] = None,
    stages: Annotated[str, typer.Option(help="Comma-separated stages; all if left out.")] = "",
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, for example teacher.steps=100.")
    ] = None,
    device: DeviceOption = "cpu",
    resume: Annotated[bool, typer.Option("--resume", help="Only go on with a run that is there already.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all cores if left out.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print memory, work and days, and train nothing.")] = False,
    gpus: Annotated[int, typer.Option(min=1, help="How many GPUs --dry-run reckons with.")] = 1,
    gpu: Annotated[str, typer.Option(help="Their kind: a100, h100, h200, b200, l40s, rtx4090.")] = "h100",
    utilisation: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share of their products per second that training reaches.")
    ] = 0.4,
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
    if dry_run:
        _print_costs(settings, wanted, gpus, gpu, utilisation)
        return
    if threads:
        torch.set_num_threads(threads)
    folder = out or Path("runs") / recipe
    if resume and not (folder / "recipe.json").exists():
        raise UserError(f"{folder}: no run to go on with; leave out --resume to begin one")
    with _world(device) as world:
        if world.first:
            _print_memory(settings, wanted, folder, world.size)
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


def _print_costs(recipe: Any, stages: list[str], gpus: int, kind: str, utilisation: float) -> None:
    """What `--dry-run` says: tables in Markdown."""
    from streamavatar.training.estimate import GPUS, activations_of_both, recipe_cost

    if kind not in GPUS:
        raise UserError(f"no figures of GPU {kind!r}; there are: {', '.join(GPUS)}")
    gpu, g, tokens = GPUS[kind], recipe.model.geometry, recipe.model.geometry.tokens_per_latent
    costs = recipe_cost(recipe, stages, gpus, gpu, utilisation)
    print(f"{recipe.model.name}, {g.width}x{g.height}, {tokens} tokens per latent")
    print(f"windows of 1 + {recipe.window - 1} latents, {recipe.window * tokens:,} tokens")
    print(f"{gpus} x {kind}: {gpu.gigabytes:g} GB, {gpu.tflops:g} TFLOP/s dense bf16, {utilisation:.0%} of it reached")
    roles = [(c.stage, r.name, _count(r.parameters), _count(r.trained)) for c in costs for r in c.roles]
    _print_table(("stage", "network", "parameters", "trained"), roles)

    parts = ("weights", "gradients", "optimizer", "average", "given", "working")
    rows = []
    for cost in costs:
        if cost.memory is not None:
            both = activations_of_both(recipe, cost.stage)
            sizes = [*(getattr(cost.memory, part) for part in parts), *both, cost.memory.total]
            fits = "yes" if cost.memory.total < gpu.gigabytes * 1e9 else "no"
            rows.append((cost.stage, *map(_gib, sizes), fits))
    print("\nGiB on each GPU; activations of one clip, blocks recomputed or kept; in the total as `recompute` says")
    names = ("weights", "gradients", "optimiser", "EMA", "codec, sound", "at work", "recomputed", "kept")
    _print_table(("stage", *names, "total", "fits"), rows)

    times = [
        (
            cost.stage,
            f"{cost.steps:,}",
            f"{cost.batch:,}",
            f"{cost.clips_per_gpu:,}",
            f"{cost.flop / 1e12:,.4g}",
            f"{cost.batch * cost.flop / 1e15:,.4g}",
            f"{cost.seconds / 86400:,.3g}",
        )
        for cost in costs
    ]
    _print_table(("stage", "steps", "batch", "clips per GPU", "TFLOP per clip", "PFLOP per step", "days"), times)
    print(f"\n{sum(cost.seconds for cost in costs) / 86400:,.3g} days; making data, codec and encoder is not counted")
    if idle := [cost.stage for cost in costs if cost.batch < gpus]:
        print(f"fewer clips in a batch than GPUs, so that some are idle: {', '.join(idle)}")


def _print_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    print()
    for row in (head, ("---",) * len(head), *rows):
        print(f"| {' | '.join(row)} |")


def _print_memory(recipe: Any, stages: list[str], folder: Path, ranks: int) -> None:
    """What the stages that are to come need on each rank, before they start."""
    from streamavatar.training.estimate import recipe_cost

    left = [stage for stage in stages if stage != "pairs" and not (folder / stage / "DONE").exists()]
    for cost in recipe_cost(recipe, left, ranks):
        if (memory := cost.memory) is not None:
            states = memory.weights + memory.gradients + memory.optimizer + memory.average + memory.working
            clips = -(-cost.clips_per_gpu // getattr(recipe, cost.stage).accumulate)
            work = f"activations of {clips} clips {_gib(memory.activations * clips)} GiB"
            print(f"{cost.stage}: weights and optimiser {_gib(states)} GiB, {work}")


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f}" if size >= 2**30 else f"{size / 2**30:.2f}"


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"


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
    kind = str(next(f.type for f in fields(settings) if f.name == path[0]))
    if path[1:]:
        value = _replaced(inner, path[1:], value)
    elif value is None and "None" in kind:
        pass  # leaves a stage out
    elif isinstance(value, dict) and kind == "TrainConfig | None":
        value = _optimiser(value)
    elif type(value) is not type(inner) and not (isinstance(inner, float) and type(value) is int):
        raise ValueError(f"{path[0]} is {inner!r}; give a value of that kind")
    return replace(settings, **{path[0]: value})


def _optimiser(values: dict[str, Any]) -> Any:
    """The settings of a stage that the recipe leaves out."""
    from streamavatar.training.trainer import TrainConfig

    try:
        return TrainConfig(**values)
    except TypeError as error:
        names = ", ".join(f.name for f in fields(TrainConfig))
        raise ValueError(f"{error}; give steps, and any of: {names}") from error
