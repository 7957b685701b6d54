"""The command line. Everything that prints is here; errors of users are one line and exit status 2."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from streamavatar import bundled
from streamavatar.errors import UserError

if TYPE_CHECKING:
    from streamavatar.avatar import Avatar
    from streamavatar.engine import Session
    from streamavatar.media import Audio

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Live human avatars that talk and listen: one picture and two audio lanes become a streamed video.",
)

ModelOption = Annotated[Path | None, typer.Option("--model", help="Model folder; the bundled default if left out.")]
PrecisionOption = Annotated[
    Literal["auto", "float32", "bfloat16"], typer.Option(help="auto takes bfloat16 where the processor multiplies it.")
]
DeviceOption = Annotated[str, typer.Option(help="Torch device, for example cpu or cuda.")]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="CPU threads of each of the two workers; half of the cores if left out.")
]

INTERRUPTED = 130  # exit status after Ctrl-C, by custom

# Sound that AAC can carry and that has a whole number of samples per frame at 25 fps.
OUTPUT_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)


def main() -> None:
    """Entry point: one-line errors, exit status 2 for bad input and 130 for Ctrl-C."""
    try:
        status = app(standalone_mode=False)
    except UserError as error:
        _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except Exception as error:  # usage errors of the command-line library; anything else is ours and has a traceback
        if not hasattr(error, "format_message"):
            raise
        _fail(error.format_message())
    sys.exit(status or 0)


@lru_cache(maxsize=1)
def _console() -> Console:
    """Made when it is needed: it reads the environment."""
    return Console(stderr=True)


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


@app.command()
def render(
    output: Annotated[Path, typer.Option("-o", "--output", help="Video to write: .mp4, .mov or .mkv.")],
    image: Annotated[Path | None, typer.Option(help="Reference picture of the person.")] = None,
    avatar: Annotated[str | None, typer.Option(help="A bundled portrait instead; see `streamavatar avatars`.")] = None,
    agent_audio: Annotated[Path | None, typer.Option(help="What the avatar says: any file with audio.")] = None,
    user_audio: Annotated[Path | None, typer.Option(help="What the avatar hears: any file with audio.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.04, help="Length; the longer lane's if left out.")] = None,
    report: Annotated[Path | None, typer.Option("--json", help="Write speed and memory as JSON.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the motion's randomness.")] = 0,
    model: ModelOption = None,
    precision: PrecisionOption = "auto",
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
) -> None:
    """Render a talking and listening avatar to a video, chunk by chunk as a live one would be made."""
    from streamavatar.avatar import Avatar
    from streamavatar.media import VideoWriter, read_audio

    _check_writable(report)
    if image is not None and avatar is not None:
        raise UserError("give --image or --avatar, not both")
    lanes = {name: read_audio(path) for name, path in (("agent", agent_audio), ("user", user_audio)) if path}
    if not lanes and seconds is None:
        raise UserError("nothing to hear: give --agent-audio, --user-audio, or --seconds for silence")
    lanes = {name: _playable(audio) for name, audio in lanes.items()}
    for audio in lanes.values():
        if audio.warning:
            _console().print(f"[yellow]note:[/] {audio.warning}", highlight=False)
    length = seconds or max(audio.seconds for audio in lanes.values())
    rates = {name: audio.rate for name, audio in lanes.items()}
    portrait = image if image is not None else bundled.portrait(avatar or bundled.DEFAULT_AVATAR).path

    loaded = Avatar.load(model, device=device, precision=precision, threads=threads)
    size = loaded.config.geometry
    with VideoWriter(output, size.height, size.width, size.fps, rates.get("agent", 16000)) as writer:
        session = loaded.session(
            portrait, agent_rate=rates.get("agent", 16000), user_rate=rates.get("user", 16000), seed=seed
        )
        samples = {name: audio.samples for name, audio in lanes.items()}
        wall = _write_video(writer, [(session, samples)], length)
    _report(loaded, session, writer.frames_written / size.fps, wall, output, report)


def _playable(audio: Audio) -> Audio:
    """The audio at a rate that the video file can carry."""
    from streamavatar.media import resample

    if audio.rate in OUTPUT_RATES:
        return audio
    return replace(audio, samples=resample(audio.samples, audio.rate, 48000), rate=48000)


def _write_video(writer: Any, casts: list[tuple[Session, dict[str, Any]]], length: float) -> float:
    """Run sessions side by side into one video, with a progress bar; returns wall seconds."""
    import numpy as np

    from streamavatar.engine import run_lanes

    fps = float(writer.fps)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[speed]}"), TimeRemainingColumn())
    begin = perf_counter()
    with Progress(*columns, console=_console()) as progress:
        task = progress.add_task("rendering", total=length, speed="")
        for outputs in zip(*(run_lanes(session, lanes, length) for session, lanes in casts), strict=True):
            frames = np.concatenate([output.frames for output in outputs], axis=2)
            scale = writer.height // frames.shape[1]
            frames = frames.repeat(scale, axis=1).repeat(scale, axis=2) if scale > 1 else frames
            writer.write(frames, np.clip(sum(output.audio for output in outputs), -1, 1))
            shown = writer.frames_written / fps
            speed = f"{shown:6.1f} s   RTF {(perf_counter() - begin) / shown:.2f}"
            progress.update(task, completed=shown, speed=speed)
    return perf_counter() - begin


def _report(avatar: Avatar, session: Session, shown: float, wall: float, output: Path, report: Path | None) -> None:
    from streamavatar.engine.telemetry import peak_memory
    from streamavatar.provenance import commit, machine

    rtf = wall / shown
    print(f"{output}: {shown:.2f} s of video in {wall:.2f} s (real-time factor {rtf:.2f}, {avatar.precision})")
    if report is None:
        return
    values = {
        "output": str(output),
        "model": avatar.config.name,
        "precision": avatar.precision,
        "video_seconds": shown,
        "wall_seconds": wall,
        "rtf": rtf,
        "first_frame_seconds": session.telemetry.first_frame,
        "chunk_seconds": session.telemetry.summary(),
        "peak_memory_bytes": peak_memory(),
        "machine": machine(),
        "commit": commit(),
    }
    _write_json(report, values)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another place for --json") from error


def _check_writable(path: Path | None) -> None:
    """Refuse a report that could not be written, before the work and not after it."""
    if path is not None and (path.is_dir() or not os.access(path.parent, os.W_OK)):
        raise UserError(f"cannot write {path}: choose a file in a folder that exists for --json")


@app.command()
def demo(
    output: Annotated[Path, typer.Option("-o", "--output")] = Path("demo.mp4"),
    left: Annotated[str, typer.Option(help="Who speaks the agent's lane.")] = bundled.DEFAULT_AVATAR,
    right: Annotated[str, typer.Option(help="Who speaks the user's lane.")] = bundled.SECOND_AVATAR,
    model: ModelOption = None,
) -> None:
    """Render a bundled conversation: two avatars, each the other's user, side by side."""
    from streamavatar.avatar import Avatar
    from streamavatar.media import VideoWriter, read_audio

    one, other = (read_audio(path, 16000) for path in bundled.conversation())
    avatar = Avatar.load(model)
    size = avatar.config.geometry
    with VideoWriter(output, size.height * 2, size.width * 4, size.fps, 16000) as writer:
        casts = [
            (avatar.session(left), {"agent": one.samples, "user": other.samples}),
            (avatar.session(right), {"agent": other.samples, "user": one.samples}),
        ]
        wall = _write_video(writer, casts, max(one.seconds, other.seconds))
    _report(avatar, casts[0][0], writer.frames_written / size.fps, wall, output.resolve(), output.with_suffix(".json"))
    print(f"two avatars were rendered in that time; figures are in {output.with_suffix('.json').resolve()}")


