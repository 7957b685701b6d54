"""The average of the weights."""

from __future__ import annotations

import torch
from torch import nn

from streamavatar.training.ema import Ema


def module() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    layers[0].requires_grad_(False)
    return layers


def test_the_warm_up_and_the_decay() -> None:
    layers = module()
    ema, expected = Ema(layers, 0.9), layers[1].weight.detach().clone()
    for step in range(200):
        with torch.no_grad():
            layers[1].weight.add_(1 / (step + 1))
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * layers[1].weight.detach()
    torch.testing.assert_close(ema.state_dict()["1.weight"], expected)


def test_frozen_parameters_are_left_out() -> None:
    assert set(Ema(module(), 0.9).state_dict()) == {"1.weight", "1.bias"}


def test_the_average_is_float32_and_of_its_own() -> None:
    layers = module().bfloat16()
    ema = Ema(layers, 0.99)
    before = ema.state_dict()["1.weight"].clone()
    with torch.no_grad():
        layers[1].weight.add_(1)
    assert ema.state_dict()["1.weight"].dtype == torch.float32
    assert torch.equal(ema.state_dict()["1.weight"], before)


def test_state_round_trip_and_copy() -> None:
    layers = module()
    first, second = Ema(layers, 0.5), Ema(layers, 0.5)
    with torch.no_grad():
        layers[1].weight.add_(1)
    first.update(100)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.state_dict()["1.weight"], first.state_dict()["1.weight"])
    frozen = layers[0].weight.clone()
    second.copy_to(layers)
    assert torch.equal(layers[1].weight, first.state_dict()["1.weight"])
    assert torch.equal(layers[0].weight, frozen)
    second.update(101)  # towards what is there already
    torch.testing.assert_close(second.state_dict()["1.weight"], first.state_dict()["1.weight"])
