"""Wan's weights find their places: every name both ways, every form of file, and errors that name the tensor."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from streamavatar.config import TransformerConfig
from streamavatar.errors import UserError
from streamavatar.models.transformer import Conditions, Transformer
from streamavatar.models.weights import (
    Loaded,
    Naming,
    backbone_state,
    from_diffusers,
    is_audio,
    load_backbone,
    match,
    open_weights,
    strip_wrappers,
    to_diffusers,
)
from streamavatar.recipes.wan22_5b import transformer as wan22_5b

TINY = TransformerConfig(
    dim=24, ffn_dim=40, heads=2, layers=2, latent_channels=4, freq_dim=16, text_dim=10, audio_dim=6
)

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]


def drawn(seed: int = 0, config: TransformerConfig = TINY) -> Transformer:
    """A transformer with all of its weights off their start, the audio attention fresh."""
    torch.manual_seed(seed)
    network = Transformer(config).requires_grad_(False)
    for name, parameter in network.named_parameters():
        if not is_audio(name):
            parameter.normal_(std=0.2)
    return network


def on_meta(config: TransformerConfig = TINY) -> Transformer:
    with torch.device("meta"):
        return Transformer(config)


@pytest.fixture
def source() -> Transformer:
    return drawn()


@pytest.fixture(params=["wan", "diffusers"])
def naming(request: pytest.FixtureRequest) -> Naming:
    return request.param


def check(network: Transformer, source: Transformer, report: Loaded, naming: Naming = "wan") -> None:
    """The backbone is the source's, bit for bit, and the report says so."""
    want, got = backbone_state(source), network.state_dict()
    assert all(torch.equal(got[name], value) for name, value in want.items())
    assert report.naming == naming
    assert report.tensors == len(want)
    assert set(report.initial) == {name for name in got if is_audio(name)}


def shard(state: State, folder: Path, parts: int = 3, stem: str = "diffusion_pytorch_model") -> None:
    """Write as Hugging Face does: numbered files and an index."""
    folder.mkdir(exist_ok=True)
    names = list(state)
    where = {}
    for k in range(parts):
        file = f"{stem}-{k + 1:05d}-of-{parts:05d}.safetensors"
        save_file({name: state[name] for name in names[k::parts]}, folder / file)
        where.update(dict.fromkeys(names[k::parts], file))
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


# names ---------------------------------------------------------------------------------------------


def wan_shapes(dim: int, ffn: int, layers: int, channels: int, freq: int, text: int) -> Shapes:
    """What Wan-Video/Wan2.2's WanModel holds, from its definition."""
    shapes: Shapes = {"patch_embedding.weight": (dim, channels, 1, 2, 2), "patch_embedding.bias": (dim,)}

    def linear(name: str, inputs: int, outputs: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs), (outputs,)

    linear("text_embedding.0", text, dim)
    linear("text_embedding.2", dim, dim)
    linear("time_embedding.0", freq, dim)
    linear("time_embedding.2", dim, dim)
    linear("time_projection.1", dim, 6 * dim)
    for block in (f"blocks.{k}" for k in range(layers)):
        for attention in ("self_attn", "cross_attn"):
            for part in "qkvo":
                linear(f"{block}.{attention}.{part}", dim, dim)
            shapes[f"{block}.{attention}.norm_q.weight"] = shapes[f"{block}.{attention}.norm_k.weight"] = (dim,)
        shapes[f"{block}.norm3.weight"] = shapes[f"{block}.norm3.bias"] = (dim,)
        linear(f"{block}.ffn.0", dim, ffn)
        linear(f"{block}.ffn.2", ffn, dim)
        shapes[f"{block}.modulation"] = (1, 6, dim)
    linear("head.head", dim, channels * 4)
    shapes["head.modulation"] = (1, 2, dim)
    return shapes


FULL = wan_shapes(3072, 14336, 30, 48, 256, 4096)


def shapes_of(network: torch.nn.Module) -> Shapes:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def test_full_size_holds_wan_s_tensors_and_audio() -> None:
    network = on_meta(wan22_5b())
    ours = shapes_of(network)
    assert {name: shape for name, shape in ours.items() if not is_audio(name)} == FULL
    assert sum(p.numel() for name, p in network.named_parameters() if not is_audio(name)) == 4_999_787_712
    audio = sum(p.numel() for name, p in network.named_parameters() if is_audio(name))
    assert 1.3e9 < audio < 1.5e9
    found = match(ours, FULL, "wan")
    assert found.naming == "wan"
    assert found.names == {name: name for name in FULL}
    assert set(found.initial) == {name for name in ours if is_audio(name)}


