"""Training on many processes: who takes part, how networks are split among them, and how their gradients meet.

The networks are single-process code. `shard` splits them from outside with PyTorch's FSDP2: each block, each lane's
projection and each discriminator is gathered when it runs and given back after. What is trained and not split (the
audio encoder, the codec) is small; every rank holds it, and its gradients are averaged.
"""

from __future__ import annotations

import gc
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from streamavatar.errors import UserError
from streamavatar.models.audio import LaneTokens
from streamavatar.models.discriminator import Discriminator
from streamavatar.models.transformer import Block, Transformer

CPU = torch.device("cpu")
UNITS = (Block, LaneTokens, Transformer, Discriminator)
"""Modules that are gathered as one; what a larger one shares with a smaller one belongs to the smaller."""

PATIENCE = timedelta(days=7)
"""How long ranks wait for the first one to make data."""


@dataclass(frozen=True)
class World:
    """The processes that train together, seen from one of them; by default it is alone.

    Attributes:
        device: of this rank.
        rank, size: which of how many.
        store: what ranks tell each other small things through.
    """

    device: torch.device = CPU
    rank: int = 0
    size: int = 1
    store: Store | None = None
    _calls: Iterator[int] = field(default_factory=itertools.count, repr=False, compare=False)

    @property
    def first(self) -> bool:
        """Whether this rank writes files and reports progress."""
        return self.rank == 0

    def once(self, work: Callable[[], Any]) -> Any:
        """Let the first rank do something while the others wait; all get its result, which JSON must carry.

        Raises:
            UserError: on every rank, if the work raised one.
        """
        if self.store is None:
            return work()
        key = f"once-{next(self._calls)}"
        if self.first:
            try:
                result = work()
            except Exception as error:
                self.store.set(key, json.dumps({"error": str(error)}))
                raise
            self.store.set(key, json.dumps({"result": result}))
            return result
        self.store.wait([key], PATIENCE)
        told = json.loads(self.store.get(key))
        if "error" in told:
            raise UserError(told["error"])
        return told["result"]

    def meet(self) -> None:
        """Wait until every rank has come as far."""
        if self.store is not None:
            key = f"meet-{next(self._calls)}"
            self.store.set(f"{key}-{self.rank}", "")
            self.store.wait([f"{key}-{rank}" for rank in range(self.size)], PATIENCE)

    def total(self, values: Tensor) -> Tensor:
        """The sum over ranks."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def mesh(self, shard: int = 0) -> DeviceMesh | None:
        """The ranks as a mesh: one row that splits the weights, or rows of `shard` that hold the same; None if alone.

        Raises:
            UserError: `shard` does not divide the number of ranks.
        """
        if self.size == 1:
            return None
        if self.size % (shard or 1):
            raise UserError(f"shard={shard} does not divide {self.size} ranks; give a divisor, or 0 for all")
        if shard in (0, self.size):
            return init_device_mesh(self.device.type, (self.size,), mesh_dim_names=("shard",))
        return init_device_mesh(self.device.type, (self.size // shard, shard), mesh_dim_names=("replicate", "shard"))


def join(device: torch.device, rank: int, size: int, host: str, port: int, *, attempt: int, serve: bool) -> World:
    """Meet the other ranks; call `leave` at the end.

    Args:
        device: of this rank.
        rank, size: which of how many.
        host, port: of the store at which they meet.
        attempt: how often the ranks have been restarted. A restart re-uses the store, and would find the addresses of
            dead processes in it if each attempt did not have a name space of its own.
        serve: whether this rank runs the store; a launcher may do so itself.
    """
    store = PrefixStore(f"attempt_{attempt}", TCPStore(host, port, size, is_master=serve))
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    # Checkpoints are coordinated on the CPU, also while the GPU goes on.
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, device_id=device if cuda else None)
    return World(device, rank, size, store)


def leave() -> None:
    """End what :func:`join` began."""
    dist.destroy_process_group()
    # What trained may be part of a cycle and hold a group, whose threads abort the process if they outlive Python.
    gc.collect()


def shard(network: nn.Module, mesh: DeviceMesh, *, bf16: bool, hold: bool = False) -> None:
    """Split a network among the ranks, in place; adapters and the like must be in it already.

    Weights stay in float32 where they are kept; with `bf16` they are gathered and used in bfloat16, and gradients are
    reduced in float32. What is split already is left alone, so networks may have parts in common.

    With `hold`, what the backward pass gathers stays until `release`: where later passes reach back into the middle of
    a block through its keys and values, no hook at its output would gather it again.
    """
    # Inputs are left as they are: timesteps need more than eight bits.
    policy = MixedPrecisionPolicy(torch.bfloat16 if bf16 else None, torch.float32, cast_forward_inputs=False)
    for part in reversed(list(network.modules())):  # the inner ones first
        if isinstance(part, UNITS) and not isinstance(part, FSDPModule):
            fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
            cast(FSDPModule, part).set_reshard_after_backward(not hold, recurse=False)
            if isinstance(part, Transformer):
                register_fsdp_forward_method(part, "tap")


def release(network: nn.Module) -> None:
    """Give back what a backward pass held."""
    for part in network.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor; a view."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; of one that is split every rank has to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(module: nn.Module, world: World) -> dict[str, Tensor]:
    """All of a module's state on the CPU of the first rank, nothing on the others; every rank has to ask."""
    values = {}
    for name, value in module.state_dict().items():
        full = whole(value)
        if world.first:
            values[name] = full.detach().cpu().contiguous().clone()
    return values


def average_gradients(parameters: Iterable[nn.Parameter], world: World) -> None:
    """Average the gradients of what is not split; FSDP has done so with the rest."""
    gradients = [p.grad for p in parameters if p.grad is not None and not isinstance(p.grad, DTensor)]
    if world.size == 1 or not gradients:
        return
    flat = world.total(torch.cat([g.flatten() for g in gradients])) / world.size
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


@torch.no_grad()
def clip_gradients(parameters: Sequence[nn.Parameter], limit: float, mesh: DeviceMesh | None) -> Tensor:
    """Scale gradients down to a norm of at most `limit`, over all shards; returns the norm before."""
    if mesh is None:
        return nn.utils.clip_grad_norm_(parameters, limit)
    gradients = [p.grad for p in parameters if p.grad is not None]
    split, kept = torch.zeros(2, device=local(gradients[0]).device).unbind()
    for gradient in gradients:
        part = split if isinstance(gradient, DTensor) else kept
        part += local(gradient).float().square().sum()
    dist.all_reduce(split, group=mesh["shard"].get_group())
    norm = (split + kept).sqrt()
    torch._foreach_mul_([local(g) for g in gradients], (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm
