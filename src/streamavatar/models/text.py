"""The prompt's embedding by umT5 (paper, 1.5), made once and kept in a file.

The prompt never changes, so run time needs no text encoder: `text.safetensors` holds the rows of the prompt's tokens,
and what reads it pads them with zeros to Wan's 512. The encoder (umT5-xxl has 5.7 billion weights) runs a block at a
time, each read from disk when its turn comes, in float32: a few gigabytes of memory and no GPU.
"""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from streamavatar.errors import UserError
from streamavatar.models.files import check, fill, shapes_of, write_safetensors
from streamavatar.models.wav2vec import require_transformers
from streamavatar.models.weights import Stored, open_weights

LENGTH = 512
"""Text tokens that Wan's transformer always sees."""

_FROM_WAN = (
    (r"token_embedding", "encoder.embed_tokens"),
    (r"blocks\.(\d+)\.norm1", r"encoder.block.\1.layer.0.layer_norm"),
    (r"blocks\.(\d+)\.attn\.(q|k|v|o)", r"encoder.block.\1.layer.0.SelfAttention.\2"),
    (r"blocks\.(\d+)\.pos_embedding\.embedding", r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias"),
    (r"blocks\.(\d+)\.norm2", r"encoder.block.\1.layer.1.layer_norm"),
    (r"blocks\.(\d+)\.ffn\.gate\.0", r"encoder.block.\1.layer.1.DenseReluDense.wi_0"),
    (r"blocks\.(\d+)\.ffn\.fc1", r"encoder.block.\1.layer.1.DenseReluDense.wi_1"),
    (r"blocks\.(\d+)\.ffn\.fc2", r"encoder.block.\1.layer.1.DenseReluDense.wo"),
    (r"norm", "encoder.final_layer_norm"),
    (r"shared", "encoder.embed_tokens"),
)
"""Modules of models_t5_umt5-xxl-enc-bf16.pth, as transformers calls them."""


def transformers_name(name: str) -> str:
    """A stored name, Wan's or transformers', as transformers calls it."""
    module, _, leaf = name.rpartition(".")
    for pattern, replacement in _FROM_WAN:
        if match := re.fullmatch(pattern, module):
            return f"{match.expand(replacement)}.{leaf}"
    return name


# the file ------------------------------------------------------------------------------------------


def read_text(path: Path, width: int) -> Tensor:
    """The prompt's embedding, padded with zeros: float32 [1, 512, width].

    Raises:
        UserError: the file is missing, damaged or of another width.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: this model has a text path; make it with: streamavatar assemble")
    try:
        with safe_open(path, framework="pt") as file:
            rows = file.get_tensor("text")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot read the text embedding ({error}); make it again") from error
    if rows.ndim != 2 or rows.shape[1] != width or len(rows) > LENGTH:
        raise UserError(f"{path}: text has shape {tuple(rows.shape)}, expected (at most {LENGTH}, {width})")
    return nn.functional.pad(rows.float(), (0, 0, 0, LENGTH - len(rows)))[None]


def write_text(path: Path, rows: Tensor, prompt: str = "", encoder: str = "") -> None:
    """Keep the embedding [tokens, width] of a prompt, with what made it where that is known."""
    shapes = {"text": (torch.float32, tuple(rows.shape))}
    write_safetensors(path, shapes, {"text": rows}.__getitem__, {"prompt": prompt, "encoder": encoder})


def made_by(path: Path) -> tuple[str, str]:
    """Prompt and encoder of a kept embedding; empty words if there is none."""
    try:
        with safe_open(path, framework="pt") as file:
            words: Mapping[str, str] = file.metadata() or {}
    except (OSError, SafetensorError):
        return "", ""
    return words.get("prompt", ""), words.get("encoder", "")


def keep_text(path: Path, folder: Path, prompt: str, device: str = "cpu") -> bool:
    """Embed a prompt into a file, unless the file already holds it, made by the same encoder; whether it was made."""
    encoder = fingerprint(folder)
    if made_by(path) == (prompt, encoder):
        return False
    write_text(path, encode_prompt(folder, prompt, device), prompt, encoder)
    return True


# the encoder ---------------------------------------------------------------------------------------


def _weights_in(folder: Path) -> Path:
    """Where the encoder's weights are: in Wan's own release, a diffusers pipeline, or transformers' form."""
    if (folder / "text_encoder").is_dir():
        return folder / "text_encoder"
    return next(iter(sorted(folder.glob("models_t5*.pth"))), folder)


def _tokenizer_in(folder: Path) -> Path:
    for place in (folder / "google" / "umt5-xxl", folder / "tokenizer", folder, folder.parent / "tokenizer"):
        if (place / "tokenizer.json").is_file():
            return place / "tokenizer.json"
    raise UserError(f"{folder}: no tokenizer.json, nor in google/umt5-xxl or tokenizer below it; download it as well")


def fingerprint(folder: Path) -> str:
    """Short name of an encoder: a digest of its tokenizer and of its weights' names, sizes and first and last bytes."""
    weights = _weights_in(folder)
    files = sorted(p for p in weights.iterdir() if p.is_file()) if weights.is_dir() else [weights]
    digest = hashlib.sha256(_tokenizer_in(folder).read_bytes())
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with open(path, "rb") as file:
            digest.update(file.read(65536))
            file.seek(max(0, size - 65536))
            digest.update(file.read())
    return digest.hexdigest()[:16]


def encode_prompt(folder: Path, prompt: str, device: torch.device | str = "cpu") -> Tensor:
    """The embedding of a prompt, float32 [tokens, width] on the CPU.

    Args:
        folder: Wan's own release (models_t5*.pth, google/umt5-xxl), a diffusers pipeline, or an encoder in
            transformers' form with its tokenizer.json.
        prompt: at most 512 tokens are used.
        device: where the blocks run.

    Raises:
        UserError: a file is missing or does not fit.
    """
    require_transformers()
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(_tokenizer_in(folder)))
    except Exception as error:  # the library raises nothing more precise
        raise UserError(f"{_tokenizer_in(folder)}: not a tokenizer ({error}); download it again") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(LENGTH)
    words = " ".join(html.unescape(html.unescape(prompt)).split())  # as Wan cleans its prompts
    ids = torch.tensor(tokenizer.encode(words).ids)
    source = _weights_in(folder)
    with open_weights(source) as stored:
        names = {transformers_name(name): name for name in stored.shapes}
        renamed = Stored(
            {name: stored.shapes[theirs] for name, theirs in names.items()}, lambda name: stored.read(names[name])
        )
        return _run(renamed, ids, device, str(source))


