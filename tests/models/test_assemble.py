"""The full size, made small: assembled from released parts, loaded with any decoder, run by a session."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from streamavatar import Avatar
from streamavatar.cli.assemble import assemble as command
from streamavatar.config import (
    AudioConfig,
    ModelConfig,
    TaehvConfig,
    TransformerConfig,
    WanCodecConfig,
    Wav2Vec2Sizes,
)
from streamavatar.errors import UserError
from streamavatar.geometry import Geometry
from streamavatar.models import assemble as assembling
from streamavatar.models.assemble import Parts, assemble
from streamavatar.models.avatar import CONFIG, TEXT, WEIGHTS, AvatarModel
from streamavatar.models.codec.choice import SwappedCodec, decoder_file, save_decoder
from streamavatar.models.codec.names import to_wan
from streamavatar.models.codec.prune import prune
from streamavatar.models.codec.taehv import Taehv
from streamavatar.models.codec.wan import WanCodec
from streamavatar.models.full import wan22_5b
from streamavatar.models.text import write_text
from streamavatar.models.transformer import Transformer
from streamavatar.models.weights import backbone_state

transformers = pytest.importorskip("transformers")

PROMPT = "a person"
WAV2VEC2 = Wav2Vec2Sizes(
    layers=2, width=16, heads=2, ffn=24, conv_widths=(8,) * 7, position_kernel=16, position_groups=4, context=20
)
CONFIG_SMALL = ModelConfig(
    name="small-full",
    geometry=Geometry(height=32, width=64, latent_channels=6),
    transformer=TransformerConfig(
        dim=32, ffn_dim=48, heads=2, layers=2, latent_channels=6, freq_dim=16, text_dim=12, audio_dim=10
    ),
    audio=AudioConfig(feature_dim=32, tokens=3, hidden=16, dim=10, separate_lanes=False, wav2vec2=WAV2VEC2),
    codec=WanCodecConfig(z_dim=6, encoder_dim=8, decoder_dim=12, means=(0.1,) * 6, stds=(0.9,) * 6),
)
LIGHT = TaehvConfig(latent_channels=6, encoder_width=8, decoder_widths=(12, 10, 8, 6))


@torch.no_grad()
def drawn(module: nn.Module, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(noise / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else parameter + 0.1 * noise)
    return module.state_dict()


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Every part as its makers publish it, with the tensors in it."""
    folder = tmp_path_factory.mktemp("parts")
    silent = Transformer(CONFIG_SMALL.transformer)
    drawn(silent, 1)
    backbone = {name: value.clone() for name, value in backbone_state(silent).items()}
    (folder / "wan").mkdir()
    names = sorted(backbone)
    shards = {"a.safetensors": names[:40], "b.safetensors": names[40:]}
    for file, inside in shards.items():
        save_file({name: backbone[name] for name in inside}, folder / "wan" / file)
    index = {"weight_map": {name: file for file, inside in shards.items() for name in inside}}
    (folder / "wan" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    codec = drawn(WanCodec(CONFIG_SMALL.codec), 2)
    torch.save(to_wan(codec, 2), folder / "wan" / "Wan2.2_VAE.pth")
    torch.save(drawn(Taehv(LIGHT), 3), folder / "taew.pth")
    wav2vec2 = transformers.Wav2Vec2Model(
        transformers.Wav2Vec2Config(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            conv_dim=(8,) * 7,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
        )
    )
    drawn(wav2vec2, 4)
    wav2vec2.save_pretrained(folder / "wav2vec2")
    parts = Parts(folder / "wan", folder / "wan", folder / "wav2vec2", folder / "wan", PROMPT)
    return SimpleNamespace(folder=folder, parts=parts, backbone=backbone, codec=codec)


@pytest.fixture(autouse=True)
def quick_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text encoder has tests of its own; here a fixed embedding stands for what it makes."""

    def keep(path: Path, folder: Path, prompt: str, device: str) -> bool:
        write_text(path, torch.randn(4, 12, generator=torch.Generator().manual_seed(len(prompt))), prompt, folder.name)
        return True

    monkeypatch.setattr(assembling, "keep_text", keep)
    monkeypatch.setattr(assembling, "TaehvConfig", lambda: LIGHT)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


@pytest.fixture
def folder(shared: Path, releases: SimpleNamespace) -> Path:
    """A model folder with all three decoders."""
    if not (shared / CONFIG).exists():
        assemble(shared, CONFIG_SMALL, replace(releases.parts, light=releases.folder / "taew.pth"))
        full = AvatarModel.load(shared).codec
        small = prune(full, (24, 24, 24, 12, 6), torch.randn(1, 6, 2, 2, 4))
        save_decoder(small, decoder_file(shared, "pruned"))
    return shared


# assembling ------------------------------------------------------------------------------------------


def test_every_part_is_in_its_place(folder: Path, releases: SimpleNamespace) -> None:
    model = AvatarModel.load(folder)
    assert model.config == CONFIG_SMALL
    state = model.state_dict()
    for name, value in releases.backbone.items():
        assert torch.equal(state[f"transformer.{name}"], value.bfloat16().float()), name
    for name, value in releases.codec.items():
        assert torch.equal(state[f"codec.{name}"], value), name
    assert state["audio.encoder.model.feature_projection.projection.weight"].std() > 0.1
    for name, value in state.items():
        if "_attn.o." in name and ("talk" in name or "listen" in name):
            assert value.abs().max() == 0, name
    assert state["audio.talk.rest.weight"].std() > 0
    assert not torch.equal(state["audio.talk.rest.weight"], state["audio.listen.rest.weight"])
    assert model.text is not None
    assert model.text.shape == (1, 512, 12)
    assert not model.training


def test_what_is_fresh_is_told_and_the_same_every_time(folder: Path, tmp_path: Path, releases: SimpleNamespace) -> None:
    told: list[tuple[str, int, int]] = []
    done = assemble(tmp_path, CONFIG_SMALL, releases.parts, lambda *now: told.append(now))
    assert done.fresh == ("talk and listen attention", "projections of audio")
    size = sum(value.nbytes for value in load_file(tmp_path / WEIGHTS).values())
    assert told[-1] == ("weights", size, size)
    assert (tmp_path / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([CONFIG, WEIGHTS, TEXT])


def test_a_student_brings_its_audio_attention(tmp_path: Path, releases: SimpleNamespace) -> None:
    student = Transformer(CONFIG_SMALL.transformer)
    drawn(student, 7)
    torch.save({"generator_ema": {f"model.{n}": v for n, v in student.state_dict().items()}}, tmp_path / "student.pt")
    parts = replace(releases.parts, backbone=tmp_path / "student.pt")
    done = assemble(tmp_path / "out", CONFIG_SMALL, parts)
    assert done.fresh == ("projections of audio",)
    model = AvatarModel.load(tmp_path / "out")
    for name, value in student.state_dict().items():
        assert torch.equal(model.transformer.state_dict()[name], value.bfloat16().float()), name


def broken(parts: Parts, folder: Path, kind: str) -> Parts:
    """The parts, one of them wrong."""
    if kind == "codec of another size":
        path = folder / "vae.pth"
        torch.save(WanCodec(replace(CONFIG_SMALL.codec, decoder_dim=8)).state_dict(), path)
        return replace(parts, codec=path)
    if kind == "truncated codec":
        path = folder / "vae.pth"
        path.write_bytes((parts.codec / "Wan2.2_VAE.pth").read_bytes()[:-5000])
        return replace(parts, codec=path)
    if kind == "half-downloaded shards":
        (folder / "wan").mkdir()
        for name in ("a.safetensors", "diffusion_pytorch_model.safetensors.index.json"):
            (folder / "wan" / name).write_bytes((parts.backbone / name).read_bytes())
        return replace(parts, backbone=folder / "wan")
    if kind == "backbone with a tensor missing":
        tensors = load_file(parts.backbone / "a.safetensors") | load_file(parts.backbone / "b.safetensors")
        tensors.pop("blocks.1.ffn.0.weight")
        save_file(tensors, folder / "wan.safetensors")
        return replace(parts, backbone=folder / "wan.safetensors")
    assert kind == "no wav2vec2"
    return replace(parts, wav2vec2=folder / "nothing")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("codec of another size", r"vae\.pth: decoder\.\S+ has shape \(.*\) but the configuration asks for \(.*\)"),
        ("truncated codec", r"vae\.pth: cannot read weights"),
        ("half-downloaded shards", r"shard b\.safetensors is missing"),
        ("backbone with a tensor missing", r"blocks\.1\.ffn\.0\.weight is missing, expected shape \(48, 32\)"),
        ("no wav2vec2", r"no config\.json"),
    ],
)
def test_wrong_parts_are_named_and_nothing_is_written(
    kind: str, message: str, tmp_path: Path, releases: SimpleNamespace
) -> None:
    parts = broken(releases.parts, tmp_path, kind)
    with pytest.raises(UserError, match=message) as caught:
        assemble(tmp_path / "out", CONFIG_SMALL, parts)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_said_before(tmp_path: Path, releases: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2**20))
    with pytest.raises(UserError, match=r"0\.0 GiB of disk are free, 0\.3 GiB are needed"):
        assemble(tmp_path, CONFIG_SMALL, releases.parts)
    assert list(tmp_path.iterdir()) == []


def test_a_stop_half_way_leaves_no_model(
    tmp_path: Path, releases: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "weights" and done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        assemble(tmp_path, CONFIG_SMALL, releases.parts, stop)
    assert [p.name for p in tmp_path.iterdir()] == [TEXT]
    assemble(tmp_path, CONFIG_SMALL, releases.parts)
    AvatarModel.load(tmp_path)


def test_command(tmp_path: Path, releases: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def sized(height: int, width: int) -> ModelConfig:
        return replace(CONFIG_SMALL, geometry=replace(CONFIG_SMALL.geometry, height=height, width=width))

    monkeypatch.setattr("streamavatar.models.full.wan22_5b", sized)
    app, parts = typer.Typer(), releases.parts
    app.command()(command)
    words = ["--backbone", parts.backbone, "--codec", parts.codec, "--wav2vec2", parts.wav2vec2]
    words += ["--text-encoder", parts.text_encoder, "--prompt", PROMPT, "-o", tmp_path / "out"]
    run = CliRunner().invoke(app, [*map(str, words), "--size", "96x64"])
    assert run.exit_code == 0, run.output
    assert f"{tmp_path / 'out'}: small-full, 96x64" in run.output
    assert "untrained: talk and listen attention, projections of audio" in run.output
    assert AvatarModel.load(tmp_path / "out").config.geometry.width == 96
    for size in ("96", "axb", "100x64"):
        refused = CliRunner().invoke(app, [*map(str, words), "--size", size])
        assert isinstance(refused.exception, UserError)
        assert str(refused.exception).startswith(f"--size {size}: ")


# loading -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("decoder", "kind"), [("full", WanCodec), ("light", SwappedCodec), ("pruned", SwappedCodec)])
def test_decoders(decoder: Any, kind: type, folder: Path) -> None:
    """Each decodes from the same reference latent; the full decoder is not even read where another is wanted."""
    model, full = AvatarModel.load(folder, decoder=decoder), AvatarModel.load(folder)
    assert type(model.codec) is kind
    picture = torch.rand(1, 3, 32, 64) * 2 - 1
    latent, state = model.codec.open(picture)
    assert torch.equal(latent, full.codec.open(picture)[0])
    frames, _ = model.codec.decode(torch.randn(1, 6, 3, 2, 4), state)
    assert frames.shape == (1, 3, 12, 32, 64)
    if decoder != "full":
        assert not any(name.startswith(("codec.decoder.", "codec.post_quant")) for name in model.state_dict())
        with pytest.raises(ValueError, match="decoder='full'"):
            model.save(folder)


def test_types_and_places(folder: Path) -> None:
    model = AvatarModel.load(folder, dtype=torch.bfloat16, decoder="light")
    for name, parameter in model.named_parameters():
        half = name.startswith(("transformer.", "codec.other."))
        assert parameter.dtype == (torch.bfloat16 if half else torch.float32), name
        assert parameter.device.type == "cpu"
    assert model.text is not None
    assert model.text.dtype == torch.bfloat16


def test_shards_and_their_index(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    for name in (CONFIG, TEXT):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    weight_map = {name: f"model-{index % 3}.safetensors" for index, name in enumerate(sorted(tensors))}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name, home in weight_map.items() if home == file}, tmp_path / file)
    (tmp_path / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    loaded = AvatarModel.load(tmp_path).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in AvatarModel.load(folder).state_dict().items())
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(UserError, match=r"shard model-1\.safetensors is missing"):
        AvatarModel.load(tmp_path)


def test_saved_again_it_is_the_same(folder: Path, tmp_path: Path) -> None:
    model = AvatarModel.load(folder)
    model.save(tmp_path, torch.float32)
    again = AvatarModel.load(tmp_path)
    assert again.config == model.config
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert torch.equal(again.text, model.text)  # type: ignore[arg-type]


def edited(folder: Path, to: Path, file: str, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """A copy of a model folder with the tensors of one file changed."""
    from safetensors import safe_open

    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    with safe_open(folder / file, framework="pt") as opened:
        words = opened.metadata()
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, to / file, words)
    return to


def test_wrong_decoders_are_named(folder: Path, tmp_path: Path) -> None:
    light = edited(folder, tmp_path / "a", "light.safetensors", lambda t: t.update({"decoder.1.bias": torch.zeros(5)}))
    with pytest.raises(UserError, match=r"light\.safetensors: decoder\.1\.bias has shape \(5,\) .* \(12,\)"):
        AvatarModel.load(light, decoder="light")
    pruned = edited(folder, tmp_path / "b", "pruned.safetensors", lambda t: t.pop("decoder.conv_in.bias"))
    with pytest.raises(UserError, match=r"pruned\.safetensors: is missing 1 tensor: decoder\.conv_in\.bias"):
        AvatarModel.load(pruned, decoder="pruned")
    (pruned / "pruned.safetensors").unlink()
    with pytest.raises(UserError, match=r"pruned\.safetensors is missing: .* use --decoder full"):
        AvatarModel.load(pruned, decoder="pruned")
    save_file({"x": torch.zeros(1)}, light / "light.safetensors")
    with pytest.raises(UserError, match="not a decoder of this program"):
        AvatarModel.load(light, decoder="light")
    with pytest.raises(UserError, match="unknown decoder 'best'; use full, light, pruned"):
        AvatarModel.load(folder, decoder="best")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="has one decoder"):
        Avatar.load(decoder="light")


def test_text_must_be_there(folder: Path, tmp_path: Path) -> None:
    copy = edited(folder, tmp_path / "model", WEIGHTS, lambda t: None)
    (copy / TEXT).unlink()
    with pytest.raises(UserError, match=r"text\.safetensors is missing"):
        AvatarModel.load(copy)


def test_config_names_its_parts() -> None:
    values = json.loads(wan22_5b().to_json())
    assert (values["codec"]["kind"], values["audio"]["wav2vec2"]["layers"]) == ("wan", 12)
    assert ModelConfig.from_json(wan22_5b().to_json()) == wan22_5b()
    assert wan22_5b(704, 1280).geometry.tokens_per_latent == 880
    del values["audio"]["wav2vec2"], values["codec"]["kind"]
    with pytest.raises(UserError, match="not a valid"):
        ModelConfig.from_json(json.dumps(values))


# running -------------------------------------------------------------------------------------------


def shown(folder: Path, step: int, decoder: Any = "full") -> np.ndarray:
    """Frames of a session that hears noise, pushed `step` samples at a time."""
    rng = np.random.default_rng(0)
    agent, user = (0.1 * rng.standard_normal(16000).astype(np.float32) for _ in range(2))
    picture = rng.integers(0, 255, (64, 128, 3), dtype=np.uint8)
    session = Avatar.load(folder, precision="float32", decoder=decoder).session(picture)
    frames = []
    for first in range(0, 16000, step):
        part = slice(first, first + step)
        frames += [output.frames for output in session.push(agent=agent[part], user=user[part])]
    frames += [output.frames for output in session.finish()]
    return np.concatenate(frames)


@pytest.fixture
def trained(folder: Path, tmp_path: Path) -> Path:
    """The same with audio attention and head that do something."""
    model = AvatarModel.load(folder)
    drawn(model.transformer, 9)
    model.save(tmp_path / "trained", torch.float32)
    for name in ("light", "pruned"):
        decoder_file(tmp_path / "trained", name).write_bytes(decoder_file(folder, name).read_bytes())
    return tmp_path / "trained"


def test_sessions_do_not_depend_on_how_audio_is_pushed(trained: Path) -> None:
    whole = shown(trained, 16000)
    assert whole.shape == (25, 32, 64, 3)
    assert whole.std() > 5
    assert np.array_equal(shown(trained, 1234), whole)


def test_sessions_run_with_every_decoder(trained: Path) -> None:
    videos = [shown(trained, 16000, decoder) for decoder in ("full", "light", "pruned")]
    assert {video.shape for video in videos} == {(25, 32, 64, 3)}
    assert not np.array_equal(videos[0], videos[1])


def test_sessions_see_the_text(trained: Path) -> None:
    before = shown(trained, 16000)
    write_text(trained / TEXT, torch.randn(4, 12), "something else", "")
    assert not np.array_equal(shown(trained, 16000), before)
