"""Adapters: they start as nothing, only they and the audio's layers learn, and merging changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from streamavatar.data.latents import LatentSet
from streamavatar.draws import Draws
from streamavatar.models.avatar import AvatarModel
from streamavatar.models.transformer import Conditions
from streamavatar.training.lora import LoraConfig, LoraLinear, adapted, bases, halve, merge
from streamavatar.training.methods.adversarial import AdversarialConfig, AdversarialMethod
from streamavatar.training.methods.sid import SidConfig, SidMethod
from streamavatar.training.methods.teacher import trainable

RANK = LoraConfig(rank=2, alpha=4)
MakeModel = Callable[..., AvatarModel]
Output = Callable[[AvatarModel], Tensor]


@pytest.fixture
def output(make_conditions: Callable[..., Conditions], make_clip: Callable[..., Tensor]) -> Output:
    def run(model: AvatarModel) -> Tensor:
        sigma = torch.tensor([[0.0, 0.5, 0.5, 0.5]])
        with torch.no_grad():
            return model.transformer.sample(make_clip(model, 4), sigma, make_conditions(model, 4))

    return run


def draw(model: AvatarModel) -> None:
    """Adapters that do something."""
    torch.manual_seed(0)
    for module in model.transformer.modules():
        if isinstance(module, LoraLinear):
            nn.init.normal_(module.up, std=0.2)


@pytest.mark.parametrize("text_dim", [0, 6])
def test_fresh_adapters_change_nothing(make_model: MakeModel, output: Output, text_dim: int) -> None:
    base = make_model(transformer={"text_dim": text_dim})
    copy = adapted(base, RANK)
    layers = 4 + 2 + (4 if text_dim else 0)
    assert len(bases(copy)) == layers * base.config.transformer.layers
    assert torch.equal(output(copy), output(base))


def test_merged_equals_unmerged(make_model: MakeModel, output: Output) -> None:
    base = make_model()
    copy = adapted(base, RANK)
    draw(copy)
    before, plain = output(copy), output(base)
    assert (before - plain).abs().max() > 0.01
    merged = merge(copy)
    assert not bases(merged)
    torch.testing.assert_close(output(merged), before, rtol=1e-5, atol=1e-5)
    assert merged.state_dict().keys() == base.state_dict().keys()
    assert torch.equal(output(base), plain)


def test_the_base_is_shared_and_the_rest_is_not(make_model: MakeModel) -> None:
    base = make_model()
    a, b = (adapted(base, RANK, seed) for seed in range(2))
    own = base.transformer.blocks[0].self_attn.q
    assert a.transformer.blocks[0].self_attn.q.base is b.transformer.blocks[0].self_attn.q.base is own
    assert a.codec is base.codec
    pairs = zip(a.transformer.parameters(), b.transformer.parameters(), strict=True)
    assert all(x is not y for x, y in pairs)
    assert not any(name.endswith("self_attn.q.weight") for name in a.state_dict())
    a.to(torch.float64)  # moves the base as well
    assert own.weight.dtype == torch.float64


@pytest.mark.parametrize("targets", [("self_attn", "ffn"), ("ffn", "talk_attn", "listen_attn")])
def test_only_adapters_and_the_audio_are_trained(make_model: MakeModel, targets: tuple[str, ...]) -> None:
    model = adapted(make_model(), LoraConfig(rank=2, targets=targets))
    trainable(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    adapters = {name for name in trained if name.endswith((".up", ".down"))}
    parts = {name.split(".")[3 if name.startswith("transformer.blocks.") else 1] for name in trained - adapters}
    assert parts == {"talk", "listen", "norm_audio"} | ({"talk_attn", "listen_attn"} - set(targets))
    assert {name.split(".")[3] for name in adapters} == set(targets)


def test_halved_matrices_compute_the_same_under_autocast(make_model: MakeModel, output: Output) -> None:
    model = make_model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = output(model)
        halve(model.requires_grad_(False).transformer)
        assert model.transformer.blocks[0].ffn[0].weight.dtype == torch.bfloat16
        assert model.transformer.blocks[0].modulation.dtype == torch.float32
        assert torch.equal(output(model), before)


@pytest.mark.parametrize("mode", ["exit_step", "replay"])
def test_sid_with_adapters(make_model: MakeModel, make_clips: Callable[..., LatentSet], mode: str) -> None:
    """Student and fake score learn on one base, which stays."""
    base = make_model(transformer={"prediction": "sample", "residual": True})
    before = {name: value.clone() for name, value in base.state_dict().items()}
    student, fake = adapted(base, RANK), adapted(base, RANK, 1)
    draw(student)
    method = SidMethod(student, base, fake, make_clips(base.config, latents=10), 7, SidConfig(grad_mode=mode))  # type: ignore[arg-type]
    for step, network in ((0, fake), (5, student)):
        method.loss(step, 2, Draws.seeded(0))["loss"].backward()
        gradients = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
        assert gradients["transformer.blocks.0.self_attn.q.up"].any()
        assert gradients["audio.talk.rest.weight"].any()
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
    assert all(p.grad is None for p in base.parameters())
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())


def test_a_discriminator_with_adapters(make_model: MakeModel, make_clips: Callable[..., LatentSet]) -> None:
    base = make_model(transformer={"prediction": "sample", "residual": True, "layers": 3})
    student, judge = adapted(base, RANK), adapted(base, RANK)
    method = AdversarialMethod(student, judge, make_clips(base.config, latents=10), 7, AdversarialConfig(width=16))
    method.loss(0, 2, Draws.seeded(0))["loss"].backward()
    found = {name for name, p in method.discriminator.named_parameters() if p.grad is not None}
    assert "backbone.blocks.0.ffn.0.up" in found
    assert "backbone.blocks.0.norm_audio.weight" in found
    assert not any(name.startswith("backbone.patch_embedding") for name in found)


@pytest.mark.parametrize(
    ("settings", "message"), [({"rank": -1}, "negative"), ({"targets": ("head",)}, "no part 'head'")]
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoraConfig(**settings)  # type: ignore[arg-type]