def _run(stored: Stored, ids: Tensor, device: torch.device | str, source: str) -> Tensor:
    with torch.device("meta"):
        encoder = require_transformers().UMT5EncoderModel(_config(stored.shapes, source)).encoder
    encoder.eval().requires_grad_(False)
    check(source, {f"encoder.{name}": shape for name, shape in shapes_of(encoder).items()}, stored.shapes)
    if int(ids.max()) >= stored.shapes["encoder.embed_tokens.weight"][0]:
        raise UserError(f"{source}: the tokenizer knows more words than the encoder; give the two that belong together")
    for index, block in enumerate(encoder.block):
        _load_for_its_turn(block, f"encoder.block.{index}.", stored, device)
    _load_for_its_turn(encoder.final_layer_norm, "encoder.final_layer_norm.", stored, device)
    rows = stored.read("encoder.embed_tokens.weight")[ids].float().to(device)
    with torch.inference_mode():
        return encoder(inputs_embeds=rows[None]).last_hidden_state[0].cpu().clone()


def _load_for_its_turn(module: nn.Module, prefix: str, stored: Stored, device: torch.device | str) -> None:
    """Let a module read its weights just before it runs and drop them right after."""
    inner = Stored({}, lambda name: stored.read(prefix + name))

    def before(*_: Any) -> None:
        fill(module, inner, list(shapes_of(module)), device, lambda name: torch.float32)

    def after(*_: Any) -> None:
        module.to("meta")

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)


def _config(shapes: Mapping[str, tuple[int, ...]], source: str) -> Any:
    """The sizes that the weights themselves show; the rest is the same for all of umT5."""
    first = "encoder.block.0.layer"
    try:
        vocabulary, width = shapes["encoder.embed_tokens.weight"]
        buckets, heads = shapes[f"{first}.0.SelfAttention.relative_attention_bias.weight"]
        inner = shapes[f"{first}.0.SelfAttention.q.weight"][0]
        ffn = shapes[f"{first}.1.DenseReluDense.wi_0.weight"][0]
    except (KeyError, ValueError) as error:
        raise UserError(f"{source}: not the weights of a umT5 encoder ({error} is missing or misshapen)") from error
    blocks = {match[1] for name in shapes if (match := re.match(r"encoder\.block\.(\d+)\.", name))}
    return require_transformers().UMT5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=inner // heads,
        d_ff=ffn,
        num_layers=len(blocks),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        relative_attention_max_distance=128,
        feed_forward_proj="gated-gelu",
        layer_norm_epsilon=1e-6,
        dropout_rate=0.0,
    )
