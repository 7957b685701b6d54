"""The full size on a GPU with weights drawn at random: stages, throughput, sessions, and what each optimisation gains.

The figures are those of users: real shapes, steady state (a full ring, moved sinks), frames on the host as bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamavatar.bench.ceilings import count_work, measure_ceilings, seconds_of, settle
from streamavatar.bench.drawn import decoder_config, drawn_model
from streamavatar.cache import RingCache
from streamavatar.cache.ring import RingView
from streamavatar.config import ModelConfig
from streamavatar.engine import Pipeline
from streamavatar.engine.maker import ChunkMaker
from streamavatar.engine.telemetry import Telemetry, peak_memory
from streamavatar.models.avatar import AvatarModel
from streamavatar.models.codec.choice import DECODERS, DecoderName
from streamavatar.models.memory import MemoryPlan, Part, memory_plan, require_plan
from streamavatar.ops.attention import kernel_for, using
from streamavatar.ops.fp8 import fp8_linears, fp8_possible
from streamavatar.ops.fused import without_kernels
from streamavatar.ops.rope import Rope, apply_rope, rope
from streamavatar.provenance import commit, machine

_IN_FLIGHT = 2
_BASELINE_CHUNKS = 15


class _Settled(Telemetry):
    """Stage times with the device waited for at both ends: a GPU's work outlives the call that asks for it."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        settle(self._device)
        with super().timed(stage):
            yield
            settle(self._device)


class Run:
    """One session of random sound, made chunk by chunk by the caller's thread."""

    def __init__(self, model: AvatarModel, telemetry: Telemetry, seed: int = 0, **options: Any) -> None:
        g, rng = model.config.geometry, np.random.default_rng(seed)
        face = rng.integers(0, 255, (g.height, g.width, 3), dtype=np.uint8)
        self.maker = ChunkMaker(model, face, seed, telemetry, **options)
        self._samples = rng.standard_normal(
            len(self.maker.heard_ticks(1)) * model.config.audio.sample_rate // g.fps
        ).astype(np.float32)
        self.chunk = 0

    @staticmethod
    def on(pipeline: Pipeline, model: AvatarModel, seed: int) -> Run:
        """One whose chunks are made by a pipeline's workers."""
        run = pipeline.call(lambda: Run(model, Telemetry(), seed))
        pipeline.run(lambda: None, lambda _: run.maker.warm_decoder()).result()
        return run

    def transform(self) -> Tensor:
        self.chunk += 1
        return self.maker.transform(self.chunk, 0.1 * self._samples, 0.1 * self._samples[::-1].copy())

    def step(self) -> float:
        """Make a chunk with nothing beside it; seconds from its sound to its frames on the host."""
        begin = perf_counter()
        self.maker.decode(self.transform())
        return perf_counter() - begin


def steady(model: AvatarModel) -> int:
    """Chunks until the ring is full and the sinks move."""
    return 2 * model.positions.slots + 4


def figures(seconds: list[float]) -> dict[str, float]:
    return {"p50_ms": 1e3 * float(np.percentile(seconds, 50)), "p99_ms": 1e3 * float(np.percentile(seconds, 99))}


# the parts of the report ---------------------------------------------------------------------------


def measure_latency(model: AvatarModel, device: torch.device, chunks: int) -> dict[str, Any]:
    """Chunks one at a time, and where their time and their memory go."""
    _forget_peak(device)
    begin = perf_counter()
    run = Run(model, _Settled(device))
    run.maker.warm_decoder()
    opened, opening = perf_counter() - begin, _memory(device)
    run.maker.telemetry = telemetry = _Settled(device)
    first = run.step()
    first_stages = {stage: 1e3 * values["p50"] for stage, values in telemetry.summary().items()}
    for _ in range(steady(model)):
        run.step()
    _forget_peak(device)
    run.maker.telemetry = telemetry = _Settled(device)
    seconds = [run.step() for _ in range(chunks)]
    stages = {
        stage: {"p50_ms": 1e3 * values["p50"], "p99_ms": 1e3 * values["p99"]}
        for stage, values in telemetry.summary().items()
    }
    return {
        "opening_seconds": opened,
        "first_frame_ms": 1e3 * first,
        "first_stages_ms": first_stages,
        "stages": stages,
        "chunk": figures(seconds),
        "memory": {"opening": opening, "one_by_one": _memory(device)},
    }