def test_full_size_holds_diffusers_tensors() -> None:
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        theirs = diffusers.WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=24,
            attention_head_dim=128,
            in_channels=48,
            out_channels=48,
            text_dim=4096,
            freq_dim=256,
            ffn_dim=14336,
            num_layers=30,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            eps=1e-6,
        )
    shapes = shapes_of(theirs)
    assert {to_diffusers(name): shape for name, shape in FULL.items()} == shapes
    assert {from_diffusers(name): shape for name, shape in shapes.items()} == FULL
    found = match(shapes_of(on_meta(wan22_5b())), shapes, "diffusers")
    assert found.naming == "diffusers"
    assert found.names == {name: to_diffusers(name) for name in FULL}


def test_full_size_runs_on_meta() -> None:
    network = on_meta(wan22_5b()).bfloat16()
    x = torch.empty(1, 48, 4, 44, 58, dtype=torch.bfloat16, device="meta")
    audio = torch.empty(1, 4, 32, 768, dtype=torch.bfloat16, device="meta")
    text = torch.empty(1, 512, 4096, dtype=torch.bfloat16, device="meta")
    out = network(x, torch.empty(1, 4, device="meta"), Conditions(audio, audio, x[:, :, :1], text))
    assert (out.shape, out.dtype) == (x.shape, x.dtype)


def test_names_go_both_ways() -> None:
    for name in FULL:
        theirs = to_diffusers(name)
        assert theirs is not None
        assert from_diffusers(theirs) == name


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("blocks.7.self_attn.q.weight", "blocks.7.attn1.to_q.weight"),
        ("blocks.7.cross_attn.o.bias", "blocks.7.attn2.to_out.0.bias"),
        ("blocks.29.norm3.weight", "blocks.29.norm2.weight"),
        ("blocks.0.ffn.0.weight", "blocks.0.ffn.net.0.proj.weight"),
        ("blocks.0.modulation", "blocks.0.scale_shift_table"),
        ("head.modulation", "scale_shift_table"),
        ("time_projection.1.weight", "condition_embedder.time_proj.weight"),
    ],
)
def test_names_that_are_easily_mistaken(ours: str, theirs: str) -> None:
    assert to_diffusers(ours) == theirs
    assert from_diffusers(theirs) == ours


@pytest.mark.parametrize("name", ["blocks.0.talk_attn.q.weight", "blocks.0.norm1.weight", "head.head.scale", "x", ""])
def test_what_the_other_side_does_not_have_has_no_name(name: str) -> None:
    assert to_diffusers(name) is None
    assert from_diffusers(name) is None


@pytest.mark.parametrize(
    "wrapped",
    [
        "model.blocks.0.ffn.0.weight",
        "_orig_mod.blocks.0.ffn.0.weight",
        "module.model._orig_mod.blocks.0.ffn.0.weight",
        "generator.model.blocks.0.ffn.0.weight",
        "model.diffusion_model.blocks.0.ffn.0.weight",
        "model._fsdp_wrapped_module.blocks.0._fsdp_wrapped_module._checkpoint_wrapped_module.ffn.0.weight",
    ],
)
def test_wrappers_are_stripped(wrapped: str) -> None:
    assert strip_wrappers(wrapped) == "blocks.0.ffn.0.weight"


def test_names_without_wrappers_stay() -> None:
    assert all(strip_wrappers(name) == name for name in shapes_of(on_meta(wan22_5b())))
    assert all(strip_wrappers(str(to_diffusers(name))) == to_diffusers(name) for name in FULL)


def test_export_needs_names_that_diffusers_has() -> None:
    network = on_meta(TransformerConfig(**{**vars(TINY), "reference_channels": 4}))
    with pytest.raises(UserError, match="reference_scale has no name in diffusers"):
        backbone_state(network, "diffusers")


# files ---------------------------------------------------------------------------------------------

Write = Callable[[State, Path], Path]


