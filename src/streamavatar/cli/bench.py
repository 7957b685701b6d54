"""`streamavatar bench`: the speed of this machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from streamavatar.cli.common import (
    ModelOption,
    PrecisionOption,
    ThreadsOption,
    check_writable,
    torch_device,
    write_json,
)
from streamavatar.errors import UserError

if TYPE_CHECKING:
    from streamavatar.config import ModelConfig

_FULL = "Of --config alone"
_OF_MODEL = ("seconds", "repeats", "model", "threads")
_OF_CONFIG = ("size", "decoder", "decoder_device", "chunks", "baselines", "layers", "dim")


def bench(
    context: typer.Context,
    seconds: Annotated[float, typer.Option(min=2, help="Seconds of video per run.")] = 24.0,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    report: Annotated[Path | None, typer.Option("--json", help="Write the figures as JSON.")] = None,
    model: ModelOption = None,
    precision: PrecisionOption = "auto",
    device: Annotated[
        str | None, typer.Option(help="Torch device; cpu if left out, of --config the GPU if there is one.")
    ] = None,
    threads: ThreadsOption = None,
    config: Annotated[
        Literal["wan22_5b"] | None,
        typer.Option(help="Measure this size on a GPU, with weights drawn at random, instead of a model."),
    ] = None,
    size: Annotated[str, typer.Option(help="Width x height.", rich_help_panel=_FULL)] = "928x704",
    decoder: Annotated[
        Literal["full", "light", "pruned"], typer.Option(help="Of the latents.", rich_help_panel=_FULL)
    ] = "light",
    decoder_device: Annotated[
        str | None, typer.Option(help="Another GPU for the decoder, for example cuda:1.", rich_help_panel=_FULL)
    ] = None,
    chunks: Annotated[int, typer.Option(min=2, help="Chunks per measurement.", rich_help_panel=_FULL)] = 100,
    baselines: Annotated[
        bool, typer.Option(help="Also take back one optimisation at a time.", rich_help_panel=_FULL)
    ] = True,
    layers: Annotated[int, typer.Option(min=0, help="Fewer layers.", rich_help_panel=_FULL)] = 0,
    dim: Annotated[int, typer.Option(min=0, help="A smaller width, for a trial.", rich_help_panel=_FULL)] = 0,
) -> None:
    """Measure the whole path on this machine: real-time factor, chunk latency, first frame, memory."""
    check_writable(report)
    _refuse_others(context, config is not None)
    if config is not None:
        _full(size, decoder, device, decoder_device, precision, chunks, baselines, layers, dim, report)
        return
    from streamavatar.avatar import Avatar
    from streamavatar.bench.model import bench as measure

    values = measure(Avatar.load(model, device=device or "cpu", precision=precision, threads=threads), seconds, repeats)
    print(f"{values['model']} {values['size']} {values['precision']} on {values['machine']['cpu']}")
    print(f"real-time factor   {values['rtf']:.3f}   (median of {repeats}, encode included)")
    print(f"first frame        {1000 * values['first_frame_seconds']:.0f} ms after its audio")
    for stage, figures in values["chunk_seconds"].items():
        print(f"{stage:18} p50 {1000 * figures['p50']:.1f} ms   p99 {1000 * figures['p99']:.1f} ms")
    print(f"peak memory        {values['peak_memory_bytes'] / 2**20:.0f} MiB")
    if report is not None:
        write_json(report, values)


def _refuse_others(context: typer.Context, full: bool) -> None:
    """Refuse what the user gave and what would not be heeded."""
    for name in _OF_MODEL if full else _OF_CONFIG:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = f"--{name.replace('_', '-')}"
            why = "--config measures random weights" if full else f"{option} is for --config wan22_5b"
            raise UserError(f"{why}: leave out {option}, or {'leave out' if full else 'give'} --config")


# the full size -------------------------------------------------------------------------------------


def _full(
    size: str,
    decoder: Literal["full", "light", "pruned"],
    device: str | None,
    decoder_device: str | None,
    precision: str,
    chunks: int,
    baselines: bool,
    layers: int,
    dim: int,
    report: Path | None,
) -> None:
    import torch

    from streamavatar.bench.full import bench_full

    chosen = _config(size, layers, dim)
    place = torch_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if place.type == "cpu" and not (layers and dim):
        why = "" if torch.cuda.is_available() else f", and torch {torch.__version__} finds none"
        raise UserError(
            f"the full size needs a GPU{why}: use --device cuda where there is one, or try the measuring in small: "
            "--device cpu --layers 2 --dim 128 --size 64x64"
        )

    def keep(values: dict[str, Any]) -> None:
        if report is not None:
            write_json(report, values)

    half = precision == "bfloat16" or (precision == "auto" and place.type == "cuda")
    values = bench_full(
        chosen,
        decoder,
        device=place,
        decoder_device=None if decoder_device is None else torch_device(decoder_device),
        dtype=torch.bfloat16 if half else torch.float32,
        chunks=chunks,
        baselines=baselines,
        on_part=keep,
    )
    print("\n".join(_table(values)))


def _config(size: str, layers: int, dim: int) -> ModelConfig:
    from streamavatar.bench.drawn import full_config, reduced

    found = re.fullmatch(r"(\d+)x(\d+)", size)
    if not found:
        raise UserError(f"--size {size!r} is no width x height; give for example 928x704")
    try:
        config = full_config(height=int(found[2]), width=int(found[1]))
        if bool(layers) != bool(dim):
            raise UserError("--layers and --dim go together; give both or none")
        return reduced(config, layers, dim) if dim else config
    except ValueError as error:
        raise UserError(f"{error}; choose another --size or --dim") from error


def _table(values: dict[str, Any]) -> list[str]:
    machine, rates = values["machine"], values["rates"]
    memory, sessions = values["memory"], values["sessions"]
    lines = [
        f"{values['config']} {values['size']}, {values['decoder']} decoder, {values['precision']}, random weights, on "
        f"{machine.get('gpu', machine['cpu'])}",
        f"real-time factor   {values['throughput']['rtf']:.3f}   (decoder beside transformer)",
        f"first frame        {values['first_frame_ms']:.0f} ms after its audio",
        f"opening            {values['opening_seconds']:.2f} s, kernels chosen and passes recorded on a GPU",
    ]
    stages = values["stages"] | {"chunk": values["chunk"]}
    lines += [f"{stage:18} p50 {f['p50_ms']:.1f} ms   p99 {f['p99_ms']:.1f} ms" for stage, f in stages.items()]
    lines += [
        f"{stage:18} {rates[f'{stage}_tflops']:.1f} TFLOP/s, {100 * rates[f'{stage}_share']:.0f} % of a large product"
        for stage in ("transformer", "decode")
    ]
    lines.append(f"peak memory        {memory['peak_bytes'] / 2**30:.1f} GiB")
    lines.append(f"sessions           {sessions['at_the_deadline']} at the deadline")
    compared = {
        "audio and transformer, one optimisation less": values.get("baselines", {}),
        "decoders": values.get("decoders", {}),
    }
    for title, rows in compared.items():
        if rows:
            lines += [f"{title:44} ms per chunk   ratio"]
            lines += [f"  {name:42} {row['ms']:12.1f} {row['ratio']:7.2f}" for name, row in rows.items()]
    return lines
