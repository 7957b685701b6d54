"""A model's folder: what is saved is what is loaded, and what does not fit is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from streamavatar.errors import UserError
from streamavatar.models.avatar import CONFIG, WEIGHTS, AvatarModel
from streamavatar.models.transformer import Conditions

Model = Callable[..., AvatarModel]


@pytest.fixture
def model(make_model: Model) -> AvatarModel:
    model = make_model(transformer={"reference_channels": 8})
    for buffer in model.buffers():
        buffer.copy_(torch.rand(buffer.shape, generator=torch.Generator().manual_seed(0)) + 0.5)
    return model


@pytest.fixture
def folder(model: AvatarModel, tmp_path: Path) -> Path:
    model.save(tmp_path / "model")
    return tmp_path / "model"


def edit(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def test_round_trip(model: AvatarModel, folder: Path) -> None:
    """Weights as bfloat16, statistics exact; loaded in float32."""
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG, WEIGHTS]
    loaded = AvatarModel.load(folder)
    assert loaded.config == model.config
    buffers, stored = dict(model.named_buffers()), load_file(folder / WEIGHTS)
    assert "transformer.reference_scale" in buffers
    for name, value in model.state_dict().items():
        got = loaded.state_dict()[name]
        assert got.dtype == torch.float32
        assert stored[name].dtype == (torch.float32 if name in buffers else torch.bfloat16)
        assert torch.equal(got, value if name in buffers else value.bfloat16().float()), name


def test_round_trip_in_float32_is_exact(
    model: AvatarModel,
    tmp_path: Path,
    make_conditions: Callable[..., Conditions],
    make_clip: Callable[..., Tensor],
) -> None:
    model.save(tmp_path, torch.float32)
    loaded = AvatarModel.load(tmp_path)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    conditions, x, sigma = make_conditions(model, 4), make_clip(model, 4), torch.full((1, 4), 0.5)
    assert torch.equal(loaded.transformer.sample(x, sigma, conditions), model.transformer.sample(x, sigma, conditions))


def test_loaded_again_and_saved_again_is_the_same(folder: Path, tmp_path: Path) -> None:
    AvatarModel.load(folder).save(tmp_path / "again")
    for name in (CONFIG, WEIGHTS):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_tensor_of_another_shape_is_named(folder: Path) -> None:
    edit(folder, lambda t: t.update({"transformer.head.head.bias": torch.zeros(5)}))
    with pytest.raises(UserError, match=r"transformer\.head\.head\.bias has shape \(5,\) but .* \(32,\)"):
        AvatarModel.load(folder)


def test_a_configuration_of_another_size(folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_text())
    config["transformer"]["ffn_dim"] = 52
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"blocks\.\[0-1\]\.ffn\.0\.\w+ has shape .*48.* but .*52.*config\.json"):
        AvatarModel.load(folder)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    edit(folder, lambda t: t.pop("codec.mean"))
    with pytest.raises(UserError, match=r"is missing 1 tensor: codec\.mean"):
        AvatarModel.load(folder)


def test_an_unexpected_tensor_is_named(folder: Path) -> None:
    edit(folder, lambda t: t.update({"audio.extra": torch.zeros(1), "zebra": torch.zeros(1)}))
    with pytest.raises(UserError, match=r"has unexpected 2 tensors: audio\.extra, "):
        AvatarModel.load(folder)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(UserError, match=name) as caught:
        AvatarModel.load(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "cannot read weights"),
        (5, "cannot read weights"),
        (1000, "ends within its list of tensors"),
        (-100, r"ends within codec\.detail\.leave\.bias, shape"),
    ],
)
def test_truncated_weights(folder: Path, size: int, words: str) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:size])
    with pytest.raises(UserError, match=words):
        AvatarModel.load(folder)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe\x00", b"[1]"])
def test_a_damaged_configuration(folder: Path, data: bytes) -> None:
    (folder / CONFIG).write_bytes(data)
    with pytest.raises(UserError, match=CONFIG):
        AvatarModel.load(folder)


def test_a_file_instead_of_a_folder(folder: Path) -> None:
    with pytest.raises(UserError, match=CONFIG):
        AvatarModel.load(folder / WEIGHTS)


def test_saving_over_a_model_replaces_it(model: AvatarModel, folder: Path) -> None:
    with torch.no_grad():
        model.codec.mean.add_(1)
    model.save(folder)
    assert torch.equal(AvatarModel.load(folder).codec.mean, model.codec.mean)
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG, WEIGHTS]


def test_caches_fit_the_model(make_model: Model) -> None:
    model = make_model().bfloat16()
    cache = model.ring_cache(batch=2)
    assert cache.keys.dtype == cache.values.dtype == torch.bfloat16
    assert cache.keys.shape == (2, 2, 2, (4 + 6) * 6, 16)
    assert model.tape_cache(detach=False).detach is False