def single(state: State, folder: Path) -> Path:
    save_file(state, folder / "wan.safetensors")
    return folder / "wan.safetensors"


def folder_of_one(state: State, folder: Path) -> Path:
    return single(state, folder).parent


def sharded(state: State, folder: Path) -> Path:
    shard(state, folder)
    (folder / "Wan2.2_VAE.pth").write_bytes(b"the release has other weights beside these")
    return folder


def index(state: State, folder: Path) -> Path:
    shard(state, folder)
    return folder / "diffusion_pytorch_model.safetensors.index.json"


def pickled(state: State, folder: Path) -> Path:
    torch.save(state, folder / "wan.pth")
    return folder / "wan.pth"


def pickled_as_of_old(state: State, folder: Path) -> Path:
    torch.save(state, folder / "wan.pt", _use_new_zipfile_serialization=False)
    return folder / "wan.pt"


def pipeline(state: State, folder: Path) -> Path:
    (folder / "model_index.json").write_text("{}")
    shard(state, folder / "transformer")
    return folder


@pytest.mark.parametrize("meta", [False, True], ids=["in place", "from meta"])
@pytest.mark.parametrize(
    "write", [single, folder_of_one, sharded, index, pickled, pickled_as_of_old, pipeline], ids=lambda f: f.__name__
)
def test_round_trip(write: Write, meta: bool, naming: Naming, source: Transformer, tmp_path: Path) -> None:
    network = on_meta() if meta else Transformer(TINY)
    path = write(backbone_state(source, naming), tmp_path)
    check(network, source, load_backbone(network, path), naming)


def test_diffusers_folder(source: Transformer, tmp_path: Path) -> None:
    """As diffusers itself writes it, in shards."""
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.WanTransformer3DModel(
        num_attention_heads=TINY.heads,
        attention_head_dim=TINY.head_dim,
        in_channels=TINY.latent_channels,
        out_channels=TINY.latent_channels,
        text_dim=TINY.text_dim,
        freq_dim=TINY.freq_dim,
        ffn_dim=TINY.ffn_dim,
        num_layers=TINY.layers,
    )
    theirs.load_state_dict(backbone_state(source, "diffusers"))
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    network = Transformer(TINY)
    check(network, source, load_backbone(network, tmp_path), "diffusers")


def test_fresh_audio_is_silent_in_both_ways_of_loading(source: Transformer, tmp_path: Path) -> None:
    path = single(backbone_state(source), tmp_path)
    in_place, from_meta = Transformer(TINY), on_meta()
    x, times = torch.randn(1, 4, 3, 4, 6), torch.rand(1, 3) * 1000
    lanes = torch.randn(4, 1, 3, 2, TINY.audio_dim)
    text = torch.randn(1, 5, 10)
    for network in (in_place, from_meta):
        load_backbone(network, path)
        assert not any(value.is_meta for value in network.state_dict().values())
        outs = [network(x, times, Conditions(*lanes[k : k + 2], x[:, :, :1], text)) for k in (0, 2)]
        assert torch.equal(*outs)
        assert torch.equal(outs[0], source(x, times, Conditions(*lanes[:2], x[:, :, :1], text)))
        attention = network.blocks[1].talk_attn
        assert bool(attention.q.weight.any())
        assert torch.equal(attention.norm_q.weight, torch.ones(TINY.head_dim))
        assert torch.equal(network.blocks[1].norm_audio.weight, torch.ones(TINY.dim))
        assert not bool(attention.o.weight.any())
        assert attention.o.weight.requires_grad


def test_audio_that_the_file_lacks_stays(source: Transformer, tmp_path: Path) -> None:
    network = Transformer(TINY)
    torch.nn.init.normal_(network.blocks[0].talk_attn.o.weight)
    before = {name: value.clone() for name, value in network.state_dict().items() if is_audio(name)}
    load_backbone(network, single(backbone_state(source), tmp_path))
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("meta", [False, True])
def test_audio_that_the_file_has_is_read(meta: bool, source: Transformer, tmp_path: Path) -> None:
    source.blocks[0].talk_attn.o.weight.normal_()
    network = on_meta() if meta else Transformer(TINY)
    report = load_backbone(network, single(source.state_dict(), tmp_path))
    assert report.initial == ()
    assert all(torch.equal(network.state_dict()[name], value) for name, value in source.state_dict().items())


