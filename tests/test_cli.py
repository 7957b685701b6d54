"""The command line: what it writes, what it says, and that bad input never leaves a traceback or half a file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from streamavatar import bundled, cli
from streamavatar.geometry import Geometry
from streamavatar.media import VideoWriter, read_audio, read_video
from streamavatar.models.avatar import AvatarModel

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def model(make_model: Callable[..., AvatarModel], tmp_path: Path) -> Path:
    made = make_model(
        geometry=Geometry(height=64, width=64, latent_channels=8),
        transformer={"prediction": "sample", "residual": True},
    )
    made.save(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """run("render", ...) -> exit status, standard output, standard error."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["streamavatar", *map(str, words)])
        status = 0
        try:
            cli.main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture
def portrait(tmp_path: Path) -> Path:
    path = tmp_path / "me.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (100, 90, 3), dtype=np.uint8)).save(path)
    return path


def write_audio(path: Path, samples: np.ndarray, rate: int, codec: str = "pcm_s16le") -> Path:
    with av.open(str(path), "w") as container:
        layout = "mono" if samples.ndim == 1 else "stereo"
        stream = container.add_stream(codec, rate=rate, layout=layout)
        packed = (np.atleast_2d(samples.T) * 32000).astype(np.int16).T.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, "s16", layout)
        frame.rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return path


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    return write_audio(tmp_path / "speech.wav", np.sin(np.arange(24000 * 2) / 30) * 0.5, 24000)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_render_writes_video_with_the_agents_own_audio(
    run: Run, model: Path, portrait: Path, speech: Path, tmp_path: Path
) -> None:
    user = write_audio(tmp_path / "user.wav", np.zeros((44100, 2)), 44100)
    out, report = tmp_path / "out.mp4", tmp_path / "report.json"
    status, text, _ = run(
        "render", "--model", model, "--image", portrait, "--agent-audio", speech, "--user-audio", user,
        "-o", out, "--json", report,
    )  # fmt: skip
    assert status == 0
    assert "real-time factor" in text
    assert read_video(out).shape == (50, 64, 64, 3)
    sound = read_audio(out)
    assert sound.rate == 24000
    assert abs(sound.seconds - 2.0) < 0.1
    heard, said = sound.samples[4800:43200], read_audio(speech).samples[4800:43200]
    assert np.corrcoef(heard, said)[0, 1] > 0.95
    values = json.loads(report.read_text())
    assert values["video_seconds"] == 2.0
    assert values["rtf"] > 0
    assert values["peak_memory_bytes"] > 2**20
    assert {"p50", "p99"} <= set(values["chunk_seconds"]["chunk"])


def test_an_own_picture_is_cut_around_its_face(run: Run, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("dlib", reason="needs the extra live")
    noise, out = tmp_path / "noise.png", tmp_path / "a.mp4"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8)).save(noise)
    short = ("render", "--model", model, "--image", noise, "--seconds", 0.04, "-o", out)
    status, _, said = run(*short)
    assert status == 0
    assert "no face was found" in said
    assert "as it is" in said
    assert "no face" not in run(*short, "--crop", "whole")[2]
    status, _, said = run(*short, "--crop", "face")
    assert status == 2
    assert "no face was found" in said


def test_silence_and_cutting(run: Run, model: Path, speech: Path, tmp_path: Path) -> None:
    assert run("render", "--model", model, "--seconds", 1, "-o", tmp_path / "a.mp4")[0] == 0
    assert len(read_video(tmp_path / "a.mp4")) == 25
    assert run("render", "--model", model, "--user-audio", speech, "--seconds", 0.5, "-o", tmp_path / "b.mkv")[0] == 0
    assert len(read_video(tmp_path / "b.mkv")) == 13


def test_unusual_rates_are_carried(run: Run, model: Path, tmp_path: Path) -> None:
    for rate in (8000, 12345, 192000):
        audio = write_audio(tmp_path / f"{rate}.wav", np.sin(np.arange(rate) / 9) * 0.3, rate)
        status, _, err = run("render", "--model", model, "--agent-audio", audio, "-o", tmp_path / "out.mp4")
        assert status == 0, err
        assert abs(read_audio(tmp_path / "out.mp4").seconds - 1) < 0.1


def test_same_seed_same_video(run: Run, model: Path, speech: Path, tmp_path: Path) -> None:
    frames = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        out = tmp_path / f"{name}.mp4"
        options = ("--precision", "float32", "--seed", seed, "--seconds", 1)
        assert run("render", "--model", model, "--agent-audio", speech, *options, "-o", out)[0] == 0
        frames.append(read_video(out))
    np.testing.assert_array_equal(frames[0], frames[1])
    assert (frames[0] != frames[2]).any()


