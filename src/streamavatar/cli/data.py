"""`streamavatar data`: make training data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from streamavatar.cli.common import console
from streamavatar.errors import UserError

if TYPE_CHECKING:
    from streamavatar.synth.source import ClipSource

data = typer.Typer(no_args_is_help=True, help="Make training data.")

WHERE = "docs/synthetic-people.md says where to get the packs; --people puppets needs none"


@data.command()
def synth(
    out: Annotated[Path, typer.Option(help="Folder of the shards; run the same command again to go on after a stop.")],
    hours: Annotated[float, typer.Option(min=0.001, help="Hours of video; more of them later only adds shards.")],
    assets: Annotated[Path | None, typer.Option(help="Folder with the MakeHuman packs, for rendered people.")] = None,
    people: Annotated[Literal["human", "puppets"], typer.Option(help="Who is drawn.")] = "human",
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Of everything; other seeds share no clip.")] = 0,
    size: Annotated[int, typer.Option(min=32, help="Width and height in pixels, even.")] = 256,
    seconds_per_clip: Annotated[float, typer.Option(min=1, help="Length of a clip.")] = 30.0,
    framing: Annotated[Literal["bust", "half"], typer.Option(help="How much of a rendered person is seen.")] = "bust",
    identities: Annotated[
        int | None, typer.Option(min=2, help="How many different people; two new ones per dialogue if left out.")
    ] = None,
    gestures: Annotated[bool, typer.Option(help="Whether hands come up into the picture.")] = True,
    voices: Annotated[
        str, typer.Option(help="Comma-separated, such as slt,espeak:en-us; all that are installed if left out.")
    ] = "",
) -> None:
    """Render synthetic conversations into tar shards: video, both lanes, and the truth of every frame."""
    if size % 2:
        raise UserError(f"--size {size}: a video needs an even size, such as {size + 1}")
    if people == "human" and assets is None:
        raise UserError(f"rendered people need --assets DIR: {WHERE}")
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
    try:
        from streamavatar.data.produce import produce

        source = _source(people, assets, seed, size, seconds_per_clip, framing, identities, voices, gestures)
        with Progress(*columns, TimeRemainingColumn(elapsed_when_finished=True), console=console()) as progress:
            task = progress.add_task("clips", total=None, text="starting")

            def tell(done: float, total: float) -> None:
                text = f"{done / 3600:.2f} of {total / 3600:.2f} h"
                progress.update(task, completed=done, total=total, text=text)

            made = produce(source, out, hours=hours, workers=workers, tell=tell)
    except ModuleNotFoundError as error:
        extra = "human" if people == "human" else "synth"
        raise UserError(f"clips need {error.name}; install it with: pip install 'streamavatar[{extra}]'") from error
    rate = made.size / 1e6 / (made.seconds / 3600)
    print(f"{out}: {made.seconds / 3600:.2f} h in {made.shards} shards, {made.clips} clips, {rate:.0f} MB an hour")


def _source(
    people: str, assets: Path | None, seed: int, size: int, seconds: float, framing: Literal["bust", "half"],
    identities: int | None, voices: str, gestures: bool,
) -> ClipSource:  # fmt: skip
    from streamavatar.synth.performance import FPS
    from streamavatar.synth.source import People, Puppets
    from streamavatar.synth.voices import available_voices

    frames = round(seconds * FPS)
    speakers = tuple(v for v in voices.split(",") if v) or available_voices()
    if people == "puppets" or assets is None:
        return Puppets(seed, size, frames, identities, voices=speakers, gestures=gestures)
    return People(assets, seed, size, frames, framing, identities, voices=speakers, gestures=gestures)