def measure_throughput(model: AvatarModel, pipeline: Pipeline, chunks: int, sessions: int = 1) -> dict[str, float]:
    """Sessions in turn, two chunks in the pipeline at a time: the decoder of one beside the transformer of the next."""
    runs = [Run.on(pipeline, model, seed) for seed in range(sessions)]
    flying: list[Future[Any]] = []
    done: list[float] = []
    for _ in range(steady(model) + chunks):
        for run in runs:
            flying.append(pipeline.run(run.transform, run.maker.decode))
            if len(flying) > _IN_FLIGHT:
                flying.pop(0).result()
        done.append(perf_counter())
    for future in flying:
        future.result()
    rounds = np.diff(done[steady(model) - 1 :])
    seconds = model.config.geometry.chunk_seconds
    return {"rtf": float(rounds.mean()) / seconds, "sessions": sessions, **figures(list(rounds))}


def measure_sessions(model: AvatarModel, pipeline: Pipeline, rtf: float, fit: int, chunks: int) -> dict[str, Any]:
    """How many sessions can be kept going: the most whose 99th percentile of a round is within a chunk's time."""
    deadline = 1e3 * model.config.geometry.chunk_seconds
    tried = []
    for sessions in range(min(int(1 / rtf), fit), 0, -1):
        tried.append(measure_throughput(model, pipeline, chunks, sessions))
        if tried[-1]["p99_ms"] <= deadline:
            return {"at_the_deadline": sessions, "tried": tried}
    return {"at_the_deadline": 0, "tried": tried}


# baselines -----------------------------------------------------------------------------------------


