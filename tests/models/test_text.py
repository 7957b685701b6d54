"""umT5 a block at a time: transformers' numbers from either release's names, zero-padded, kept with what made it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from streamavatar.errors import UserError
from streamavatar.models import text
from streamavatar.models.text import LENGTH, encode_prompt, fingerprint, keep_text, made_by, read_text, write_text

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WIDTH, HEADS, INNER, FFN, BLOCKS, BUCKETS = 12, 2, 16, 20, 3, 32
PROMPT = "a person is  speaking and\nlistening ."
WORDS = ["<pad>", "</s>", "<unk>", "a", "person", "is", "speaking", "and", "listening", "."]
IDS = [3, 4, 5, 6, 7, 8, 9, 1]


def write_tokenizer(path: Path) -> None:
    """Words split at spaces; the end of the text marked, as umT5's does."""
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))


def wan_weights() -> dict[str, Tensor]:
    """Names and shapes of models_t5_umt5-xxl-enc-bf16.pth, small."""
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"token_embedding.weight": (len(WORDS), WIDTH), "norm.weight": (WIDTH,)}
    for block in (f"blocks.{index}" for index in range(BLOCKS)):
        shapes |= {f"{block}.norm{index}.weight": (WIDTH,) for index in (1, 2)}
        shapes |= {f"{block}.attn.{name}.weight": (INNER, WIDTH) for name in "qkv"}
        shapes |= {f"{block}.attn.o.weight": (WIDTH, INNER), f"{block}.ffn.fc2.weight": (WIDTH, FFN)}
        shapes |= {f"{block}.ffn.gate.0.weight": (FFN, WIDTH), f"{block}.ffn.fc1.weight": (FFN, WIDTH)}
        shapes[f"{block}.pos_embedding.embedding.weight"] = (BUCKETS, HEADS)
    return {
        name: torch.randn(shape, generator=generator) * (1 if "embedding" in name else 0.5)
        + (1 if "norm" in name else 0)
        for name, shape in shapes.items()
    }


def wan_encode(w: dict[str, Tensor], ids: Tensor) -> Tensor:
    """Wan's encoder, written down from its description: T5 1.1 without scaling, a position bias in every block."""

    def norm(x: Tensor, name: str) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * w[f"{name}.weight"]

    def bucket(distance: int) -> int:
        """Half of the buckets for each direction, half of these exact, the rest logarithmic up to 128."""
        half, size = BUCKETS // 2, abs(distance)
        exact = half // 2
        if size >= exact:
            size = min(half - 1, exact + int(math.log(size / exact) / math.log(128 / exact) * (half - exact)))
        return size + (half if distance > 0 else 0)

    n = len(ids)
    buckets = torch.tensor([[bucket(key - query) for key in range(n)] for query in range(n)])
    x = w["token_embedding.weight"][ids]
    for index in range(BLOCKS):
        block = f"blocks.{index}"
        h = norm(x, f"{block}.norm1")
        q, k, v = (
            (h @ w[f"{block}.attn.{name}.weight"].t()).unflatten(1, (HEADS, -1)).transpose(0, 1) for name in "qkv"
        )
        bias = w[f"{block}.pos_embedding.embedding.weight"][buckets].permute(2, 0, 1)
        mixed = ((q @ k.transpose(1, 2) + bias).softmax(-1) @ v).transpose(0, 1).flatten(1)
        x = x + mixed @ w[f"{block}.attn.o.weight"].t()
        h = norm(x, f"{block}.norm2")
        gate = functional.gelu(h @ w[f"{block}.ffn.gate.0.weight"].t(), approximate="tanh")
        x = x + (gate * (h @ w[f"{block}.ffn.fc1.weight"].t())) @ w[f"{block}.ffn.fc2.weight"].t()
    return norm(x, "norm")


def wan_release(folder: Path) -> dict[str, Tensor]:
    weights = wan_weights()
    write_tokenizer(folder / "google" / "umt5-xxl")
    torch.save(weights, folder / "models_t5_umt5-xxl-enc-bf16.pth")
    return weights


def diffusers_pipeline(folder: Path) -> Any:
    torch.manual_seed(1)
    model = transformers.UMT5EncoderModel(
        transformers.UMT5Config(
            vocab_size=len(WORDS), d_model=WIDTH, d_kv=8, d_ff=FFN, num_layers=BLOCKS, num_heads=HEADS, dropout_rate=0.0
        )
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.5)
    write_tokenizer(folder / "tokenizer")
    model.save_pretrained(folder / "text_encoder")
    return model


