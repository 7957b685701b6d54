"""`streamavatar render`, `demo` and `avatars`: videos from recordings, chunk by chunk as live ones are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from streamavatar import bundled
from streamavatar.cli.common import (
    DecoderDeviceOption,
    DecoderOption,
    DeviceOption,
    ModelOption,
    PrecisionOption,
    ThreadsOption,
    check_writable,
    console,
    write_json,
)
from streamavatar.errors import UserError

if TYPE_CHECKING:
    from streamavatar.avatar import Avatar
    from streamavatar.engine import Session
    from streamavatar.media import Audio

# Sound that AAC can carry and that has a whole number of samples per frame at 25 fps.
OUTPUT_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)


def render(
    output: Annotated[Path, typer.Option("-o", "--output", help="Video to write: .mp4, .mov or .mkv.")],
    image: Annotated[Path | None, typer.Option(help="Reference picture of the person.")] = None,
    crop: Annotated[
        Literal["auto", "face", "whole"],
        typer.Option(help="Of --image: around the face, or as it is; auto is around the face where one is found."),
    ] = "auto",
    avatar: Annotated[str | None, typer.Option(help="A bundled portrait instead; see `streamavatar avatars`.")] = None,
    agent_audio: Annotated[Path | None, typer.Option(help="What the avatar says: any file with audio.")] = None,
    user_audio: Annotated[Path | None, typer.Option(help="What the avatar hears: any file with audio.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.04, help="Length; the longer lane's if left out.")] = None,
    report: Annotated[Path | None, typer.Option("--json", help="Write speed and memory as JSON.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the motion's randomness.")] = 0,
    model: ModelOption = None,
    precision: PrecisionOption = "auto",
    device: DeviceOption = "cpu",
    decoder: DecoderOption = "full",
    decoder_device: DecoderDeviceOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Render a talking and listening avatar to a video, chunk by chunk as a live one would be made."""
    from streamavatar.avatar import Avatar
    from streamavatar.media import VideoWriter, read_audio

    check_writable(report)
    if image is not None and avatar is not None:
        raise UserError("give --image or --avatar, not both")
    lanes = {name: read_audio(path) for name, path in (("agent", agent_audio), ("user", user_audio)) if path}
    if not lanes and seconds is None:
        raise UserError("nothing to hear: give --agent-audio, --user-audio, or --seconds for silence")
    lanes = {name: _playable(audio) for name, audio in lanes.items()}
    for audio in lanes.values():
        if audio.warning:
            console().print(f"[yellow]note:[/] {audio.warning}", highlight=False)
    length = seconds or max(audio.seconds for audio in lanes.values())
    rates = {name: audio.rate for name, audio in lanes.items()}
    portrait = image if image is not None else bundled.portrait(avatar or bundled.DEFAULT_AVATAR).path

    loaded = Avatar.load(
        model, device=device, precision=precision, threads=threads, decoder=decoder, decoder_device=decoder_device
    )
    size = loaded.config.geometry
    with VideoWriter(output, size.height, size.width, size.fps, rates.get("agent", 16000)) as writer:
        open_session = partial(
            loaded.session, agent_rate=rates.get("agent", 16000), user_rate=rates.get("user", 16000), seed=seed
        )
        session = open_session(portrait) if image is None else _open_on(image, crop, open_session)
        samples = {name: audio.samples for name, audio in lanes.items()}
        wall = _write_video(writer, [(session, samples)], length)
    _report(loaded, session, writer.frames_written / size.fps, wall, output, report)


def _open_on(image: Path, crop: Literal["auto", "face", "whole"], open_session: Callable[..., Session]) -> Session:
    """A session on somebody's own picture."""
    from streamavatar.media.face import FaceError

    try:
        return open_session(image, crop="whole" if crop == "whole" else "face")
    except FaceError as error:
        if crop == "face":
            raise
        console().print(f"[yellow]note:[/] {error}; the picture is taken as it is", highlight=False)
        return open_session(image)


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
    with Progress(*columns, console=console()) as progress:
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
    write_json(report, values)


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


def avatars() -> None:
    """List the bundled portraits."""
    for portrait in bundled.portraits().values():
        print(f"{portrait.name:10} {portrait.description}")
