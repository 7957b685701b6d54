"""What a recipe costs before it starts: parameters, memory per GPU, work per step, days.

Parameters are counted on models built without memory (on the meta device). Work is by formula, see `training.work`;
tests hold it to what the steps really do (`count`). Of the activations one block is counted, forward and backward at
full size on the meta device, and multiplied by the passes whose graphs are alive together. Weights, gradients and
optimiser states are bytes per parameter, divided among the GPUs; but what is at work is not divided, see `working_of`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from streamavatar.data.latents import LatentSet
from streamavatar.draws import Draws
from streamavatar.models.avatar import AvatarModel
from streamavatar.models.discriminator import Discriminator, QFormer, default_taps
from streamavatar.models.memory import RESERVE
from streamavatar.models.text import LENGTH
from streamavatar.models.transformer import Conditions
from streamavatar.ops.attention import using
from streamavatar.training.lora import adapted, bases
from streamavatar.training.methods.teacher import trainable
from streamavatar.training.parallel import CPU
from streamavatar.training.recipe import Recipe
from streamavatar.training.trainer import Method, TrainConfig
from streamavatar.training.work import Passes

META = torch.device("meta")
WEIGHT, GRADIENT, ADAM, AVERAGE, HALF = 4, 4, 8, 4, 2
"""Bytes per parameter: float32 master weights, gradients, two moments and the average; bfloat16 where frozen."""


@dataclass(frozen=True)
class Gpu:
    """Dense bfloat16 TFLOP/s and gigabytes (10^9), from the makers' data sheets."""

    tflops: float
    gigabytes: float


GPUS = {
    "a100": Gpu(312, 80),
    "h100": Gpu(989, 80),
    "h200": Gpu(989, 141),
    "b200": Gpu(2250, 180),
    "l40s": Gpu(362, 48),
    "rtx4090": Gpu(165, 24),
}


@dataclass(frozen=True)
class Role:
    """One network of a stage, without its codec and audio encoder.

    Attributes:
        parameters: of its own; layers that it shares with another role count there.
        trained: those that an optimiser moves.
    """

    name: str
    parameters: int
    trained: int


@dataclass(frozen=True)
class Step:
    """One optimiser step of one clip: FLOP, and bytes of activations alive at most."""

    flop: float
    activations: float


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU.

    Attributes:
        weights: of all roles, float32 where trained and bfloat16 where frozen; the GPU's share.
        gradients, optimizer, average: of what is trained; the GPU's share.
        given: codec and audio encoder of every role, float32, on every GPU.
        working: weights and gradients that are at work, undivided; see :func:`working_of`.
        activations: of one clip.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    given: int
    working: int
    activations: int

    @property
    def total(self) -> int:
        return sum(vars(self).values()) + RESERVE


@dataclass(frozen=True)
class StageCost:
    """A stage on some GPUs.

    Attributes:
        stage, steps, batch: of the recipe; for `pairs`, clips in all.
        clips_per_gpu: one after the other, their gradients accumulated.
        flop: per clip and step, the mean over the players' turns.
        roles, memory: empty and None for a stage without optimiser.
        seconds: of the whole stage.
    """

    stage: str
    steps: int
    batch: int
    clips_per_gpu: int
    flop: float
    seconds: float
    roles: tuple[Role, ...] = ()
    memory: Memory | None = None


# counting ------------------------------------------------------------------------------------------