def test_equals_wan_s_encoder(tmp_path: Path) -> None:
    weights = wan_release(tmp_path)
    rows = encode_prompt(tmp_path, PROMPT)
    torch.testing.assert_close(rows, wan_encode(weights, torch.tensor(IDS)), atol=1e-5, rtol=1e-5)
    assert rows.shape == (8, WIDTH)


def test_equals_transformers(tmp_path: Path) -> None:
    model = diffusers_pipeline(tmp_path)
    with torch.no_grad():
        expected = model(torch.tensor([IDS])).last_hidden_state[0]
    torch.testing.assert_close(encode_prompt(tmp_path, PROMPT), expected, atol=1e-6, rtol=0)


def test_bfloat16_is_computed_in_float32(tmp_path: Path) -> None:
    weights = {name: value.bfloat16() for name, value in wan_release(tmp_path).items()}
    torch.save(weights, tmp_path / "models_t5_umt5-xxl-enc-bf16.pth")
    expected = wan_encode({name: value.float() for name, value in weights.items()}, torch.tensor(IDS))
    torch.testing.assert_close(encode_prompt(tmp_path, PROMPT), expected, atol=1e-5, rtol=1e-5)


def test_long_prompts_are_cut(tmp_path: Path) -> None:
    wan_release(tmp_path)
    assert encode_prompt(tmp_path, "a " * 600).shape == (LENGTH, WIDTH)


def test_padded_with_zeros(tmp_path: Path) -> None:
    rows = torch.randn(8, WIDTH)
    write_text(tmp_path / "text.safetensors", rows, PROMPT, "encoder")
    padded = read_text(tmp_path / "text.safetensors", WIDTH)
    assert padded.shape == (1, LENGTH, WIDTH)
    assert torch.equal(padded[0, :8], rows)
    assert padded[0, 8:].abs().max() == 0


def test_made_once_per_prompt_and_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, path = tmp_path / "wan", tmp_path / "text.safetensors"
    weights = wan_release(folder)
    assert keep_text(path, folder, PROMPT)
    assert made_by(path) == (PROMPT, fingerprint(folder))
    expected = read_text(path, WIDTH)
    with monkeypatch.context() as patched:
        patched.setattr(text, "encode_prompt", lambda *_: pytest.fail("the encoder ran again"))
        assert not keep_text(path, folder, PROMPT)
    assert keep_text(path, folder, "a person")
    assert not torch.equal(read_text(path, WIDTH), expected)
    keep_text(path, folder, PROMPT)
    weights["norm.weight"] = weights["norm.weight"] * 2
    torch.save(weights, folder / "models_t5_umt5-xxl-enc-bf16.pth")
    assert keep_text(path, folder, PROMPT)
    torch.testing.assert_close(read_text(path, WIDTH), 2 * expected)


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    weights = wan_release(tmp_path)
    file, good = tmp_path / "models_t5_umt5-xxl-enc-bf16.pth", dict(weights)
    weights.pop("blocks.1.attn.k.weight")
    torch.save(weights, file)
    with pytest.raises(UserError, match=r"missing 1 tensor: encoder\.block\.1\.layer\.0\.SelfAttention\.k"):
        encode_prompt(tmp_path, PROMPT)
    torch.save({**good, "blocks.2.ffn.fc2.weight": torch.zeros(WIDTH, 7)}, file)
    with pytest.raises(UserError, match=r"block\.2\.\S+\.wo\.weight has shape \(12, 7\) .* \(12, 20\)"):
        encode_prompt(tmp_path, PROMPT)
    torch.save({"something.else": torch.zeros(1)}, file)
    with pytest.raises(UserError, match="not the weights of a umT5 encoder"):
        encode_prompt(tmp_path, PROMPT)
    torch.save({**good, "token_embedding.weight": torch.zeros(5, WIDTH)}, file)
    with pytest.raises(UserError, match="knows more words"):
        encode_prompt(tmp_path, PROMPT)
    (tmp_path / "google" / "umt5-xxl" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        encode_prompt(tmp_path, PROMPT)


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "text.safetensors"
    with pytest.raises(UserError, match=r"text\.safetensors is missing: .* streamavatar assemble"):
        read_text(path, WIDTH)
    save_file({"text": torch.zeros(3, 5)}, path)
    with pytest.raises(UserError, match=r"shape \(3, 5\), expected \(at most 512, 12\)"):
        read_text(path, WIDTH)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match="cannot read the text embedding"):
        read_text(path, WIDTH)
    assert made_by(path) == ("", "")