@pytest.mark.parametrize("meta", [False, True])
def test_precision_and_gradients_are_the_transformer_s(meta: bool, source: Transformer, tmp_path: Path) -> None:
    path = single({name: value.bfloat16() for name, value in backbone_state(source).items()}, tmp_path)
    network = on_meta() if meta else Transformer(TINY)
    network.head.requires_grad_(False)
    load_backbone(network, path)
    assert {value.dtype for value in network.state_dict().values()} == {torch.float32}
    assert not network.head.head.weight.requires_grad
    assert network.blocks[0].ffn[0].weight.requires_grad
    low = (on_meta() if meta else Transformer(TINY)).bfloat16()
    load_backbone(low, path)
    assert {value.dtype for value in low.state_dict().values()} == {torch.bfloat16}


def test_buffers_on_meta(tmp_path: Path) -> None:
    config = TransformerConfig(**{**vars(TINY), "reference_channels": 4})
    source = drawn(config=config)
    source.reference_scale.uniform_(1, 2)
    network = on_meta(config)
    load_backbone(network, single(source.state_dict(), tmp_path))
    assert torch.equal(network.reference_scale, source.reference_scale)
    assert "reference_scale" in dict(network.named_buffers())


# students ------------------------------------------------------------------------------------------


def wrapped(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


def test_self_forcing_checkpoint(naming: Naming, tmp_path: Path) -> None:
    plain, averaged = drawn(1), drawn(2)
    torch.save(
        {
            "generator": wrapped(backbone_state(plain, naming), "model."),
            "critic": wrapped(backbone_state(drawn(3), naming), "model."),
            "generator_ema": wrapped(backbone_state(averaged, naming), "model._fsdp_wrapped_module."),
            "step": 600,
        },
        tmp_path / "model.pt",
    )
    for part, want in ((None, averaged), ("generator", plain), ("generator_ema", averaged), ("critic", drawn(3))):
        network = on_meta()
        report = load_backbone(network, tmp_path / "model.pt", part=part)
        check(network, want, report, naming)
        assert report.part == (part or "generator_ema")


def test_nested_checkpoint(source: Transformer, tmp_path: Path) -> None:
    torch.save({"generator": {"state_dict": wrapped(backbone_state(source), "_orig_mod.")}}, tmp_path / "a.pt")
    network = Transformer(TINY)
    report = load_backbone(network, tmp_path / "a.pt")
    check(network, source, report)
    assert report.part == "generator.state_dict"


LONGLIVE = "LongLive-2.0-5B/model_bf16.pt"
"""A causal student of Wan2.2-TI2V-5B (NVlabs/LongLive 2.0, Apache-2.0). What its code says of its files: under the key
"generator" are the weights of a wrapper whose `model` is the transformer, under Wan's names, in bfloat16, LoRA merged;
averaged ones lie beside them under "generator_ema", behind FSDP's wrappers; adapters alone are under "generator_lora",
and the 4-bit releases are files of their own."""


def longlive(state: State) -> dict[str, Any]:
    return {"generator": wrapped({name: value.bfloat16() for name, value in state.items()}, "model.")}


def test_longlive_at_full_size(tmp_path: Path) -> None:
    """The whole way from the file to the parameters for all of the 5B, without its memory: tensors on the meta device
    are stored by their shapes alone."""
    network = on_meta(wan22_5b()).bfloat16()
    path = tmp_path / LONGLIVE
    path.parent.mkdir()
    torch.save(longlive({name: torch.empty(shape, device="meta") for name, shape in FULL.items()}), path)
    assert path.stat().st_size < 1e6
    with open_weights(path) as stored:
        found = match(shapes_of(network), stored.shapes, LONGLIVE)
        assert found.names == {name: f"model.{name}" for name in FULL}
    report = load_backbone(network, path, device="meta")
    assert (report.naming, report.part, report.tensors) == ("wan", "generator", len(FULL))
    assert set(report.initial) == {name for name in shapes_of(network) if is_audio(name)}
    del stored.shapes["model.blocks.29.ffn.2.weight"]  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"blocks\.29\.ffn\.2\.weight is missing, expected shape \(3072, 14336\)"):
        match(shapes_of(network), stored.shapes, LONGLIVE)