class _HalfInputs(TorchFunctionMode):
    """Products take their inputs in the weights' type, as mixed precision casts them at a module's door."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.linear and args[0].dtype != args[1].dtype:
            args = (args[0].to(args[1].dtype), *args[1:])
        return func(*args, **(kwargs or {}))


class Counter(TorchDispatchMode):
    """FLOP of what runs inside, and bytes of what it makes that are in use at the same time (to 1 %).

    PyTorch's own `FlopCounterMode` counts the same, but follows modules and so stumbles over a pass without gradient
    whose conditions have one.

    Args:
        known: tensors that are counted elsewhere.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.flop = self.peak = self._now = 0
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self._known = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.flop += formula(*args, **(kwargs or {}), out_val=out)
        for value in tree_leaves(out):  # views share their storage
            if isinstance(value, Tensor):
                self._enter(value.untyped_storage())
        return out

    def _enter(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        old = self._storages.get(key)
        if key in self._known or (old is not None and not old[0].expired()):
            return
        self._now += storage.nbytes() - (old[1] if old else 0)
        self._storages[key] = (StorageWeakRef(storage), storage.nbytes())
        if self._now > 1.01 * self.peak:
            self.peak = max(self.peak, self.alive())

    def alive(self) -> int:
        """Bytes in use now."""
        self._storages = {k: entry for k, entry in self._storages.items() if not entry[0].expired()}
        self._now = sum(size for _, size in self._storages.values())
        return self._now


def count(method: Method, step: int, batch: int = 1) -> Step:
    """What a step of a method takes, forward and backward, on the device where it is.

    Every parameter that is trained gets a gradient first, so that these are not counted among the activations.
    """
    networks = [network for network in vars(method).values() if isinstance(network, nn.Module)]
    known = [t for network in networks for t in (*network.parameters(), *network.buffers())]
    known += [t for network in networks for base in bases(network) for t in base.parameters()]
    for parameter in known:
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    known += [t.grad for t in known if t.grad is not None]
    known += [t for value in vars(method).values() for t in _tensors(value)]
    device = known[0].device
    draws = _Shapes(torch.Generator(), where=device)
    with Counter(known) as counter, device, _HalfInputs():
        method.loss(step, batch, draws)["loss"].backward()
    return Step(counter.flop, counter.peak)


@dataclass(frozen=True)
class _Shapes(Draws):
    """Draws on a device that has no generator, such as meta."""

    where: torch.device = CPU

    @property
    def device(self) -> torch.device:
        return self.where


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, LatentSet):
        return list(vars(value).values())
    return [value] if isinstance(value, Tensor) else []


# parameters and memory -----------------------------------------------------------------------------


def _model(recipe: Recipe, layers: int) -> AvatarModel:
    """The recipe's model with so many layers and without memory."""
    with META:
        made = AvatarModel(replace(recipe.model, transformer=replace(recipe.model.transformer, layers=layers)))
    trainable(made)
    return made


def roles_of(recipe: Recipe, stage: str) -> tuple[Role, ...]:
    """The networks of a stage; with LoRA also the base that they share."""
    depth, few = recipe.model.transformer.layers, 3
    small, large = (_roles(recipe, stage, n) for n in (few, few + 1))
    return tuple(
        Role(
            a.name,
            a.parameters + (depth - few) * (b.parameters - a.parameters),
            a.trained + (depth - few) * (b.trained - a.trained),
        )
        for a, b in zip(small, large, strict=True)
    )


def _roles(recipe: Recipe, stage: str, layers: int) -> list[Role]:
    base = _model(recipe, layers)
    model = base
    if recipe.lora.rank:
        model = adapted(base, recipe.lora)
        trainable(model)
    own = _role("student" if stage != "teacher" else "teacher", model)
    out = [own]
    if stage == "sid":
        out.append(replace(own, name="fake score"))
    if stage == "adversarial":
        with META:
            refinement = recipe.refinement
            judge = Discriminator(model.transformer, default_taps(layers), refinement.branches, refinement.width)
        judge.backbone.head.requires_grad_(False)
        out.append(_role("discriminator", judge))
    if stage == "sid" or recipe.lora.rank:
        name = "real score" if stage == "sid" else "base"
        out.append(replace(_role(name, base), trained=0))
    return out


def _role(name: str, network: nn.Module) -> Role:
    parts: list[nn.Module] = [network]
    if isinstance(network, AvatarModel):
        parts = [network.transformer, network.audio.talk, network.audio.listen]
    sizes = [(p.numel(), p.requires_grad) for part in parts for p in part.parameters()]
    return Role(name, sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained))


@dataclass(frozen=True)
class Kept:
    """Bytes of one block and one clip: what the graph keeps, its input, and what is alive at most with its gradient."""

    graph: int
    input: int
    peak: int


