"""The Consistency-Aware Discriminator of the second stage (paper, 3).

A copy of the teacher's backbone looks at a whole clip. At three depths a Q-Former with one learnt query per latent
gathers the tokens of that latent; together they are the latent's feature. The local branch gives every latent a logit.
The global branch asks with the reference's feature, by cross-attention, about all that follow, and gives the clip one
logit: it is what notices that the person has changed.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from streamavatar.models.transformer import Conditions, RMSNorm, Transformer, timestep_embedding
from streamavatar.ops.attention import attention
from streamavatar.schedule import TIMESTEPS

Branches = Literal["single", "local", "pooled", "full"]


class Logits(NamedTuple):
    """What a discriminator says of clips: per latent [B, T - 1] and per clip [B], where it has such a branch."""

    local: Tensor | None
    overall: Tensor | None


class CrossAttention(nn.Module):
    """Queries [B, N, dim] attend to keys [B, M, dim]."""

    def __init__(self, dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.o = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.norm_q, self.norm_k = RMSNorm(dim // heads, eps=eps), RMSNorm(dim // heads, eps=eps)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        k, v = self.kv(keys).chunk(2, dim=-1)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (self.q(queries), k, v))
        out = attention(self.norm_q(q).to(v.dtype), self.norm_k(k).to(v.dtype), v)
        return self.o(out.transpose(1, 2).flatten(2))


class QFormer(nn.Module):
    """One learnt query gathers the tokens of each latent, or of the whole clip: [B, T * N, dim] to [B, T, dim]."""

    def __init__(self, dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, dim) / dim**0.5)
        self.norm = nn.LayerNorm(dim, eps)
        self.gather = CrossAttention(dim, heads, eps)
        self.norm_ffn = nn.LayerNorm(dim, eps)
        self.ffn = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU("tanh"), nn.Linear(4 * dim, dim))

    def forward(self, tokens: Tensor, latents: int) -> Tensor:
        rows = self.norm(tokens).unflatten(1, (latents, -1)).flatten(0, 1)
        query = self.query.expand(rows.shape[0], -1, -1)
        x = query + self.gather(query, rows)
        x = x + self.ffn(self.norm_ffn(x))
        return x.unflatten(0, (-1, latents))[:, :, 0]


class Discriminator(nn.Module):
    """See the module's docstring.

    Args:
        backbone: a copy of the teacher's transformer, trained here.
        taps: blocks (0-based) after which features are taken.
        branches: "full"; "pooled" replaces the reference's question by a mean over time; "local" has no global branch;
            "single" is the plain discriminator of the paper's ablation: at each depth one register token gathers the
            whole clip, and there is one logit.
        width: of a latent's feature.
    """

    def __init__(
        self, backbone: Transformer, taps: tuple[int, ...], branches: Branches = "full", width: int = 1024
    ) -> None:
        super().__init__()
        config = backbone.config
        if not taps or max(taps) >= config.layers or list(taps) != sorted(set(taps)):
            raise ValueError(f"discriminator: taps {taps} are not ascending blocks of 0..{config.layers - 1}")
        dim, heads, eps = config.dim, config.heads, config.eps
        self.backbone, self.taps, self.branches = backbone, taps, branches
        self.formers = nn.ModuleList(QFormer(dim, heads, eps) for _ in taps)
        self.merge = nn.Sequential(nn.LayerNorm(len(taps) * dim, eps), nn.Linear(len(taps) * dim, width))
        if branches != "single":
            self.local = nn.Linear(width, 1)
        if branches == "full":
            self.ask = CrossAttention(width, max(1, width // config.head_dim), eps)
        if branches != "local":
            self.overall = nn.Sequential(nn.Linear(width, width), nn.GELU("tanh"), nn.Linear(width, 1))

    def forward(self, x: Tensor, sigma: Tensor, conditions: Conditions) -> Logits:
        """Logits of clips.

        Args:
            x: latents [B, C, T, H, W], the reference first.
            sigma: [B, T], what the backbone is told of the noise; 0 for the reference.
            conditions: as the teacher's.
        """
        latents = 1 if self.branches == "single" else x.shape[2]
        tapped = self.backbone.tap(x, TIMESTEPS * sigma, conditions, self.taps)
        gathered = [self._gather(former, tokens, latents) for former, tokens in zip(self.formers, tapped, strict=True)]
        features = self.merge(torch.cat(gathered, dim=-1))
        if self.branches == "single":
            return Logits(None, self.overall(features[:, 0]).float().sum(-1))
        local = self.local(features[:, 1:]).float().sum(-1)  # of one number, as no view is: FSDP hooks on it
        if self.branches == "local":
            return Logits(local, None)
        return Logits(local, self.overall(self._summary(features)).float().sum(-1))

    def _gather(self, former: nn.Module, tokens: Tensor, latents: int) -> Tensor:
        if self.backbone.checkpoint_blocks and torch.is_grad_enabled():
            return checkpoint(former, tokens, latents, use_reentrant=False)
        return former(tokens, latents)

    def _summary(self, features: Tensor) -> Tensor:
        """[B, T, width] to [B, width]."""
        if self.branches == "pooled":
            return features[:, 1:].mean(1)
        moments = torch.arange(1, features.shape[1], device=features.device)
        timed = features[:, 1:] + timestep_embedding(moments, features.shape[2]).to(features.dtype)
        return self.ask(features[:, :1], timed)[:, 0]


def default_taps(layers: int) -> tuple[int, int, int]:
    """Three different depths, at the shares of blocks 13, 21 and 29 of Wan's 30."""
    if layers < 3:
        raise ValueError(f"discriminator: needs a backbone of at least three blocks, not {layers}")
    second = round(21 / 29 * (layers - 1))
    return min(round(13 / 29 * (layers - 1)), second - 1), second, layers - 1