def test_longlive_s_student(source: Transformer, tmp_path: Path) -> None:
    """Its weights arrive, and the student computes what the transformer does from which it was taken."""
    source.bfloat16().float()
    torch.save(longlive(backbone_state(source)), tmp_path / "model_bf16.pt")
    network = on_meta()
    report = load_backbone(network, tmp_path / "model_bf16.pt")
    check(network, source, report)
    assert report.part == "generator"
    x, times, text = torch.randn(1, 4, 3, 4, 6), torch.rand(1, 3) * 1000, torch.randn(1, 5, 10)
    lanes = torch.randn(2, 1, 3, 2, TINY.audio_dim)
    conditions = Conditions(*lanes, x[:, :, :1], text)
    assert torch.equal(network(x, times, conditions), source(x, times, conditions))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (None, "no network among ['generator_lora']"),
        (
            {"model.blocks.0.self_attn.sla_linear.weight": torch.zeros(2, 2)},
            "sla_linear.weight of shape (2, 2) is unexp",
        ),
        (
            {"model.head.head.weight": torch.zeros(2, dtype=torch.uint8)},
            "model.head.head.weight is stored as torch.uint8",
        ),
    ],
    ids=["adapters alone", "sparse attention", "four bits"],
)
def test_other_files_of_longlive_are_refused_by_name(
    change: State | None, says: str, source: Transformer, tmp_path: Path
) -> None:
    weights = longlive(backbone_state(source))["generator"]
    torch.save(
        {"generator_lora": weights} if change is None else {"generator": weights | change}, tmp_path / "model.pt"
    )
    with pytest.raises(UserError) as error:
        load_backbone(on_meta(), tmp_path / "model.pt")
    assert says in str(error.value)


# errors --------------------------------------------------------------------------------------------


def refuse(state: State, tmp_path: Path, config: TransformerConfig = TINY, **options: Any) -> str:
    """The error of loading, after which nothing has changed."""
    network = Transformer(config)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_backbone(network, single(state, tmp_path), **options)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)
    return str(error.value)


def test_missing(source: Transformer, tmp_path: Path) -> None:
    state = backbone_state(source)
    del state["blocks.1.norm3.bias"], state["head.modulation"]
    message = refuse(state, tmp_path)
    assert "blocks.1.norm3.bias is missing, expected shape (24,)" in message
    assert "head.modulation is missing, expected shape (1, 2, 24)" in message


def test_missing_in_diffusers_naming(source: Transformer, tmp_path: Path) -> None:
    state = backbone_state(source, "diffusers")
    del state["blocks.1.norm2.bias"]
    assert "blocks.1.norm2.bias (our blocks.1.norm3.bias) is missing" in refuse(state, tmp_path)


def test_unexpected(naming: Naming, source: Transformer, tmp_path: Path) -> None:
    state = backbone_state(source, naming)
    state["img_emb.proj.0.weight"] = torch.zeros(3, 2)
    assert "img_emb.proj.0.weight of shape (3, 2) is unexpected" in refuse(state, tmp_path)


def test_wrong_shape(naming: Naming, source: Transformer, tmp_path: Path) -> None:
    state = backbone_state(source, naming)
    name = "blocks.0.ffn.0.bias" if naming == "wan" else "blocks.0.ffn.net.0.proj.bias"
    state[name] = torch.zeros(41)
    assert f"{name} has shape (41,), expected (40,)" in refuse(state, tmp_path)


def test_another_size_is_one_line(source: Transformer, tmp_path: Path) -> None:
    message = refuse(backbone_state(source), tmp_path, TransformerConfig(**{**vars(TINY), "layers": 4, "dim": 36}))
    assert "blocks.[0-1].self_attn.q.weight has shape (24, 24), expected (36, 36)" in message
    assert "blocks.[2-3].modulation is missing, expected shape (1, 6, 36)" in message
    assert len(message) < 8000


def test_audio_in_part(source: Transformer, tmp_path: Path) -> None:
    state = {name: value for name, value in source.state_dict().items() if "blocks.1.listen" not in name}
    assert "blocks.1.listen_attn.kv.bias is missing" in refuse(state, tmp_path)


def test_no_transformer(tmp_path: Path) -> None:
    state = {"encoder.conv1.weight": torch.zeros(2)}
    assert "neither Wan's nor diffusers' names of a transformer (the first is enc" in refuse(state, tmp_path)


