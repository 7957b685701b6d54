"""The diffusion transformer: one forward for the bidirectional teacher and the block-causal student.

Wan2.2's TI2V-5B architecture and its parameter names (patch_embedding, time_embedding, time_projection,
blocks.N.{self_attn,cross_attn,ffn,modulation}, head), with a timestep per latent, plus the paper's talk and listen
audio attention in every block (paper, 1.4). The teacher passes no cache; the student passes a view of one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from streamavatar.cache import View
from streamavatar.config import TransformerConfig
from streamavatar.ops.attention import attention
from streamavatar.ops.fused import gated, norm_modulate, norm_rope, rms_norm
from streamavatar.ops.rope import Rope, apply_rope, rope
from streamavatar.schedule import TIMESTEPS, sample_from_velocity


class KV(NamedTuple):
    """Keys and values that tokens attend to, [B, heads, M, head_dim]."""

    k: Tensor
    v: Tensor


class BlockKeys(NamedTuple):
    """What a block makes of the conditions; of the audio [B * T, heads, tokens, head_dim]."""

    talk: KV
    listen: KV
    text: KV | None


@dataclass(frozen=True)
class Conditions:
    """What a pass is conditioned on, for T latents.

    Attributes:
        talk, listen: audio tokens, [B, T, tokens, audio_dim].
        reference: the clean reference latent, [B, C, 1, H, W].
        text: text embedding [B, L, text_dim], where the model has a text path.
        keys: what each block makes of them, if `Transformer.prepare` has been asked; audio and text are not looked at
            then.
    """

    talk: Tensor
    listen: Tensor
    reference: Tensor
    text: Tensor | None = None
    keys: tuple[BlockKeys, ...] | None = None

    def latents(self, span: slice | range) -> Conditions:
        """The conditions of some of the latents."""
        part = slice(span.start, span.stop)
        return replace(self, talk=self.talk[:, part], listen=self.listen[:, part], keys=None)


Given = tuple[Conditions, Tensor | None]
"""Conditions and the embedded text [B, L, dim]."""


def timestep_embedding(timesteps: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding, cosines first (as Wan): [...] to float32 [..., dim]; computed in float64."""
    half = dim // 2
    rates = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float64, device=timesteps.device) / half)
    angles = timesteps.double()[..., None] * rates
    return torch.cat((angles.cos(), angles.sin()), dim=-1).float()


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def _merge_heads(x: Tensor) -> Tensor:
    return x.transpose(-3, -2).flatten(-2)


