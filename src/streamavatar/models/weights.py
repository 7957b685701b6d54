"""Wan2.2's weights in our transformer (paper, 1.1): names both ways, and loading from every form they are kept in.

Our parameters carry the names of Wan's own release; added are the audio modules (`norm_audio`, `talk_attn`,
`listen_attn`) that Wan lacks. Diffusers renamed the rest. Causal students (Self-Forcing, LongLive) keep Wan's names
behind the prefixes of their wrappers, inside a dictionary of several networks.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from streamavatar.config import TransformerConfig
from streamavatar.errors import UserError
from streamavatar.models.transformer import AudioAttention, Transformer

Naming = Literal["wan", "diffusers"]
Shapes = Mapping[str, tuple[int, ...]]

# names ---------------------------------------------------------------------------------------------


def _attention(ours: str, theirs: str) -> dict[str, str]:
    parts = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}
    return {f"{ours}.{a}": f"{theirs}.{b}" for a, b in parts.items()}


_OUTSIDE = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
}
"""Wan's name to diffusers', of modules and of the parameters that stand alone."""

_INSIDE = {
    **_attention("self_attn", "attn1"),
    **_attention("cross_attn", "attn2"),
    "norm3": "norm2",  # diffusers numbers the norms by use; its own norm3 has no weights
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "modulation": "scale_shift_table",
}
"""The same within a block."""

_BACK_OUTSIDE = {theirs: ours for ours, theirs in _OUTSIDE.items()}
_BACK_INSIDE = {theirs: ours for ours, theirs in _INSIDE.items()}

_BLOCK = re.compile(r"(blocks\.\d+\.)(.+)")
_AUDIO = re.compile(r"blocks\.\d+\.(norm_audio|talk_attn|listen_attn)\.")
_INNER = re.compile(r"(?:^|(?<=\.))(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")
_OUTER = re.compile(r"^(?:(?:module|model|generator_ema|generator|transformer|diffusion_model)\.)+")


def is_audio(name: str) -> bool:
    """Whether a parameter belongs to the audio attention, which Wan lacks."""
    return _AUDIO.match(name) is not None


def _translate(name: str, outside: Mapping[str, str], inside: Mapping[str, str]) -> str | None:
    block = _BLOCK.fullmatch(name)
    prefix, stem, table = (block[1], block[2], inside) if block else ("", name, outside)
    if stem in table:
        return prefix + table[stem]
    module, _, leaf = stem.rpartition(".")
    return f"{prefix}{table[module]}.{leaf}" if module in table and leaf in ("weight", "bias") else None


def to_diffusers(name: str) -> str | None:
    """Diffusers' name of one of our (and Wan's) parameters; None where diffusers has no such thing."""
    return _translate(name, _OUTSIDE, _INSIDE)


def from_diffusers(name: str) -> str | None:
    """Our name of a parameter of diffusers' WanTransformer3DModel; None for what we do not have."""
    return _translate(name, _BACK_OUTSIDE, _BACK_INSIDE)


def strip_wrappers(name: str) -> str:
    """A name without what FSDP, torch.compile, activation checkpointing and wrapper classes put into it."""
    return _OUTER.sub("", _INNER.sub("", name))


def backbone_state(transformer: Transformer, naming: Naming = "wan") -> dict[str, Tensor]:
    """The backbone's tensors (not copies) under Wan's or diffusers' names; the audio attention is left out."""
    state = {name: value for name, value in transformer.state_dict().items() if not is_audio(name)}
    if naming == "wan":
        return state
    names = {name: to_diffusers(name) for name in state}
    strange = [name for name, theirs in names.items() if theirs is None]
    if strange:
        raise UserError(f"{strange[0]} has no name in diffusers; export with naming='wan'")
    return {str(theirs): state[name] for name, theirs in names.items()}


@dataclass(frozen=True)
class Match:
    """Which stored tensor is which of our parameters.

    Attributes:
        naming: whose names were found.
        names: our name to the stored name, in our order.
        initial: our parameters that the file does not have: the audio attention, whole, or nothing.
    """

    naming: Naming
    names: Mapping[str, str]
    initial: tuple[str, ...]