def test_same_name_twice(source: Transformer, tmp_path: Path) -> None:
    state = {name: value.clone() for name, value in backbone_state(source).items()}
    message = refuse(state | {"model.head.modulation": torch.zeros(1, 2, 24)}, tmp_path)
    assert "head.modulation" in message
    assert "are the same parameter" in message


def test_quantised(source: Transformer, tmp_path: Path) -> None:
    state = {**backbone_state(source), "head.head.weight": torch.zeros(16, 24, dtype=torch.int8)}
    assert "head.head.weight is stored as I8" in refuse(state, tmp_path)


def test_part_of_safetensors(source: Transformer, tmp_path: Path) -> None:
    assert "leave out part='generator'" in refuse(backbone_state(source), tmp_path, part="generator")


@pytest.mark.parametrize(
    ("name", "value", "config"),
    [
        ("num_heads", 3, "WanModel"),
        ("num_attention_heads", 4, "WanTransformer3DModel"),
        ("eps", 1e-5, "WanTransformer3DModel"),
    ],
)
def test_what_no_shape_shows(name: str, value: float, config: str, source: Transformer, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"_class_name": config, name: value}))
    assert f"{name} is {value}, expected" in refuse(backbone_state(source), tmp_path)
    with pytest.raises(UserError, match=f"{name} is {value}, expected"):
        load_backbone(Transformer(TINY), tmp_path)
    file.write_text(json.dumps({"_class_name": "Something", name: value}))
    load_backbone(Transformer(TINY), tmp_path)
    file.write_text("[")
    with pytest.raises(UserError, match=r"config\.json: not readable"):
        load_backbone(Transformer(TINY), tmp_path)


def broken(write: Callable[[Path], Path | None], says: str) -> Any:
    return pytest.param(write, says, id=says[:30])


def lost_shard(folder: Path) -> None:
    shard(backbone_state(drawn()), folder)
    (folder / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink()


def cut_shard(folder: Path) -> None:
    shard(backbone_state(drawn()), folder)
    file = folder / "diffusion_pytorch_model-00002-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def cut_header(folder: Path) -> None:
    cut_shard(folder)
    file = folder / "diffusion_pytorch_model-00002-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:300])


def no_safetensors(folder: Path) -> None:
    (folder / "a.safetensors").write_bytes(b"<html>not found</html>")


def shard_with_a_tensor_lost(folder: Path) -> None:
    state = backbone_state(drawn())
    shard(state, folder)
    name = list(state)[1]
    save_file({name: state[name]}, next(folder.glob("*-00002-of-00003.safetensors")))


def shards_that_overlap(folder: Path) -> None:
    state = backbone_state(drawn())
    shard(state, folder)
    save_file(state, next(folder.glob("*-00002-of-00003.safetensors")))


def shard_elsewhere(folder: Path) -> None:
    (folder / "a.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../secret.safetensors"}}))


def bad_index(folder: Path) -> None:
    (folder / "a.safetensors.index.json").write_text("[]")


def empty_index(folder: Path) -> None:
    (folder / "a.safetensors.index.json").write_text('{"weight_map": {}}')


def two_files(folder: Path) -> None:
    for name in "ab":
        save_file({"x": torch.zeros(1)}, folder / f"{name}.safetensors")