class RMSNorm(nn.RMSNorm):
    """RMS norm in the input's precision, so that the fused kernel also serves float32 weights under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        assert self.eps is not None
        return rms_norm(x, self.weight, self.eps)


class SelfAttention(nn.Module):
    """Attention over the chunk's own tokens and what its view of the cache gives."""

    def __init__(self, dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads, self.eps = heads, eps
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = RMSNorm(dim, eps=eps)
        self.norm_k = RMSNorm(dim, eps=eps)

    def forward(self, x: Tensor, table: Rope, layer: int, view: View | None, mask: Tensor | None) -> Tensor:
        v = _split_heads(self.v(x), self.heads)
        q = self._rotated(self.q(x), self.norm_q, table).to(v.dtype)
        if view is not None and view.needs_raw:
            k = _split_heads(self.norm_k(self.k(x)), self.heads)
            k_rotated = apply_rope(k, table).to(v.dtype)
        else:
            k = k_rotated = self._rotated(self.k(x), self.norm_k, table).to(v.dtype)
        keys, values = (k_rotated, v) if view is None else view.attend(layer, k.to(v.dtype), k_rotated, v)
        return self.o(_merge_heads(attention(q, keys, values, mask)))

    def _rotated(self, x: Tensor, norm: RMSNorm, table: Rope) -> Tensor:
        return norm_rope(x, norm.weight, table, self.heads, self.eps)


class TextAttention(nn.Module):
    """Wan's cross-attention to the text tokens."""

    def __init__(self, dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = RMSNorm(dim, eps=eps)
        self.norm_k = RMSNorm(dim, eps=eps)

    def keys(self, text: Tensor) -> KV:
        """Of embedded text [B, L, dim]."""
        k, v = _split_heads(self.norm_k(self.k(text)), self.heads), _split_heads(self.v(text), self.heads)
        return KV(k.to(v.dtype), v)

    def forward(self, x: Tensor, text: KV) -> Tensor:
        q = _split_heads(self.norm_q(self.q(x)), self.heads)
        return self.o(_merge_heads(attention(q.to(text.v.dtype), *text)))


class AudioAttention(nn.Module):
    """Frame-wise cross-attention: the tokens of a latent attend to the audio tokens of that latent alone.

    The output projection starts at zero, so that a model which gains this module starts as it was.
    """

    def __init__(self, dim: int, heads: int, audio_dim: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(audio_dim, 2 * dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = RMSNorm(dim // heads, eps=eps)
        self.norm_k = RMSNorm(dim // heads, eps=eps)
        nn.init.zeros_(self.o.weight)
        nn.init.zeros_(self.o.bias)

    def keys(self, audio: Tensor) -> KV:
        """Of audio tokens [B, T, tokens, audio_dim]."""
        k, v = self.kv(audio.flatten(0, 1)).chunk(2, dim=-1)
        k, v = self.norm_k(_split_heads(k, self.heads)), _split_heads(v, self.heads)
        return KV(k.to(v.dtype), v)

    def forward(self, x: Tensor, audio: KV) -> Tensor:
        """[B, T*N, dim] to the same."""
        rows = x.unflatten(1, (audio.k.shape[0] // x.shape[0], -1)).flatten(0, 1)
        q = self.norm_q(_split_heads(self.q(rows), self.heads))
        out = self.o(_merge_heads(attention(q.to(audio.v.dtype), *audio)))
        return out.view_as(x)


class Block(nn.Module):
    """Self-attention, text attention (optional), talk + listen attention, feed-forward; modulated per latent."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        dim, heads, eps = config.dim, config.heads, config.eps
        self.layer, self.eps = layer, eps
        self.self_attn = SelfAttention(dim, heads, eps)
        if config.text_dim:
            self.norm3 = nn.LayerNorm(dim, eps)
            self.cross_attn = TextAttention(dim, heads, eps)
        self.norm_audio = nn.LayerNorm(dim, eps)
        self.talk_attn = AudioAttention(dim, heads, config.audio_dim, eps)
        self.listen_attn = AudioAttention(dim, heads, config.audio_dim, eps)
        self.ffn = nn.Sequential(nn.Linear(dim, config.ffn_dim), nn.GELU("tanh"), nn.Linear(config.ffn_dim, dim))
        self.modulation = nn.Parameter(torch.randn(1, 6, dim).div_(dim**0.5))  # in place: see `Head`

    def keys(self, conditions: Conditions, text: Tensor | None) -> BlockKeys:
        """What this block attends to of the conditions and the embedded text; the same in every pass of a chunk."""
        return BlockKeys(
            self.talk_attn.keys(conditions.talk),
            self.listen_attn.keys(conditions.listen),
            None if text is None else self.cross_attn.keys(text),
        )

    def forward(
        self, x: Tensor, e: Tensor, table: Rope, given: Given, view: View | None, mask: Tensor | None
    ) -> Tensor:
        """x [B, T*N, dim], e float32 [B, T, 6, dim] to [B, T*N, dim]."""
        conditions, text = given
        # In training they are made here, inside of what activation checkpointing forgets.
        keys = conditions.keys[self.layer] if conditions.keys else self.keys(conditions, text)
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.modulation + e).to(x.dtype).unbind(2)
        h = norm_modulate(x, shift1, scale1, self.eps)
        x = gated(x, self.self_attn(h, table, self.layer, view, mask), gate1)
        if keys.text is not None:
            x = x + self.cross_attn(self.norm3(x), keys.text)
        h = self.norm_audio(x)
        x = x + self.talk_attn(h, keys.talk) + self.listen_attn(h, keys.listen)
        h = norm_modulate(x, shift2, scale2, self.eps)
        return gated(x, self.ffn(h), gate2)


class Head(nn.Module):
    """The last norm and projection to a patch of latents."""

    def __init__(self, dim: int, out: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.head = nn.Linear(dim, out)
        # In place, since on the meta device a new tensor by arithmetic loads all of torch._dynamo: a second per start.
        self.modulation = nn.Parameter(torch.randn(1, 2, dim).div_(dim**0.5))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        shift, scale = (self.modulation + e[:, :, None]).to(x.dtype).unbind(2)
        return self.head(norm_modulate(x, shift, scale, self.eps))


class Transformer(nn.Module):
    """See the module's docstring.

    Args:
        config: sizes and what the output means.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        dim, patch = config.dim, (1, config.patch, config.patch)
        channels = config.latent_channels + config.reference_channels
        self.patch_embedding = nn.Conv3d(channels, dim, kernel_size=patch, stride=patch)
        if config.text_dim:
            self.text_embedding = nn.Sequential(nn.Linear(config.text_dim, dim), nn.GELU("tanh"), nn.Linear(dim, dim))
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, dim * 6))
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.head = Head(dim, config.latent_channels * config.patch**2, config.eps)
        if config.reference_channels:
            self.register_buffer("reference_scale", torch.ones(config.reference_channels))
        self.checkpoint_blocks = False
        """Recompute each block in the backward pass instead of keeping its activations (`TrainConfig.recompute`)."""
        nn.init.zeros_(self.head.head.weight)
        nn.init.zeros_(self.head.head.bias)

    reference_scale: Tensor

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        conditions: Conditions,
        view: View | None = None,
        *,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The raw prediction for noisy latents.

        Args:
            x: latents [B, C, T, H, W]; without a view the whole clip, reference first.
            timesteps: 1000 * sigma per latent, [B, T]; 0 marks a clean latent.
            conditions: of these T latents.
            view: a pass of a cache (student), or none (teacher: every token sees every token).
            mask: optional attention mask [T*N, T*N], True where a query may look; without a view only.

        Returns:
            [B, C, T, H, W], a velocity or a sample as `config.prediction` says.
        """
        tokens, e, inputs = self._prepare(x, timesteps, conditions, view, mask)
        for block in self.blocks:
            tokens = self._run_block(block, tokens, inputs)
        return self._unpatchify(self.head(tokens, e), x.shape[2], self._grid(x))

    def prepare(self, conditions: Conditions, earlier: Conditions | None = None) -> Conditions:
        """The conditions with every block's keys and values, so that the passes of a chunk share them.

        Args:
            conditions: of a chunk.
            earlier: prepared ones of which the keys of the text are taken over if the text is the same tensor.
        """
        if earlier is not None and earlier.keys and conditions.text is earlier.text:
            texts = [keys.text for keys in earlier.keys]
            made = [block.keys(conditions, None) for block in self.blocks]  # type: ignore[operator]
            return replace(conditions, keys=tuple(m._replace(text=t) for m, t in zip(made, texts, strict=True)))
        text = self._embed_text(conditions)
        return replace(conditions, keys=tuple(block.keys(conditions, text) for block in self.blocks))  # type: ignore[operator]

    def _embed_text(self, conditions: Conditions) -> Tensor | None:
        return None if conditions.text is None else self.text_embedding(conditions.text)

    def tap(self, x: Tensor, timesteps: Tensor, conditions: Conditions, taps: tuple[int, ...]) -> list[Tensor]:
        """Tokens [B, T*N, dim] after some blocks (0-based) of a pass without a view; see :meth:`forward`."""
        tokens, _, inputs = self._prepare(x, timesteps, conditions, None, None)
        found = []
        for layer, block in enumerate(self.blocks[: max(taps) + 1]):
            tokens = self._run_block(block, tokens, inputs)
            if layer in taps:
                found.append(tokens)
        return found

    def _grid(self, x: Tensor) -> tuple[int, int]:
        return x.shape[3] // self.config.patch, x.shape[4] // self.config.patch

    def _prepare(
        self, x: Tensor, timesteps: Tensor, conditions: Conditions, view: View | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
        """The first tokens, the time embedding [B, T, dim], and what every block gets beside its tokens."""
        if view is None:
            times = tuple(range(x.shape[2]))
            table = rope(times, self._grid(x), self.config.head_dim, self.config.rope_theta).to(x.device)
        else:
            table = view.table(x.device)
        tokens = self._embed(self._condition(x, timesteps, conditions.reference.to(x.dtype)))
        given = (conditions, None if conditions.keys else self._embed_text(conditions))
        e = self.time_embedding(timestep_embedding(timesteps, self.config.freq_dim).to(tokens.dtype))
        return tokens, e, (self.time_projection(e).unflatten(-1, (6, -1)), table, given, view, mask)

    def _run_block(self, block: nn.Module, tokens: Tensor, inputs: tuple[Any, ...]) -> Tensor:
        if self.checkpoint_blocks and torch.is_grad_enabled():
            return checkpoint(block, tokens, *inputs, use_reentrant=False)
        return block(tokens, *inputs)

    def sample(
        self, x: Tensor, sigma: Tensor, conditions: Conditions, view: View | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        """The estimate of the clean latents x0, whatever the network predicts; sigma [B, T]."""
        out = self(x, TIMESTEPS * sigma, conditions, view, mask=mask)
        if self.config.prediction == "velocity":
            return sample_from_velocity(x, out, sigma)
        return out + conditions.reference.to(out.dtype) if self.config.residual else out

    def _condition(self, x: Tensor, timesteps: Tensor, reference: Tensor) -> Tensor:
        """What the network sees of noisy latents: the residual if it makes one, with the reference beside or not."""
        out = x
        if self.config.residual:
            out = x - (1 - timesteps / TIMESTEPS).to(x.dtype)[:, None, :, None, None] * reference
        if self.config.reference_channels:
            beside = reference[:, : self.config.reference_channels] / self.reference_scale[:, None, None, None].to(
                x.dtype
            )
            out = torch.cat((out, beside.expand(-1, -1, *x.shape[2:])), dim=1)
        return out

    def _embed(self, x: Tensor) -> Tensor:
        """The patch convolution as a product: [B, C, T, H, W] to [B, T*N, dim]."""
        p = self.config.patch
        rows = x.unflatten(4, (-1, p)).unflatten(3, (-1, p))
        rows = rows.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(1, 3)
        weight = self.patch_embedding.weight.flatten(1)
        return functional.linear(rows, weight, self.patch_embedding.bias)

    def _unpatchify(self, tokens: Tensor, latents: int, grid: tuple[int, int]) -> Tensor:
        p = self.config.patch
        x = tokens.unflatten(-1, (p, p, -1)).unflatten(1, (latents, *grid))
        x = x.permute(0, 6, 1, 2, 4, 3, 5)
        return x.reshape(
            *x.shape[:3], grid[0] * p, grid[1] * p
        )  # one copy, and no view: FSDP hooks on what is returned