class _ReencodingView(RingView):
    """Rotates the keys of the whole window in every pass. The angles are of no matter here, their number is."""

    def attend(self, layer: int, k: Tensor, k_rotated: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = super().attend(layer, k, k_rotated, v)
        table = self._cache.window_table  # type: ignore[attr-defined]
        return apply_rope(keys, Rope(*(part[: keys.shape[2]] for part in table))), values


class _ReencodingCache(RingCache):
    """As caches are that keep keys from before RoPE."""

    window_table: Rope

    def view(self, chunk: int) -> RingView:
        super().view(chunk)
        return _ReencodingView(self, chunk)


def _reencoding(model: AvatarModel) -> RingCache:
    cache = model.ring_cache()
    cache.__class__ = _ReencodingCache
    assert isinstance(cache, _ReencodingCache)
    tokens, config = cache.keys.shape[3], model.config.transformer
    latents = -(-tokens // model.config.geometry.tokens_per_latent)
    table = rope(tuple(range(latents)), model.config.geometry.grid, config.head_dim, config.rope_theta)
    cache.window_table = table.to(cache.keys.device)
    return cache


@dataclass(frozen=True)
class Baseline:
    """One optimisation taken back, or one to be judged."""

    name: str
    config: Callable[[ModelConfig], ModelConfig] = lambda config: config
    around: Callable[[AvatarModel], AbstractContextManager[None]] = lambda model: nullcontext()
    options: Callable[[AvatarModel], dict[str, Any]] = lambda model: {}


BASELINES = (
    Baseline("clean cache pass", lambda c: replace(c, context=replace(c.context, cache_mode="clean"))),
    Baseline("keys rotated anew in every pass", options=lambda model: {"cache": _reencoding(model)}),
    Baseline("FlashAttention 2", around=lambda model: using("flash")),
    Baseline("no fused kernels", around=lambda model: without_kernels()),
    Baseline("no graphs, conditions in every pass", options=lambda model: {"prepare": False, "graphs": False}),
    Baseline("no graphs", options=lambda model: {"graphs": False}),
)
FP8 = Baseline("8-bit linear layers", around=lambda model: fp8_linears(model.transformer.blocks))
"""Not in use: to be judged by its figure, where a GPU has it."""


Ratios = dict[str, dict[str, float]]
"""Of each: "ms" per chunk, and "ratio", how many times as long as what it is compared with."""


def measure_baselines(model: AvatarModel, device: torch.device, chunks: int, on_part: Callable[[Ratios], None]) -> None:
    """Audio and transformer per chunk, as it is and with one optimisation less; "ours" is first, and the measure."""
    own = model.config
    found: Ratios = {}
    for baseline in (Baseline("ours"), *BASELINES, *((FP8,) if fp8_possible(device) else ())):
        model.config = baseline.config(own)
        try:
            with baseline.around(model):
                run = Run(model, Telemetry(), **baseline.options(model))
                for _ in range(steady(model)):
                    run.transform()
                ms = 1e3 * float(np.median(seconds_of(run.transform, device, chunks)))
        finally:
            model.config = own
        found[baseline.name] = {"ms": ms, "ratio": ms / found["ours"]["ms"] if found else 1.0}
        on_part(dict(found))


def measure_decoders(
    config: ModelConfig, chosen: DecoderName, device: torch.device, dtype: torch.dtype, chunks: int
) -> Ratios:
    """Every decoder per chunk, its frames brought to the host, beside the one that was chosen."""
    found: dict[DecoderName, float] = {}
    for name in DECODERS:
        one = replace(config, transformer=replace(config.transformer, layers=1))
        run = Run(drawn_model(one, name, device, dtype), Telemetry(), graphs=False)
        run.maker.warm_decoder()
        latents = run.transform()
        seconds = seconds_of(lambda run=run, latents=latents: run.maker.decode(latents), device, chunks)  # type: ignore[misc]
        found[name] = 1e3 * float(np.median(seconds))
    return {name: {"ms": ms, "ratio": ms / found[chosen]} for name, ms in found.items()}


# all of it -----------------------------------------------------------------------------------------


def bench_full(
    config: ModelConfig,
    decoder: DecoderName,
    *,
    device: torch.device,
    decoder_device: torch.device | None = None,
    dtype: torch.dtype = torch.bfloat16,
    chunks: int = 100,
    baselines: bool = False,
    on_part: Callable[[dict[str, Any]], None] = lambda report: None,
) -> dict[str, Any]:
    """Everything, in the order of importance.

    Args:
        config: what to measure.
        decoder: of it.
        device, decoder_device: where; the decoder is beside the transformer if left out.
        dtype: of transformer and decoder.
        chunks: per measurement, in the steady state.
        baselines: also take the optimisations back one by one, and time every decoder.
        on_part: gets the report after each of its parts, so that a run that is cut short has told what it knows.
    """
    g = config.geometry
    report: dict[str, Any] = {
        "config": config.name,
        "size": f"{g.width}x{g.height}",
        "decoder": decoder,
        "chunks": chunks,
        "precision": str(dtype).removeprefix("torch."),
        "weights": "random",
        "machine": machine() | _gpu(device),
        "commit": commit(),
    }

    def add(**parts: Any) -> None:
        report.update(parts)
        on_part(report)

    require_plan(config.name, partial(_plan, config, dtype), decoder, device, decoder_device)
    add(ceilings=measure_ceilings(device, dtype), work=count_work(config, decoder))
    model = drawn_model(config, decoder, device, dtype)
    if decoder_device is not None and decoder_device != device:
        model.codec.to(decoder_device)
    add(**measure_latency(model, device, chunks))
    add(rates=_rates(report))
    pipeline = Pipeline(devices=(device, decoder_device or device))
    _forget_peak(device)
    add(throughput=measure_throughput(model, pipeline, chunks))
    part: Part = "all" if decoder_device in (None, device) else "transformer"
    planned = _plan(config, dtype, decoder, 1, part).total
    add(memory=report["memory"] | _memory(device) | {"planned_bytes": planned})
    fit = _room(device, model)
    add(sessions=measure_sessions(model, pipeline, report["throughput"]["rtf"], fit, min(chunks, 30)))
    if baselines:
        measure_baselines(model, device, min(chunks, _BASELINE_CHUNKS), lambda found: add(baselines=found))
        del model
        add(decoders=measure_decoders(config, decoder, device, dtype, min(chunks, _BASELINE_CHUNKS)))
    return report


def _plan(config: ModelConfig, dtype: torch.dtype, decoder: DecoderName, sessions: int, part: Part) -> MemoryPlan:
    return memory_plan(config, decoder_config(config, decoder) or "full", sessions, dtype, part)


def _rates(report: dict[str, Any]) -> dict[str, float]:
    """TFLOP/s of the stages, and the share of what a large product reaches."""
    out = {}
    for stage in ("transformer", "decode"):
        rate = report["work"][f"{stage}_tflop"] / (report["stages"][stage]["p50_ms"] / 1e3)
        out[f"{stage}_tflops"] = rate
        out[f"{stage}_share"] = rate / report["ceilings"]["product_tflops"]
    return out


def _gpu(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {}
    return {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda, "attention": kernel_for(device)}


def _memory(device: torch.device) -> dict[str, int]:
    """Bytes at most: what tensors took on a GPU, else what the process took."""
    if device.type != "cuda":
        return {"peak_bytes": peak_memory()}
    return {
        "peak_bytes": torch.cuda.max_memory_allocated(device),
        "reserved_bytes": torch.cuda.max_memory_reserved(device),
    }


def _forget_peak(device: torch.device) -> None:
    """Let the next peak be of what comes, not of what was."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _room(device: torch.device, model: AvatarModel) -> int:
    """Sessions that fit into what is free, by what one takes."""
    if device.type != "cuda":
        return 1
    torch.cuda.empty_cache()
    free, before = torch.cuda.mem_get_info(device)[0], torch.cuda.memory_allocated(device)
    run = Run(model, Telemetry())
    taken = torch.cuda.memory_allocated(device) - before
    del run
    return max(1, int(0.9 * free / max(taken, 1)))