def match(expected: Shapes, found: Shapes, source: str) -> Match:
    """Find every expected tensor among the stored ones, whatever naming and wrappers they have.

    Raises:
        UserError: naming `source` and the tensors that are missing, unexpected or of the wrong shape.
    """
    plain: dict[str, str] = {}
    for name in found:
        first = plain.setdefault(strip_wrappers(name), name)
        if first != name:
            raise UserError(f"{source}: {first} and {name} are the same parameter; keep one network in the file")
    translated = {short: from_diffusers(short) for short in plain}
    hits = {"wan": sum(s in expected for s in plain), "diffusers": sum(n in expected for n in translated.values())}
    if not any(hits.values()):
        example = f"the first is {min(found)}" if found else "it has no tensors"
        raise UserError(
            f"{source}: neither Wan's nor diffusers' names of a transformer ({example}); give the weights "
            "of the diffusion transformer, not of the text encoder, the VAE or a LoRA"
        )
    naming: Naming = "diffusers" if hits["diffusers"] > hits["wan"] else "wan"
    ours = {(translated[short] if naming == "diffusers" else short) or "": name for short, name in plain.items()}

    missing = [name for name in expected if name not in ours]
    initial = tuple(name for name in missing if is_audio(name))
    if len(initial) == sum(map(is_audio, expected)):
        missing = [name for name in missing if not is_audio(name)]
    else:
        initial = ()
    problems = [f"{_both(name, naming)} is missing, expected shape {tuple(expected[name])}" for name in missing]
    for name in (name for name in expected if name in ours):
        want, have = tuple(expected[name]), tuple(found[ours[name]])
        if want != have:
            problems.append(f"{ours[name]} has shape {have}, expected {want}")
    known = {ours[name] for name in expected if name in ours}
    problems += [f"{name} of shape {tuple(found[name])} is unexpected" for name in found if name not in known]
    if problems:
        _refuse(source, problems)
    return Match(naming, {name: ours[name] for name in expected if name in ours}, initial)


def _both(name: str, naming: Naming) -> str:
    theirs = to_diffusers(name) if naming == "diffusers" else None
    return f"{theirs} (our {name})" if theirs and theirs != name else name


def _refuse(source: str, problems: list[str]) -> None:
    raise UserError(
        f"{source}: does not fit the configuration: {'; '.join(together(problems))}. "
        "Use the configuration that these weights were made for"
    )


_NUMBER = re.compile(r"(?:(?<=\.)|\b)(\d+)(?=\.[\w.]*[a-z_])")
_NAME = re.compile(r"[A-Za-z_][\w.]*\.[\w.]*\w")


def together(lines: Iterable[str]) -> list[str]:
    """Lines about tensors, in short but with every name: those that differ in the number of a block are written as
    one, `blocks.[0-2,5].norm3.bias is missing`.
    """
    groups: dict[str, list[int]] = {}
    for line in lines:
        numbers: set[int] = set()

        def number(match: re.Match[str], numbers: set[int] = numbers) -> str:
            numbers.add(int(match[1]))
            return "[]"

        pattern = _NAME.sub(lambda name: _NUMBER.sub(number, name[0], count=1), line)
        if len(numbers) == 1:
            groups.setdefault(pattern, []).append(numbers.pop())
        else:
            groups.setdefault(line, [])
    return [pattern.replace("[]", _ranges(sorted(numbers))) for pattern, numbers in groups.items()]


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] to "[0-2,5]", a single number to itself."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return text if len(numbers) < 2 else f"[{text}]"