@app.command()
def avatars() -> None:
    """List the bundled portraits."""
    for portrait in bundled.portraits().values():
        print(f"{portrait.name:10} {portrait.description}")


@app.command()
def bench(
    seconds: Annotated[float, typer.Option(min=2, help="Seconds of video per run.")] = 24.0,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    report: Annotated[Path | None, typer.Option("--json", help="Write the figures as JSON.")] = None,
    model: ModelOption = None,
    precision: PrecisionOption = "auto",
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
) -> None:
    """Measure the whole path on this machine: real-time factor, chunk latency, first frame, memory."""
    from streamavatar.avatar import Avatar
    from streamavatar.bench import bench as measure

    _check_writable(report)
    values = measure(Avatar.load(model, device=device, precision=precision, threads=threads), seconds, repeats)
    print(f"{values['model']} {values['size']} {values['precision']} on {values['machine']['cpu']}")
    print(f"real-time factor   {values['rtf']:.3f}   (median of {repeats}, encode included)")
    print(f"first frame        {1000 * values['first_frame_seconds']:.0f} ms after its audio")
    for stage, figures in values["chunk_seconds"].items():
        print(f"{stage:18} p50 {1000 * figures['p50']:.1f} ms   p99 {1000 * figures['p99']:.1f} ms")
    print(f"peak memory        {values['peak_memory_bytes'] / 2**20:.0f} MiB")
    if report is not None:
        _write_json(report, values)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe: puppets, micro.")],
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/RECIPE if left out.")] = None,
    stages: Annotated[str, typer.Option(help="Comma-separated stages; all if left out.")] = "",
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, for example teacher.steps=100.")
    ] = None,
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
    if threads:
        torch.set_num_threads(threads)
    folder = out or Path("runs") / recipe
    columns = (TextColumn("{task.description:8}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[text]}"), console=_console()) as progress:
        tasks: dict[str, Any] = {}

        def tell(stage: str, done: int, total: int, text: str) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total, text="")
            progress.update(tasks[stage], completed=done, total=total, text=text)

        try:
            Run(settings, folder, tell).run(wanted)
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


if __name__ == "__main__":
    main()