def bad_inputs(tmp_path: Path) -> dict[str, tuple[list[object], str]]:
    """Name to (arguments beyond model and output, what the message must say)."""
    rng = np.random.default_rng(0)
    good = tmp_path / "good.wav"
    write_audio(good, rng.standard_normal(16000) * 0.1, 16000)
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (20, 20)).save(tmp_path / "tiny.png")
    (tmp_path / "empty.wav").touch()
    with VideoWriter(tmp_path / "mute.mp4", 64, 64, audio_rate=None) as writer:
        writer.write(np.zeros((3, 64, 64, 3), np.uint8))
    sound = ["--agent-audio", good]
    return {
        "no lane": ([], "--seconds"),
        "missing picture": (["--image", tmp_path / "nobody.png", *sound], "nobody.png"),
        "no picture": (["--image", tmp_path / "text.png", *sound], "text.png"),
        "tiny picture": (["--image", tmp_path / "tiny.png", *sound], "64"),
        "both portraits": (["--image", good, "--avatar", "ada", *sound], "not both"),
        "unknown avatar": (["--avatar", "nobody", *sound], "ada"),
        "missing audio": (["--agent-audio", tmp_path / "none.wav"], "none.wav"),
        "empty audio": (["--agent-audio", tmp_path / "empty.wav"], "empty.wav"),
        "no audio stream": (["--user-audio", tmp_path / "mute.mp4"], "audio"),
        "negative length": (["--seconds", "-1"], "seconds"),
        "unknown option": (["--sekonds", "1"], "sekonds"),
        "unknown device": (["--device", "abacus", *sound], "abacus"),
    }


@pytest.mark.parametrize(
    "case",
    ["no lane", "missing picture", "no picture", "tiny picture", "both portraits", "unknown avatar", "missing audio",
     "empty audio", "no audio stream", "negative length", "unknown option", "unknown device"],
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(case: str, run: Run, model: Path, tmp_path: Path) -> None:
    words, message = bad_inputs(tmp_path)[case]
    before = names(tmp_path)
    status, out, err = run("render", "--model", model, *words, "-o", tmp_path / "out.mp4")
    assert status == 2
    assert not out
    assert err.startswith("error: ")
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert names(tmp_path) == before


@pytest.mark.parametrize("target", ["no/such/folder/out.mp4", "out.gif", "."])
def test_unwritable_output(target: str, run: Run, model: Path, tmp_path: Path) -> None:
    before = names(tmp_path)
    status, _, err = run("render", "--model", model, "--seconds", 1, "-o", tmp_path / target)
    assert (status, len(err.strip().splitlines())) == (2, 1)
    assert names(tmp_path) == before


def test_a_broken_model_is_named(run: Run, model: Path, tmp_path: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    for change, message in (
        ({"transformer": {**config["transformer"], "ffn_dim": 96}}, "ffn"),
        ({"format": 9}, "format"),
    ):
        (model / "config.json").write_text(json.dumps({**config, **change}))
        status, _, err = run("render", "--model", model, "--seconds", 1, "-o", tmp_path / "out.mp4")
        assert (status, message in err, len(err.strip().splitlines())) == (2, True, 1), err
    status, _, err = run("render", "--model", tmp_path / "nowhere", "--seconds", 1, "-o", tmp_path / "out.mp4")
    assert (status, "config.json" in err) == (2, True)
    assert not (tmp_path / "out.mp4").exists()


def test_damaged_weights_are_named(run: Run, model: Path, tmp_path: Path) -> None:
    """Cut short, of another shape, with a tensor too few or too many: one line with the tensor's name, status 2."""
    weights, good = model / "model.safetensors", load_file(model / "model.safetensors")
    name = "transformer.blocks.1.ffn.0.weight"
    shape, other = tuple(good[name].shape), torch.zeros(3, 4)
    for state, says in (
        (None, f"{weights.name} ends within "),
        ({**good, name: other}, f"{name} has shape (3, 4) but the configuration asks for {shape}"),
        ({key: value for key, value in good.items() if key != name}, f"is missing 1 tensor: {name}"),
        ({**good, "extra": other}, "has unexpected 1 tensor: extra"),
        ({**good, name: good[name].to(torch.int8)}, f"{name} is stored as I8"),
    ):
        if state is None:
            weights.write_bytes(weights.read_bytes()[:-1])
        else:
            save_file(state, weights)
        status, out, err = run("render", "--model", model, "--seconds", 1, "-o", tmp_path / "out.mp4")
        assert (status, out, len(err.strip().splitlines())) == (2, "", 1)
        assert says in err
    assert not (tmp_path / "out.mp4").exists()


def test_too_little_memory_is_said_before_loading(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamavatar.models.memory.free_memory", lambda device: 2**28)
    (model / "model.safetensors").unlink()
    status, _, err = run("render", "--model", model, "--seconds", 1, "-o", tmp_path / "out.mp4")
    assert (status, len(err.strip().splitlines())) == (2, 1)
    assert "0.2 GiB are free, but small with the full decoder and 1 session needs 1.0 GiB (" in err


def test_ctrl_c_leaves_a_playable_file(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    command = [
        sys.executable,
        "-m",
        "streamavatar.cli",
        "render",
        "--model",
        str(model),
        "--seconds",
        "3000",
        "-o",
        str(out),
    ]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "100"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # whoever runs the tests may ignore it
    )
    deadline = time.monotonic() + 60
    partial: list[Path] = []
    while time.monotonic() < deadline and not (partial and partial[0].stat().st_size > 20_000):
        time.sleep(0.1)
        partial = [path for path in tmp_path.iterdir() if path.is_file()]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert len(read_video(out)) >= 12
    assert names(tmp_path) == {"model", "out.mp4"}


def test_avatars_lists_the_portraits(run: Run) -> None:
    status, out, _ = run("avatars")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == sorted(bundled.portraits())


def test_bench_writes_its_figures(run: Run, model: Path, tmp_path: Path) -> None:
    report = tmp_path / "bench.json"
    status, out, err = run("bench", "--model", model, "--seconds", 2, "--repeats", 1, "--json", report)
    assert status == 0, err
    assert "real-time factor" in out
    values = json.loads(report.read_text())
    assert values["machine"]["cores"] >= 1
    assert values["config"]["name"] == "small"
    assert {"rtf", "first_frame_seconds", "chunk_seconds", "commit", "peak_memory_bytes"} <= set(values)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "puppets"),
        (["micro", "--stages", "magic"], "teacher"),
        (["micro", "--set", "teacher"], "key=value"),
        (["micro", "--set", "teacher.stepz=1"], "stepz"),
        (["micro", "--set", "teacher.steps=many"], "steps"),
        (["micro", "--set", "teacher=1"], "teacher"),
    ],
)
def test_train_refuses_bad_settings(words: list[str], message: str, run: Run, tmp_path: Path) -> None:
    status, _, err = run("train", *words, "--out", tmp_path / "run")
    assert (status, message in err, len(err.strip().splitlines())) == (2, True, 1), err
    assert not (tmp_path / "run").exists()