# files ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """Tensors in files, read one at a time.

    Attributes:
        shapes: of every tensor.
        read: the tensor of a name, on the CPU.
        part: the network that was chosen, where the file holds several.
    """

    shapes: Shapes
    read: Callable[[str], Tensor]
    part: str | None = None


PARTS = ("generator_ema", "generator", "model_ema", "ema", "model", "state_dict", "module")
"""Where training checkpoints keep a network, in order of preference: averaged weights first."""

_PICKLES = (".pth", ".pt", ".bin", ".ckpt")
_FLOATS = {"F64", "F32", "F16", "BF16", torch.float64, torch.float32, torch.float16, torch.bfloat16}


def _check_precision(path: Path, name: str, dtype: object) -> None:
    if dtype not in _FLOATS:
        raise UserError(
            f"{path}: {name} is stored as {dtype}; use weights in float32, bfloat16 or float16, not a quantised release"
        )


@contextmanager
def open_weights(path: Path, part: str | None = None) -> Iterator[Stored]:
    """Open weights without reading them: a file (.safetensors, .pth, .pt) or a folder with one or with shards.

    Args:
        path: the file, the index of shards, the folder of them, or a diffusers pipeline's folder.
        part: the network to take from a checkpoint of several, such as "generator"; None takes the first of `PARTS`.

    Raises:
        UserError: a missing, damaged or ambiguous file.
    """
    files = _files(path)
    try:
        if files[0].suffix in _PICKLES:
            yield _open_pickle(files[0], part)
            return
        if part is not None:
            raise UserError(f"{path}: a safetensors file holds one network; leave out part={part!r}")
        with ExitStack() as stack:
            yield _open_safetensors(files, stack)
    except (OSError, SafetensorError) as error:
        where = next(filter(None, map(_end_of, files)), f"cannot read weights ({error})")
        raise UserError(f"{path}: {where}; copy or download the file again") from error


def _end_of(path: Path) -> str:
    """Where a safetensors file that was cut short ends; nothing if it is whole, or damaged in another way."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            begin = 8 + int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(begin - 8)) if begin <= size else None
        if header is None:
            return f"{path.name} ends within its list of tensors" if size > 8 and begin < 2**27 else ""
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        cut = [(entry["data_offsets"][1], name) for name, entry in entries.items()]
        _, name = min((end, name) for end, name in cut if begin + end > size)
        whole = begin + max(end for end, _ in cut)
        return f"{path.name} ends within {name}, shape {tuple(entries[name]['shape'])}: {size} of {whole} bytes"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return ""


def _files(path: Path) -> list[Path]:
    """The files that hold the tensors of `path`: several safetensors, or one of anything."""
    if path.is_dir():
        return _files_in(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give Wan's weights, a file or a folder")
    if path.name.endswith(".index.json"):
        return _shards(path)
    if path.suffix != ".safetensors" and path.suffix not in _PICKLES:
        raise UserError(f"{path}: not a weights file; give .safetensors, {', '.join(_PICKLES)} or a folder")
    return [path]


def _files_in(folder: Path) -> list[Path]:
    if (folder / "model_index.json").is_file():  # a diffusers pipeline
        return _files(folder / "transformer")
    for pattern in ("*.safetensors.index.json", "*.safetensors", *(f"*{suffix}" for suffix in _PICKLES)):
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            raise UserError(
                f"{folder}: {len(found)} files {pattern}, the first {found[0].name}; give one of them, "
                "or put the index of the shards beside them"
            )
        if found:
            return _files(found[0])
    raise UserError(f"{folder}: no weights in this folder; give the folder that holds *.safetensors")


def _shards(index: Path) -> list[Path]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted({str(name) for name in weight_map.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index}: not an index of shards ({error!r}); download it again") from error
    for name in names:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise UserError(f"{index}: shard {name} is missing; download it into {index.parent}")
    if not names:
        raise UserError(f"{index}: names no shards; download it again")
    return [index.parent / name for name in names]


def _open_safetensors(files: list[Path], stack: ExitStack) -> Stored:
    homes: dict[str, Any] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        file = stack.enter_context(safe_open(path, framework="pt"))
        for name in file.keys():  # noqa: SIM118 - not a mapping
            if name in homes:
                raise UserError(f"{path}: {name} is in another shard too; download the shards again")
            part = file.get_slice(name)
            _check_precision(path, name, part.get_dtype())
            homes[name], shapes[name] = file, tuple(part.get_shape())
    return Stored(shapes, lambda name: homes[name].get_tensor(name))


def _open_pickle(path: Path, part: str | None) -> Stored:
    try:  # mapped, so that a tensor takes memory only while it is read
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None)
    except Exception as error:  # damage shows itself as almost anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{path}: cannot read weights ({reason}); give a file that holds tensors alone, undamaged"
        ) from error
    chosen = None
    while isinstance(state, dict) and not any(isinstance(value, Tensor) for value in state.values()):
        inner = [key for key, value in state.items() if isinstance(value, dict)]
        wanted = [part] if part is not None and chosen is None else PARTS
        key = next((key for key in wanted if key in inner), None)
        if key is None:
            raise UserError(
                f"{path}: no network among {sorted(map(str, state))}; name one by part=..., "
                "or merge a LoRA into its base first"
            )
        chosen = key if chosen is None else f"{chosen}.{key}"
        state = state[key]
    if part is not None and chosen is None:
        raise UserError(f"{path}: holds one network and no part {part!r}; leave out part")
    if not isinstance(state, dict):
        raise UserError(f"{path}: holds a {type(state).__name__}; give a dictionary of tensors")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{path}: {name} is a {type(value).__name__}, not a tensor; give a dictionary of tensors")
        _check_precision(path, name, value.dtype)
    tensors: dict[str, Tensor] = state
    return Stored({name: tuple(value.shape) for name, value in tensors.items()}, tensors.__getitem__, chosen)