def pickle_of(value: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        torch.save(value, folder / "a.pth")
        return folder / "a.pth"

    return write


def cut_pickle(folder: Path) -> Path:
    path = pickled(backbone_state(drawn()), folder)
    path.write_bytes(path.read_bytes()[:-1000])
    return path


def empty_pickle(folder: Path) -> Path:
    (folder / "a.pth").touch()
    return folder / "a.pth"


def text(folder: Path) -> Path:
    (folder / "a.txt").touch()
    return folder / "a.txt"


@pytest.mark.parametrize(
    ("write", "says"),
    [
        broken(lambda folder: folder / "absent", "absent: no such file or folder"),
        broken(lambda folder: None, "no weights in this folder"),
        broken(text, "a.txt: not a weights file"),
        broken(two_files, "2 files *.safetensors, the first a.safetensors"),
        broken(lost_shard, "shard diffusion_pytorch_model-00002-of-00003.safetensors is missing"),
        broken(cut_shard, "of-00003.safetensors ends within time_projection.1.weight, shape (144, 24): 46668 of 46768"),
        broken(cut_header, "-00002-of-00003.safetensors ends within its list of tensors"),
        broken(no_safetensors, "cannot read weights"),
        broken(shard_with_a_tensor_lost, "is missing, expected shape"),
        broken(shards_that_overlap, "is in another shard too"),
        broken(shard_elsewhere, "shard ../secret.safetensors is missing"),
        broken(bad_index, "not an index of shards"),
        broken(empty_index, "names no shards"),
        broken(cut_pickle, "cannot read weights (PytorchStreamReader"),
        broken(empty_pickle, "cannot read weights"),
        broken(pickle_of(Path("x")), "cannot read weights (Weights only load failed"),
        broken(pickle_of([1]), "holds a list; give a dictionary of tensors"),
        broken(pickle_of({"generator_lora": {"a": torch.zeros(1)}}), "no network among ['generator_lora']"),
        broken(pickle_of({}), "no network among []"),
        broken(pickle_of({"a": torch.zeros(1), "b": 3}), "b is a int, not a tensor"),
        broken(pickle_of({"a": torch.zeros(1, dtype=torch.int8)}), "a is stored as torch.int8"),
    ],
)
def test_bad_files(write: Callable[[Path], Path | None], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load_backbone(on_meta(), write(tmp_path) or tmp_path)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("part", "says"), [("critic", "no network among ['generator']"), ("x", "no network among")])
def test_absent_part(part: str, says: str, source: Transformer, tmp_path: Path) -> None:
    path = pickle_of({"generator": backbone_state(source)})(tmp_path)
    with pytest.raises(UserError) as error:
        load_backbone(Transformer(TINY), path, part=part)
    assert says in str(error.value)


def test_part_of_a_file_of_one(source: Transformer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds one network and no part 'generator'"):
        load_backbone(Transformer(TINY), pickled(backbone_state(source), tmp_path), part="generator")


# memory --------------------------------------------------------------------------------------------


def test_opening_reads_nothing(source: Transformer, tmp_path: Path) -> None:
    with open_weights(single(backbone_state(source), tmp_path)) as stored:
        assert stored.shapes == {name: tuple(value.shape) for name, value in backbone_state(source).items()}
        assert torch.equal(stored.read("head.modulation"), source.head.modulation)


# Loads in a fresh process and reports the growth of its private memory (pages mapped from a file are not counted,
# they can be dropped at any time) at its largest, and the size of the network, in bytes.
MEASURE = """
import sys, threading, torch
from safetensors.torch import load_file
from streamavatar.config import TransformerConfig
from streamavatar.models.transformer import Transformer
from streamavatar.models.weights import load_backbone

def private():
    with open("/proc/self/status") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))

how, path = sys.argv[1:]
torch.set_num_threads(1)
with torch.device("meta"):
    network = Transformer(TransformerConfig(dim=384, ffn_dim=1536, heads=4, layers=4, text_dim=384))
size = sum(value.nbytes for value in network.state_dict().values())
torch.ones(2, 2) @ torch.ones(2, 2)
start = largest = private()
done = threading.Event()

def watch():
    global largest
    while not done.wait(0.0005):
        largest = max(largest, private())

watcher = threading.Thread(target=watch)
watcher.start()
if how == "ours":
    load_backbone(network, path)
else:
    network.to_empty(device="cpu")
    state = torch.load(path, weights_only=True) if path.endswith("pth") else {
        name: value.clone() for name, value in load_file(path).items()
    }
    network.load_state_dict(state, strict=False)
largest = max(largest, private())
done.set()
watcher.join()
print(size, largest - start)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("write", [single, pickled], ids=lambda f: f.__name__)
def test_there_is_never_a_second_copy(write: Write, tmp_path: Path) -> None:
    config = TransformerConfig(dim=384, ffn_dim=1536, heads=4, layers=4, text_dim=384)
    path = write(backbone_state(Transformer(config)), tmp_path)

    def copies(how: str) -> float:
        command = [sys.executable, "-c", MEASURE, how, str(path)]
        size, growth = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
        assert size > 40e6
        return growth / size

    assert copies("ours") < 1.2
    assert copies("plain") > 1.4  # the measure would see it
