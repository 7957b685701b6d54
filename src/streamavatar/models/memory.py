"""How much memory a model takes on its device, known before anything is loaded.

Nothing is estimated by formula: the model is built without memory (on the meta device), a chunk is made and decoded,
and every tensor that lives on the way is counted. Kernels' own workspaces are not seen; `RESERVE` stands for them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from streamavatar.config import ModelConfig, TaehvConfig, WanCodecConfig
from streamavatar.errors import UserError
from streamavatar.models.avatar import AvatarModel
from streamavatar.models.codec.choice import DECODERS, DecoderName, OtherConfig, decoder_file, read_config
from streamavatar.models.text import LENGTH
from streamavatar.models.transformer import Conditions

RESERVE = 2**30
"""CUDA's context, kernels' workspaces, and what an allocator loses."""


Part = Literal["all", "transformer", "codec"]
"""What is on the device: everything, or one of two where the codec has a device of its own."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on the device.

    Attributes:
        weights: of the model, shared by all sessions.
        cache: keys and values of one session, the text's among them.
        recorded: of one session's recorded passes.
        state: of one session's decoder.
        work: what is alive on the way, at most: a pass and a decoder side by side, or a picture being encoded.
        sessions: how many.
    """

    weights: int
    cache: int
    recorded: int
    state: int
    work: int
    sessions: int = 1

    @property
    def session(self) -> int:
        """Of one session."""
        return self.cache + self.recorded + self.state

    @property
    def total(self) -> int:
        return self.weights + self.sessions * self.session + self.work + RESERVE

    def __str__(self) -> str:
        parts = {
            "weights": self.weights,
            "cache": self.sessions * self.cache,
            "recorded passes": self.sessions * self.recorded,
            "decoder state": self.sessions * self.state,
            "work": self.work,
            "reserve": RESERVE,
        }
        shown = ", ".join(f"{name} {_gib(size)}" for name, size in parts.items() if size)
        return f"{_gib(self.total)} GiB ({shown})"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"


@lru_cache(maxsize=64)
def memory_plan(
    config: ModelConfig,
    decoder: DecoderName | OtherConfig = "full",
    sessions: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    part: Part = "all",
) -> MemoryPlan:
    """What a model and its sessions will take on a GPU.

    Args:
        config: of the model.
        decoder: "full", "light", or the sizes of a light or pruned decoder.
        sessions: live at the same time.
        dtype: of the transformer and the decoder.
        part: what is on this device.
    """
    if decoder == "pruned":
        raise ValueError("a pruned decoder has many sizes: give its configuration")
    other = TaehvConfig() if decoder == "light" else None if decoder == "full" else decoder
    with torch.device("meta"):
        model = AvatarModel(config, other if isinstance(other, TaehvConfig | WanCodecConfig) else None)
        _cast(model, dtype)
        codec = _bytes_in(model.codec)
        weights = _bytes_in(model) - codec
        cache = _bytes_in(vars(model.ring_cache()))
        if config.transformer.text_dim:
            size, layers = config.transformer, config.transformer.layers
            weights += LENGTH * size.text_dim * dtype.itemsize
            cache += 2 * layers * LENGTH * size.dim * dtype.itemsize
        with torch.no_grad():
            passing = _pass_peak(config, dtype)
            state, opening, decoding = _codec_peak(model)
    if part == "transformer":
        return MemoryPlan(weights, cache, passing, 0, passing, sessions)
    if part == "codec":
        return MemoryPlan(codec, 0, 0, state, max(opening, decoding), sessions)
    return MemoryPlan(weights + codec, cache, passing, state, max(opening, passing + decoding), sessions)


def _cast(model: AvatarModel, dtype: torch.dtype) -> None:
    dtype_of = model.precision(dtype)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(dtype_of(name))


def _pass_peak(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes at most alive in a pass of a chunk with the largest window; two layers show what any number takes."""
    thin = replace(config, transformer=replace(config.transformer, layers=min(2, config.transformer.layers)))
    model, g = AvatarModel(thin), config.geometry
    _cast(model, dtype)
    cells, text = (g.latent_height, g.latent_width), config.transformer.text_dim
    tokens = torch.empty(1, g.chunk_latents, config.audio.tokens, config.audio.dim, dtype=dtype)
    reference = torch.empty(1, g.latent_channels, 1, *cells, dtype=dtype)
    x = torch.empty(1, g.latent_channels, g.chunk_latents, *cells, dtype=dtype)
    conditions = Conditions(tokens, tokens, reference, torch.empty(1, LENGTH, text, dtype=dtype) if text else None)
    cache = model.ring_cache()
    view = cache.view(2 + model.positions.slots)
    with _Alive(model, vars(cache)) as alive:
        model.transformer.sample(x, torch.ones(1, g.chunk_latents), conditions, view)
    return alive.peak


