"""`streamavatar bench`: the speed of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamavatar.cli.common import (
    DeviceOption,
    ModelOption,
    PrecisionOption,
    ThreadsOption,
    check_writable,
    write_json,
)


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

    check_writable(report)
    values = measure(Avatar.load(model, device=device, precision=precision, threads=threads), seconds, repeats)
    print(f"{values['model']} {values['size']} {values['precision']} on {values['machine']['cpu']}")
    print(f"real-time factor   {values['rtf']:.3f}   (median of {repeats}, encode included)")
    print(f"first frame        {1000 * values['first_frame_seconds']:.0f} ms after its audio")
    for stage, figures in values["chunk_seconds"].items():
        print(f"{stage:18} p50 {1000 * figures['p50']:.1f} ms   p99 {1000 * figures['p99']:.1f} ms")
    print(f"peak memory        {values['peak_memory_bytes'] / 2**20:.0f} MiB")
    if report is not None:
        write_json(report, values)