def check_config(path: Path, config: TransformerConfig) -> None:
    """What no shape shows, asked of the config.json that Wan and diffusers put beside their weights.

    Args:
        path: of the weights, a file or a folder.
        config: what they should be made for.

    Raises:
        UserError: they are made for something else.
    """
    for folder in (path, path / "transformer") if path.is_dir() else (path.parent,):
        _check_config_in(folder, config)


def _check_config_in(path: Path, config: TransformerConfig) -> None:
    file = path / "config.json"
    if not file.is_file():
        return
    try:
        values: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not readable ({error}); download it again") from error
    if not isinstance(values, dict) or "Wan" not in str(values.get("_class_name")):
        return
    for name, ours in (("num_heads", config.heads), ("num_attention_heads", config.heads), ("eps", config.eps)):
        if values.get(name, ours) != ours:
            raise UserError(
                f"{file}: {name} is {values[name]}, expected {ours}; "
                "use the configuration that these weights were made for"
            )


# loading -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loaded:
    """What `load_backbone` did.

    Attributes:
        naming: whose names the file has.
        part: the network that was taken, where the file holds several.
        tensors: how many were read.
        initial: our parameters that the file lacks and that kept (on the meta device: got) their initial values.
    """

    naming: Naming
    part: str | None
    tensors: int
    initial: tuple[str, ...]


@torch.no_grad()
def load_backbone(
    transformer: Transformer, path: Path | str, *, part: str | None = None, device: torch.device | str = "cpu"
) -> Loaded:
    """Read Wan's weights into a transformer, tensor by tensor and in its own precision.

    Everything is checked before anything is written. Weights on the meta device are made on `device` as they are
    read, so that there is never a second copy (build an optimiser afterwards: they are new parameters); others stay
    where they are. Shard with FSDP afterwards. Audio attention that the file lacks stays as it is: fresh, its
    output is zero and the transformer computes what Wan's does.

    Args:
        transformer: of the configuration the weights were made for.
        path, part: see `open_weights`.
        device: for weights on the meta device.

    Raises:
        UserError: a file that is missing, damaged, or does not fit; it names the tensors.
    """
    path = Path(path)
    check_config(path, transformer.config)
    targets = transformer.state_dict()
    with open_weights(path, part) as stored:
        found = match({name: tuple(value.shape) for name, value in targets.items()}, stored.shapes, str(path))
        for name, theirs in found.names.items():
            place(transformer, name, stored.read(theirs), device)
        network = stored.part
    _start_audio(transformer, [name for name in found.initial if targets[name].is_meta], device)
    return Loaded(found.naming, network, len(found.names), found.initial)


def place(
    module: nn.Module, name: str, value: Tensor, device: torch.device | str, dtype: torch.dtype | None = None
) -> None:
    """Copy a value into a parameter or buffer; one on the meta device is made first, in `dtype` (or its own)."""
    owner, _, leaf = name.rpartition(".")
    home = module.get_submodule(owner)
    old: Tensor = getattr(home, leaf)
    if not old.is_meta:
        old.copy_(value)
        return
    new = torch.empty_like(old, dtype=dtype, device=device).copy_(value)
    setattr(home, leaf, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)


def fresh_audio(config: TransformerConfig, layer: int) -> dict[str, Tensor]:
    """Initial values of a block's audio attention, by our names; its output is zero."""
    modules = nn.ModuleDict(
        {
            "norm_audio": nn.LayerNorm(config.dim, config.eps),
            "talk_attn": AudioAttention(config.dim, config.heads, config.audio_dim, config.eps),
            "listen_attn": AudioAttention(config.dim, config.heads, config.audio_dim, config.eps),
        }
    )
    return {f"blocks.{layer}.{name}": value for name, value in modules.state_dict().items()}


def _start_audio(transformer: Transformer, names: list[str], device: torch.device | str) -> None:
    """Initial values for audio attention on the meta device: those of a fresh one, whose output is zero."""
    wanted = set(names)
    for layer in range(transformer.config.layers):
        with torch.device(device):
            fresh = fresh_audio(transformer.config, layer)
        for name in wanted & fresh.keys():
            place(transformer, name, fresh[name], device)
