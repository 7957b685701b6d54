"""The bench of the full size, tried in small on a CPU: it measures what it says and keeps what it knows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from streamavatar.bench.ceilings import count_work
from streamavatar.bench.drawn import drawn_model, full_config, reduced
from streamavatar.bench.full import BASELINES, Run, bench_full
from streamavatar.cli import app
from streamavatar.engine import Telemetry
from streamavatar.errors import UserError

CPU = torch.device("cpu")
TINY = reduced(full_config(32, 32), layers=1, dim=128)


def test_the_report_is_whole_and_told_in_parts() -> None:
    parts: list[set[str]] = []
    report = bench_full(
        TINY, "light", device=CPU, dtype=torch.float32, chunks=2, on_part=lambda values: parts.append(set(values))
    )
    assert parts[0] < parts[-1] == set(report)
    assert set(report["stages"]) == {"audio", "transformer", "decode"}
    whole = sum(stage["p50_ms"] for stage in report["stages"].values())
    assert 0.7 * whole < report["chunk"]["p50_ms"] < 1.5 * whole
    assert report["throughput"]["rtf"] > 0
    assert report["memory"]["peak_bytes"] > 2**20
    assert report["sessions"]["tried"]
    json.dumps(report)


def test_every_baseline_runs() -> None:
    report = bench_full(TINY, "light", device=CPU, dtype=torch.float32, chunks=2, baselines=True)
    assert set(report["baselines"]) == {"ours", *(b.name for b in BASELINES)}
    assert set(report["decoders"]) == {"light", "pruned", "full"}
    for rows, measure in (("baselines", "ours"), ("decoders", "light")):
        for row in report[rows].values():
            assert row["ratio"] == pytest.approx(row["ms"] / report[rows][measure]["ms"])


def test_weights_are_drawn_and_alike_every_time() -> None:
    one, two = (drawn_model(TINY, "light", CPU, torch.float32) for _ in range(2))
    for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
        assert a.any(), name
        assert torch.equal(a, b)
    frames = Run(one, Telemetry())
    assert frames.maker.decode(frames.transform()).std() > 1


def test_sharing_conditions_and_reencoding_keys_change_the_work_alone() -> None:
    model = drawn_model(TINY, "light", CPU, torch.float32)
    plain, unshared = (Run(model, Telemetry(), prepare=prepare) for prepare in (True, False))
    for _ in range(4):
        assert torch.equal(plain.transform(), unshared.transform())


def test_work_is_that_of_the_design() -> None:
    """A pass at 1280x704 with ten latents in sight is 38 TFLOP, Wan's decoder 199 per chunk."""
    work = count_work(full_config(704, 1280), "full")
    assert work["pass_tflop"] == pytest.approx(38.0, rel=0.01)
    assert work["decode_tflop"] == pytest.approx(199, rel=0.01)
    assert 3 * work["pass_tflop"] < work["transformer_tflop"] < 3.1 * work["pass_tflop"]


def test_the_command_writes_json_and_a_table(tmp_path: Path) -> None:
    words = "bench --config wan22_5b --size 32x32 --decoder light --chunks 2 --device cpu --layers 1 --dim 128"
    done = CliRunner().invoke(app, [*words.split(), "--precision", "float32", "--json", str(tmp_path / "bench.json")])
    assert done.exit_code == 0, done.output
    values = json.loads((tmp_path / "bench.json").read_text())
    assert values["config"] == "wan22-5b-reduced"
    for row in ("real-time factor", "first frame", "chunk", "TFLOP/s", "peak memory", "at the deadline", "ratio"):
        assert row in done.output
    for name, row in (values["baselines"] | values["decoders"]).items():
        assert f"  {name:42} {row['ms']:12.1f} {row['ratio']:7.2f}\n" in done.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--device cpu", "needs a GPU"),
        ("--device cuda:99", "cannot use device 'cuda:99'"),
        ("--layers 1 --dim 128 --size 64x64 --decoder-device nowhere", "cannot use device 'nowhere'"),
        ("--size 0x0", "choose another --size"),
        ("--size big", "width x height"),
        ("--size 100x100 --layers 1 --dim 128", "multiples of 32"),
        ("--layers 1", "go together"),
        ("--model here", "leave out --model"),
        ("--seconds 5", "leave out --seconds"),
    ],
)
def test_wrong_options_are_explained(words: str, message: str) -> None:
    done = CliRunner().invoke(app, ["bench", "--config", "wan22_5b", *words.split()])
    assert isinstance(done.exception, UserError)
    assert message in str(done.exception)


@pytest.mark.parametrize("option", ["--size 64x64", "--decoder full", "--chunks 9", "--no-baselines"])
def test_options_of_the_full_size_are_not_passed_over(option: str) -> None:
    done = CliRunner().invoke(app, ["bench", *option.split()])
    assert isinstance(done.exception, UserError)
    assert "or give --config" in str(done.exception)