def test_train_resume_needs_a_run(run: Run, tmp_path: Path) -> None:
    status, _, err = run("train", "micro", "--resume", "--out", tmp_path / "none")
    assert status == 2
    assert "no run to go on with" in err
    assert not (tmp_path / "none").exists()


def test_train_on_a_full_disk_says_so(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from streamavatar.training import stages

    def full(self: object, names: list[str]) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stages.Run, "run", full)
    status, _, err = run("train", "micro", "--out", tmp_path / "run")
    assert (status, "No space left" in err, len(err.strip().splitlines())) == (2, True, 1), err


def test_train_dry_run_prints_tables_and_trains_nothing(run: Run, tmp_path: Path) -> None:
    words = ["train", "micro", "--dry-run", "--gpus", 2, "--gpu", "a100", "--out", tmp_path / "run"]
    status, out, err = run(*words)
    assert status == 0, err
    for text in ("| sid | fake score |", "2 x a100: 80 GB, 312 TFLOP/s", "| adversarial | 4 | 2 | 1 |", "days"):
        assert text in out, text
    assert not (tmp_path / "run").exists()
    status, out, err = run(*words, "--set", "sid=null", "--set", 'causal={"steps":4,"batch":2}')
    assert (status, "| sid |" in out, "| pairs |" in out) == (0, False, True), err
    status, _, err = run("train", "micro", "--dry-run", "--gpu", "abacus")
    assert (status, "h100" in err) == (2, True)


def test_every_ablation_of_the_docs_is_a_setting() -> None:
    """The values in the docs' table are taken by the settings that it names."""
    from streamavatar.cli.train import _set
    from streamavatar.recipes import RECIPES

    for change in (
        "model.context.sink=none",
        "model.context.sink=reference",
        "model.context.rapr=false",
        "model.context.cap=10",
        "model.context.cap_on=start",
        "model.context.cache_mode=clean",
        "model.schedule.sigmas=[1.0]",
        "model.schedule.sigmas=[1.0,0.85,0.7,0.5]",
        "model.schedule.sigmas=[1.0,0.909,0.714]",
        "distillation.objective=dmd",
        "sid=null",
        "distillation.forcing=teacher",
        "distillation.grad_mode=replay",
        "distillation.last_chunks=2",
        "refinement.branches=single",
        "refinement.branches=pooled",
        "refinement.branches=local",
        "adversarial=null",
        "model.audio.mask=waveform",
        'causal={"steps":4,"batch":2}',
        "teaching.loss=velocity",
        "lora.rank=128",
    ):
        path, _, value = change.partition("=")
        found: object = _set(RECIPES["micro"](), change)
        for name in path.split("."):
            found = getattr(found, name)
        try:
            expected = json.loads(value)
        except json.JSONDecodeError:
            expected = value
        if isinstance(expected, dict):
            assert {name: getattr(found, name) for name in expected} == expected
        else:
            assert found == (tuple(expected) if isinstance(expected, list) else expected), change
