"""`streamavatar assemble`: the full-size model's folder, out of the parts that `pull` downloads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from streamavatar.cli.common import DeviceOption, console
from streamavatar.config import PROMPT
from streamavatar.errors import UserError


def assemble(
    backbone: Annotated[Path, typer.Option(help="Wan's transformer, or a student of it: file, shards or folder.")],
    codec: Annotated[Path, typer.Option(help="Wan2.2_VAE.pth, or a diffusers folder.")],
    wav2vec2: Annotated[Path, typer.Option(help="Folder of wav2vec 2.0.")],
    text_encoder: Annotated[Path, typer.Option(help="Wan's folder, or a diffusers one: umT5 and its tokenizer.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="Model folder to write.")],
    light: Annotated[Path | None, typer.Option(help="taew2_2.pth, for --decoder light.")] = None,
    prompt: Annotated[str, typer.Option(help="The only text that the model will ever see.")] = PROMPT,
    size: Annotated[str, typer.Option(help="Width x height of the pictures, multiples of 32.")] = "928x704",
    network: Annotated[str | None, typer.Option(help="Which network of a checkpoint of several.")] = None,
    device: DeviceOption = "cpu",
) -> None:
    """Put the full-size model's folder together from its parts; nothing is downloaded."""
    from streamavatar.models.assemble import Parts
    from streamavatar.models.assemble import assemble as put_together
    from streamavatar.models.full import wan22_5b

    width, height = _size(size)
    try:
        config = wan22_5b(height, width)
    except ValueError as error:
        raise UserError(f"--size {size}: {error}") from error
    parts = Parts(backbone, codec, wav2vec2, text_encoder, prompt, light, network)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console()) as progress:
        tasks = {stage: progress.add_task(stage, total=None) for stage in ("text", "weights")}

        def tell(stage: str, done: int, total: int) -> None:
            progress.update(tasks[stage], completed=done, total=total)

        done = put_together(out, config, parts, tell, device)
    print(f"{out}: {done.config.name}, {width}x{height}")
    print(f"untrained: {', '.join(done.fresh)}; the avatar does not hear before it is trained")


def _size(text: str) -> tuple[int, int]:
    try:
        width, height = map(int, text.lower().split("x"))
    except ValueError as error:
        raise UserError(f"--size {text}: write width x height, such as 928x704") from error
    return width, height
