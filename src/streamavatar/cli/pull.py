"""`streamavatar pull`: the public parts of the full-size model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from streamavatar.cli.common import console


def pull(
    name: Annotated[str, typer.Argument(help="wan22-5b (about 34 GB), wav2vec2 or taew22.")],
    out: Annotated[Path | None, typer.Option(help="Folder; parts/NAME if left out.")] = None,
    revision: Annotated[str, typer.Option(help="Branch, tag or commit.")] = "main",
) -> None:
    """Download a part of the full-size model; run the same command again to go on after a stop."""
    from streamavatar.pull import pull as fetch

    folder = out or Path("parts") / name
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console()) as progress:
        tasks: dict[str, TaskID] = {}

        def tell(file: str, done: int, total: int) -> None:
            if file not in tasks:
                tasks[file] = progress.add_task(file, total=total or None)
            progress.update(tasks[file], completed=done, total=total or None)

        paths = fetch(name, folder, revision, tell)
    print(f"{folder}: {len(paths)} files, {sum(path.stat().st_size for path in paths) / 1e9:.2f} GB")
