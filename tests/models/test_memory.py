"""Memory known before loading: what is counted is what is taken, and what does not fit is refused with advice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from streamavatar import Avatar
from streamavatar.config import ModelConfig, TaehvConfig, WanCodecConfig
from streamavatar.errors import UserError
from streamavatar.geometry import Geometry
from streamavatar.models import memory
from streamavatar.models.avatar import CONFIG, AvatarModel
from streamavatar.models.codec.choice import decoder_file, make_decoder, save_decoder
from streamavatar.models.full import wan22_5b
from streamavatar.models.memory import RESERVE, _Alive, memory_plan, require_memory

FLOAT = torch.float32
PRUNED = WanCodecConfig(decoder_widths=(64, 64, 64, 32, 16))


@pytest.fixture
def wan(small: ModelConfig) -> ModelConfig:
    """A small model with Wan's codec, also small."""
    codec = WanCodecConfig(z_dim=8, encoder_dim=8, decoder_dim=12, means=(0.1,) * 8, stds=(0.9,) * 8)
    return replace(small, codec=codec)


def test_counts_what_is_taken(wan: ModelConfig) -> None:
    model = AvatarModel(wan)
    plan = memory_plan(wan, sessions=3, dtype=FLOAT)
    assert plan.weights == sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    cache = model.ring_cache()
    assert plan.cache == sum(t.nbytes for t in (cache.keys, cache.values, cache.raw_sinks))
    with torch.no_grad():
        _, state = model.codec.open(torch.zeros(1, 3, 64, 96))
    assert plan.state == sum(t.untyped_storage().nbytes() for t in state.layers.values())
    assert plan.total == plan.weights + 3 * (plan.cache + plan.recorded + plan.state) + plan.work + RESERVE


def test_two_devices_share_what_one_would_hold(wan: ModelConfig) -> None:
    whole, first, second = (memory_plan(wan, dtype=FLOAT, part=part) for part in ("all", "transformer", "codec"))
    assert whole.weights == first.weights + second.weights
    assert (first.cache, first.recorded, first.state) == (whole.cache, whole.recorded, 0)
    assert (second.cache, second.recorded, second.state) == (0, 0, whole.state)
    # The workers run side by side, so on one device both need their room.
    assert whole.work >= first.work + second.work - max(first.work, second.work)
    assert first.total < whole.total
    assert second.total < whole.total


def test_precision(wan: ModelConfig) -> None:
    model = AvatarModel(wan)
    half = memory_plan(wan, dtype=torch.bfloat16)
    heavy = [p.numel() for part in (model.transformer, model.codec.decoder) for p in part.parameters()]
    heavy += [p.numel() for p in model.codec.post_quant_conv.parameters()]
    assert half.weights == memory_plan(wan, dtype=FLOAT).weights - 2 * sum(heavy)


def test_light_codec(small: ModelConfig) -> None:
    plan = memory_plan(small, dtype=FLOAT)
    latents, pictures = (1, 8, 4, 6), (1, 3, 64, 96)
    features = (1, 8, 16, 24)
    assert plan.state == 4 * sum(torch.Size(s).numel() for s in (latents, pictures, features))
    assert plan.work > 12 * 3 * 64 * 96 * 4  # the frames of a chunk, at least


def test_alive_counts_the_peak() -> None:
    kept = torch.empty(1000, device="meta")
    with _Alive(kept) as alive:
        a = torch.empty(100, device="meta")
        b = a * 2
        view = b[:50]
        del a
        c = view + 1  # b lives on in its view
        del b, view
        d = torch.empty(75, device="meta")
        kept.view(10, 100).mul_(2)
        del c, d
    assert alive.peak == 4 * (100 + 100)
    assert alive._now == 0


@pytest.mark.slow
def test_the_full_size() -> None:
    """What the design expects: 12.6 GB of transformer, 3 GB of cache, about 3 GB of the full decoder's state."""
    pytest.importorskip("transformers")
    config = wan22_5b(704, 1280)
    full, light = memory_plan(config), memory_plan(config, "light")
    assert 12.6e9 < full.weights < 16.5e9
    assert 3.2e9 < full.cache < 4.2e9
    assert 2.5e9 < full.state < 3.5e9
    assert light.state < 0.1e9
    assert full.weights - light.weights == pytest.approx(2 * 555e6, rel=0.03)
    assert light.total < memory_plan(config, PRUNED).total < full.total
    assert str(light).startswith(f"{light.total / 2**30:.1f} GiB (weights ")


def test_refused_with_what_would_fit(wan: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    light = TaehvConfig(latent_channels=8, encoder_width=8, decoder_widths=(12, 10, 8, 6))
    full, small = memory_plan(wan).total, memory_plan(wan, light).total
    assert small < full
    device = torch.device("cuda:0")

    def refused(free: int, decoder: Any = "full", sessions: int = 1) -> str:
        monkeypatch.setattr(memory, "free_memory", lambda device: free)
        with pytest.raises(UserError) as caught:
            require_memory(tmp_path, wan, decoder, torch.bfloat16, device, None, sessions)
        return str(caught.value)

    alone = memory_plan(wan, part="transformer").total
    assert alone < small
    message = refused(full - 1)
    assert message.startswith("cuda:0: 1.0 GiB are free, but small with the full decoder and 1 session needs 1.0 GiB (")
    assert "what fits: --decoder-device with another GPU (1.0 GiB here)" in message
    assert "use a device with 1.0 GiB free" in refused(alone - 1)
    save_decoder(make_decoder(light), decoder_file(tmp_path, "light"))  # type: ignore[arg-type]
    assert "what fits: --decoder light (1.0 GiB)" in refused(full - 1)
    assert "--decoder light" not in refused(small - 1)
    plan = memory_plan(wan)
    assert "what fits: 3 sessions" in refused(full + 2 * plan.session, sessions=5)
    monkeypatch.setattr(memory, "free_memory", lambda device: alone if device.index else 0)
    with pytest.raises(UserError, match=r"cuda:0: 0\.0 GiB are free, but the transformer of small"):
        require_memory(tmp_path, wan, "full", torch.bfloat16, device, torch.device("cuda:1"))
    monkeypatch.setattr(memory, "free_memory", lambda device: 0 if device.index else alone)
    with pytest.raises(UserError, match=r"cuda:1: 0\.0 GiB are free, but the codec of small"):
        require_memory(tmp_path, wan, "full", torch.bfloat16, device, torch.device("cuda:1"))
    monkeypatch.setattr(memory, "free_memory", lambda device: full)
    require_memory(tmp_path, wan, "full", torch.bfloat16, device)
    monkeypatch.setattr(memory, "free_memory", lambda device: None)
    require_memory(tmp_path, wan, "full", torch.bfloat16, torch.device("cpu"))


def test_said_before_anything_is_loaded(small: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights lie in the folder: they were not asked for."""
    replace(small, geometry=Geometry(height=512, width=512, latent_channels=8)).save(tmp_path / CONFIG)
    monkeypatch.setattr(memory, "free_memory", lambda device: 2**20)
    with pytest.raises(UserError, match=r"0\.0 GiB are free, but small .* use a device with"):
        Avatar.load(tmp_path)
