"""Low-rank adapters (LoRA): training the 5B on one GPU, where full optimiser states would not fit.

The linear layers of the transformer's blocks are frozen and get a learnt product of two thin matrices beside them. Such
a copy of a model does not copy the frozen layers: student, fake score and discriminator share those of the real score,
so one base in bfloat16 serves all of them. The talk and listen attention, which starts from nothing, and the lanes'
projections are trained whole. `merge` turns a copy into a plain model again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from streamavatar.models.avatar import AvatarModel
from streamavatar.training.parallel import whole

WHOLE = ("talk_attn", "listen_attn", "norm_audio")
"""Parts of a block that are trained whole unless they are targets."""
PARTS = ("self_attn", "cross_attn", "talk_attn", "listen_attn", "ffn")


@dataclass(frozen=True)
class LoraConfig:
    """Which layers are adapted, and by how much.

    Attributes:
        rank: of the adapters; 0 trains all weights.
        alpha: the adapters' product counts alpha / rank; 0 is alpha = rank.
        targets: parts of a block whose linear layers are adapted; naming talk_attn and listen_attn adapts these, too,
            instead of training them whole.
    """

    rank: int = 0
    alpha: float = 0.0
    targets: tuple[str, ...] = ("self_attn", "cross_attn", "ffn")

    def __post_init__(self) -> None:
        if self.rank < 0 or self.alpha < 0:
            raise ValueError("lora: rank and alpha must not be negative")
        if unknown := [target for target in self.targets if target not in PARTS]:
            raise ValueError(f"lora: no part {unknown[0]!r} in a block; targets are {', '.join(PARTS)}")

    @property
    def scale(self) -> float:
        return (self.alpha or self.rank) / max(1, self.rank)


class LoraLinear(nn.Module):
    """A frozen linear layer and its adapter: base(x) + scale * up(down(x)); the adapter starts at zero.

    The base belongs to another model. It moves with this module and is neither saved nor trained with it.
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float, generator: torch.Generator | None = None) -> None:
        super().__init__()
        device = base.weight.device
        self.down = nn.Parameter(torch.empty(rank, base.in_features, device=device))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank, device=device))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5), generator=generator)
        self.scale = scale
        self._shared = (base,)  # in a tuple, so that it is not a submodule

    @property
    def base(self) -> nn.Linear:
        return self._shared[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * functional.linear(functional.linear(x, self.down), self.up)

    def merged(self) -> nn.Linear:
        """The plain layer that computes the same, in float32; every rank has to ask."""
        base = self.base
        out = nn.Linear(base.in_features, base.out_features, base.bias is not None, device="meta")
        up, down = (whole(part.detach()) for part in (self.up, self.down))
        out.weight = nn.Parameter(base.weight.detach().float() + self.scale * (up @ down))
        if base.bias is not None:
            out.bias = nn.Parameter(base.bias.detach().float().clone())
        return out

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> LoraLinear:
        self.base._apply(fn)
        return super()._apply(fn, recurse)


def adapted(base: AvatarModel, config: LoraConfig, seed: int = 0) -> AvatarModel:
    """A copy of a model with fresh adapters, computing what the model does until they are trained.

    Args:
        base: frozen from now on; its adapted layers, its codec and its audio encoder are the copy's as well.
        config: rank above 0.
        seed: of the adapters.
    """
    base.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    shared = [base.codec, base.audio.encoder, *(layer for _, _, layer in _layers(base, config))]
    copy: AvatarModel = deepcopy(base, {id(module): module for module in shared})
    for parent, name, layer in list(_layers(copy, config)):
        parent._modules[name] = LoraLinear(layer, config.rank, config.scale, generator)
    return copy


def merge(model: AvatarModel) -> AvatarModel:
    """The model with plain layers in place of adapted ones; changed in place and returned."""
    for parent in list(model.transformer.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLinear):
                parent._modules[name] = child.merged()
    return model


def trained_parts(model: AvatarModel) -> list[nn.Module]:
    """What is trained in a model: adapters and the audio's layers, or without adapters the whole transformer."""
    lanes = [model.audio.talk, model.audio.listen]
    adapters = [module for module in model.transformer.modules() if isinstance(module, LoraLinear)]
    if not adapters:
        return [model.transformer, *lanes]
    whole = [getattr(block, name) for block in model.transformer.blocks for name in WHOLE]
    return [*adapters, *(part for part in whole if not any(isinstance(m, LoraLinear) for m in part.modules())), *lanes]


def bases(model: nn.Module) -> list[nn.Linear]:
    """The frozen layers that a model shares with others."""
    return [module.base for module in model.modules() if isinstance(module, LoraLinear)]


def halve(model: nn.Module) -> None:
    """Hold the frozen matrices in bfloat16.

    Under autocast nothing changes by it: products are made of matrices rounded to bfloat16 in any case. Norms and
    modulation stay as they are.
    """
    for module in (*model.modules(), *bases(model)):
        if isinstance(module, nn.Linear | nn.Conv3d) and not module.weight.requires_grad:
            module.to(torch.bfloat16)


def _layers(model: AvatarModel, config: LoraConfig) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """The linear layers that are adapted, each with its parent and its name there."""
    for block in model.transformer.blocks:
        for target in config.targets:
            part: nn.Module | None = getattr(block, target, None)  # a model without text has no cross_attn
            if part is not None:
                yield from ((part, name, child) for name, child in part.named_children() if type(child) is nn.Linear)