def block_memory(recipe: Recipe, latents: int, keys: int, *, frozen: bool = False) -> Kept:
    """Measured on the meta device; `latents` latents that see `keys`. Frozen weights need less of the inputs."""
    g, config = recipe.model.geometry, recipe.model.transformer
    model = _model(recipe, 1).bfloat16()
    if frozen:
        model.requires_grad_(False)
    half = {"dtype": torch.bfloat16, "device": META}
    shape = (1, latents, recipe.model.audio.tokens, config.audio_dim)
    tokens = torch.empty(shape, requires_grad=True, **half)  # type: ignore[call-overload]
    text = torch.empty(1, LENGTH, config.dim, **half) if config.text_dim else None  # type: ignore[call-overload]
    x = torch.empty(1, latents * g.tokens_per_latent, config.dim, requires_grad=True, **half)  # type: ignore[call-overload]
    e = torch.empty(1, latents, 6, config.dim, requires_grad=True, **half)  # type: ignore[call-overload]
    cache = model.ring_cache()
    table = cache._angles(tuple(range(latents)))
    view = _Context(keys - latents, g.tokens_per_latent, config.heads, config.head_dim) if keys > latents else None
    given = (Conditions(tokens, tokens, x, text), text)
    known = [*model.parameters(), x, e, tokens, *table]
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    with using("flash"), _HalfInputs(), Counter(known) as counter:
        out = model.transformer.blocks[0](x, e, table, given, view, None)
        graph = counter.alive()
        out.backward(torch.empty_like(out))
    return Kept(graph, x.nbytes, counter.peak)


def former_memory(recipe: Recipe) -> int:
    """Bytes that the graph of one Q-Former keeps of one clip, measured on the meta device."""
    t, g = recipe.model.transformer, recipe.model.geometry
    with META:
        former = QFormer(t.dim, t.heads, t.eps).bfloat16()
        rows = torch.empty(1, recipe.window * g.tokens_per_latent, t.dim, dtype=torch.bfloat16)
    latents = 1 if recipe.refinement.branches == "single" else recipe.window
    with using("flash"), _HalfInputs(), Counter([*former.parameters(), rows]) as counter:
        kept = former(rows, latents)
        return counter.alive() - kept.nbytes