def _codec_peak(model: AvatarModel) -> tuple[int, int, int]:
    """Bytes of a session's decoder state, and at most alive while a picture is encoded and while a chunk is decoded."""
    g = model.config.geometry
    with _Alive(model) as opening:
        latent, state = model.codec.open(torch.empty(1, 3, g.height, g.width))
    with _Alive(model, state) as decoding:
        model.codec.decode(latent.expand(-1, -1, g.chunk_latents, -1, -1), state)
    return _bytes_in(state), opening.peak, decoding.peak


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in a module, a dataclass or a mapping."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module):
        yield from (*value.parameters(), *value.buffers())
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors(inner)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))


def _bytes_in(value: Any) -> int:
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in _tensors(value)}.values())


class _Alive(TorchDispatchMode):
    """Counts the bytes of what operations make and what is still in use; views share their storage.

    Args:
        known: things whose tensors are counted elsewhere.
    """

    def __init__(self, *known: Any) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._known = {tensor.untyped_storage()._cdata for thing in known for tensor in _tensors(thing)}
        self._users: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {id(value) for value in tree_leaves((args, kwargs))}
        for value in tree_leaves(out):
            if isinstance(value, Tensor) and id(value) not in given:
                self._enter(value)
        return out

    def _enter(self, value: Tensor) -> None:
        storage = value.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._users[key] = self._users.get(key, 0) + 1
        if self._users[key] == 1:
            self._now += size
            self.peak = max(self.peak, self._now)
        weakref.finalize(value, self._leave, key, size)

    def _leave(self, key: int, size: int) -> None:
        self._users[key] -= 1
        if not self._users[key]:
            del self._users[key]
            self._now -= size


# before loading ------------------------------------------------------------------------------------


def free_memory(device: torch.device) -> int | None:
    """Free bytes of a GPU; None where nobody can tell."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


PlanOf = Callable[[DecoderName, int, Part], MemoryPlan | None]
"""The plan with a decoder, for so many sessions, of a part; None if that decoder is not there."""


def require_memory(
    folder: Path,
    config: ModelConfig,
    decoder: DecoderName,
    dtype: torch.dtype,
    device: torch.device,
    beside: torch.device | None = None,
    sessions: int = 1,
) -> None:
    """Refuse a model folder that does not fit, before it is loaded.

    Args:
        device: of the model; of the codec too if `beside` is None or the same.
        beside: of the codec.

    Raises:
        UserError: with what is needed, what is free, and which decoder or number of sessions would fit.
    """

    def plan_of(name: DecoderName, count: int, part: Part) -> MemoryPlan | None:
        if name == "full":
            return memory_plan(config, "full", count, dtype, part)
        path = decoder_file(folder, name)
        if not isinstance(config.codec, WanCodecConfig) or not path.is_file():
            return None
        return memory_plan(config, read_config(path), count, dtype, part)

    require_plan(config.name, plan_of, decoder, device, beside, sessions)


def require_plan(
    name: str,
    plan_of: PlanOf,
    decoder: DecoderName,
    device: torch.device,
    beside: torch.device | None = None,
    sessions: int = 1,
) -> None:
    """Refuse what does not fit; see `require_memory`."""
    split = beside is not None and beside != device
    places: list[tuple[torch.device, Part]] = [(device, "transformer" if split else "all")]
    if split:
        assert beside is not None
        places.append((beside, "codec"))
    for place, part in places:
        free = free_memory(place)
        if free is not None and decoder in DECODERS:  # loading says what is wrong with a decoder
            _require_on(place, part, free, name, plan_of, decoder, sessions)


def _require_on(
    device: torch.device, part: Part, free: int, name: str, plan_of: PlanOf, decoder: DecoderName, sessions: int
) -> None:
    plan = plan_of(decoder, sessions, part)
    if plan is None or plan.total <= free:
        return
    plans = {other: plan_of(other, sessions, part) for other in DECODERS if other != decoder}
    fits = [f"--decoder {other} ({_gib(p.total)} GiB)" for other, p in plans.items() if p and p.total <= free]
    room = free - (plan.total - sessions * plan.session)
    if sessions > 1 and (fewer := room // plan.session) >= 1:
        fits.insert(0, f"{fewer} session{'s' if fewer > 1 else ''}")
    alone = plan_of(decoder, sessions, "transformer")
    if part == "all" and alone and alone.total <= free:
        fits.append(f"--decoder-device with another GPU ({_gib(alone.total)} GiB here)")
    advice = f"what fits: {', '.join(fits)}" if fits else f"use a device with {_gib(plan.total)} GiB free"
    what = {"all": "", "transformer": "the transformer of ", "codec": "the codec of "}[part]
    raise UserError(
        f"{device}: {_gib(free)} GiB are free, but {what}{name} with the {decoder} decoder and {sessions} "
        f"session{'s' if sessions > 1 else ''} needs {plan}; {advice}"
    )