class _Context:
    """A view of a cache with keys and values of other latents."""

    needs_raw = False

    def __init__(self, latents: int, tokens: int, heads: int, head_dim: int) -> None:
        self._other = torch.empty(1, heads, latents * tokens, head_dim, dtype=torch.bfloat16, device=META)

    def attend(self, layer: int, k: Tensor, k_rotated: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat((self._other, k_rotated), dim=2), torch.cat((self._other, v), dim=2)


def activations_of(recipe: Recipe, stage: str) -> float:
    """Bytes of one clip's activations alive at most, over the kinds of steps."""
    passes, layers, again = Passes(recipe), recipe.model.transformer.layers, getattr(recipe, stage).recompute
    size = recipe.model.geometry.chunk_latents
    window = sum(len(recipe.model.geometry.chunk_span(c)) for c in passes.positions.window(passes.chunks).chunks)
    whole = block_memory(recipe, recipe.window, recipe.window)
    chunk = block_memory(recipe, size, window)
    judge = block_memory(recipe, recipe.window, recipe.window, frozen=True)
    whole_kept, chunk_kept, judge_kept = (k.input if again else k.graph for k in (whole, chunk, judge))
    context = 2 * whole.input  # keys and values of all chunks, which the graphs or the replay still need
    rolled = passes.chunks * chunk_kept + context
    if stage == "teacher" and not recipe.teaching.causal:
        return layers * whole_kept + whole.peak
    if stage in ("teacher", "student"):
        return layers * rolled + chunk.peak
    if stage == "sid":
        scores, peak = 2 * judge_kept + whole_kept, whole.peak
        if recipe.distillation.objective == "dmd":
            scores, peak = 0, chunk.peak
        if recipe.distillation.grad_mode == "replay":  # the scores' graph is gone when a chunk's is made again
            student = layers * (context + max(scores, chunk_kept)) + peak
        else:
            student = layers * (rolled + scores) + peak
        return max(student, layers * whole_kept + whole.peak)
    formers = 0 if again else len(default_taps(layers)) * former_memory(recipe)
    critic, student = 4 * (layers * whole_kept + formers), layers * (rolled + whole_kept) + formers
    return max(critic, student) + whole.peak


def activations_of_both(recipe: Recipe, stage: str) -> tuple[float, float]:
    """Bytes of a clip's activations with blocks recomputed, and with all kept."""
    config = getattr(recipe, stage)
    with_, without = (replace(recipe, **{stage: replace(config, recompute=again)}) for again in (True, False))
    return activations_of(with_, stage), activations_of(without, stage)


def waiting_of(recipe: Recipe, stage: str, roles: Iterable[Role]) -> int:
    """Bytes of gradients that wait, in bfloat16, until every pass of a graph has added to them.

    Where one graph holds several passes of a network (the chunks of a clip; real, fake and disturbed clips), its
    gradients are only complete, and only then divided, when the last of these passes is done.
    """
    sizes = {role.name: role.trained for role in roles}
    if stage == "teacher":
        several = [sizes["teacher"]] if recipe.teaching.causal else []
    elif stage == "sid":  # but for DMD with recomputation, larger graphs are gone by then: the scores', or a chunk's
        how = (recipe.distillation.objective, recipe.distillation.grad_mode, getattr(recipe, stage).recompute)
        several = [sizes["student"]] if how == ("dmd", "exit_step", True) else []
    else:
        several = [size for name, size in sizes.items() if name != "base"]
    return HALF * max(several, default=0)


def working_of(recipe: Recipe, stage: str, roles: Iterable[Role], gpus: int) -> int:
    """Bytes of weights and gradients that lie whole on each GPU while a step runs.

    Among several GPUs two blocks in bfloat16 and their gradients in float32, or all of a network's weights where its
    chunks reach into each other (`Method.passes_meet`); on one GPU the bfloat16 copies of what is trained. And in
    either case the gradients that wait, see :func:`waiting_of`.
    """
    roles = list(roles)
    waiting = waiting_of(recipe, stage, roles)
    if gpus == 1:
        return HALF * sum(role.trained for role in roles) + waiting
    if recipe.lora.rank:
        return waiting
    transformer = _model(recipe, 1).transformer
    block = sum(p.numel() for p in transformer.blocks[0].parameters())
    outside = sum(p.numel() for p in transformer.parameters()) - block
    if stage == "student" or (stage == "teacher" and recipe.teaching.causal):
        return HALF * roles[0].parameters + GRADIENT * 2 * block + waiting
    return (HALF + GRADIENT) * 2 * block + HALF * outside + waiting


def memory_of(recipe: Recipe, stage: str, roles: Iterable[Role], activations: float, gpus: int) -> Memory:
    """Bytes on each of `gpus` GPUs among which weights and optimiser states are divided.

    With LoRA the shared base is not divided: it lies on every GPU.
    """
    roles = list(roles)
    lora = bool(recipe.lora.rank)
    trained = sum(role.trained for role in roles)
    shared = sum(role.parameters for role in roles if not role.trained) if lora else 0
    frozen = sum(role.parameters - role.trained for role in roles) - shared
    model = _model(recipe, 1)
    given = sum(p.nbytes for part in (model.codec, model.audio.encoder) for p in part.parameters())
    return Memory(
        weights=-(-(WEIGHT * trained + HALF * frozen) // gpus) + HALF * shared,
        gradients=-(-GRADIENT * trained // gpus),
        optimizer=-(-ADAM * trained // gpus),
        average=-(-AVERAGE * trained // gpus),
        given=given * (1 if lora else len(roles)),  # adapted copies share them
        working=working_of(recipe, stage, roles, gpus),
        activations=round(activations),
    )


# the whole recipe ----------------------------------------------------------------------------------

STAGES = ("teacher", "pairs", "student", "sid", "adversarial")
"""The stages that run the transformer."""


def recipe_cost(
    recipe: Recipe, stages: Iterable[str] = STAGES, gpus: int = 1, gpu: Gpu = GPUS["h100"], utilisation: float = 0.4
) -> list[StageCost]:
    """The stages among `stages` that a recipe has and that run the transformer, in their order.

    Args:
        gpus: among which a batch and the weights are divided.
        gpu: its kind.
        utilisation: share of its products per second that training reaches.
    """
    if recipe.teacher is None:
        return []  # the transformer is not trained
    passes, wanted, out = Passes(recipe), set(stages), []
    rate = utilisation * gpu.tflops * 1e12
    for name in STAGES:
        config: TrainConfig | None = None if name == "pairs" else getattr(recipe, name)
        if name not in wanted or (config is None and name != "pairs"):
            continue
        if config is None:
            each, flop = -(-recipe.pairs // gpus), passes.solved()
            out.append(StageCost(name, 1, recipe.pairs, each, flop, each * flop / rate))
            continue
        flop = sum(share * work for work, share in passes.turns(name))
        each = -(-config.batch // gpus)
        roles = roles_of(recipe, name)
        memory = memory_of(recipe, name, roles, activations_of(recipe, name), gpus)
        seconds = config.steps * each * flop / rate
        out.append(StageCost(name, config.steps, config.batch, each, flop, seconds, roles, memory))
    return out
