# Copyright 2026 The qt_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Pre-norm transformer blocks over tokens (B, L, D), and their keys and values kept for later."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KeyValue = tuple[Tensor, Tensor]  # each (B, heads, K, dim_head)


@dataclass(frozen=True)
class KVCache:
    """What one block has attended to so far.

    Attributes:
        past: Keys and values of the tokens before; None when there is none yet.
        context: Keys and values of the context of its cross-attention.
    """

    past: KeyValue | None = None
    context: KeyValue | None = None

    def select(self, rows: Tensor) -> KVCache:
        """Keep batch rows `rows` (B',), in this order."""
        kept = [
            None if pair is None else (pair[0][rows], pair[1][rows])
            for pair in (self.past, self.context)
        ]
        return KVCache(*kept)


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017) to keys and values given by `project`.

    Args:
        dim: Width D of the queries' tokens.
        heads: Number of heads.
        dim_head: Width of one.
        gated: Scale what each head reads by a sigmoid, so that it can attend to nothing.
        context: Width of the tokens attended to, when not `dim`.
    """

    def __init__(
        self, dim: int, heads: int, dim_head: int, gated: bool, context: int | None = None
    ) -> None:
        super().__init__()
        inner = heads * dim_head
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, inner, bias=False)
        self.key_value = nn.Linear(context or dim, 2 * inner, bias=False)
        self.gate = nn.Linear(dim, heads) if gated else None
        self.out = nn.Linear(inner, dim, bias=False)

    def project(self, context: Tensor) -> KeyValue:
        """Give the keys and values of tokens (B, K, D), which are not normalised here."""
        key, value = self.key_value(context).chunk(2, dim=-1)
        return self._split(key), self._split(value)

    def forward(
        self,
        x: Tensor,
        key_value: KeyValue | None = None,
        mask: Tensor | None = None,
        past: KeyValue | None = None,
    ) -> Tensor:
        """Attend from x (B, L, D).

        Args:
            x: Queries.
            key_value: What to attend to; None for x itself.
            mask: Broadcasts to (B, heads, L, K); True where attention is allowed.
            past: Keys and values before those of x.
        """
        return self.extend(x, key_value, mask, past)[0]

    def extend(
        self,
        x: Tensor,
        key_value: KeyValue | None = None,
        mask: Tensor | None = None,
        past: KeyValue | None = None,
    ) -> tuple[Tensor, KeyValue]:
        """Attend as `forward` does; also give the keys and values attended to."""
        x = self.norm(x)
        key, value = self.project(x) if key_value is None else key_value
        if past is not None:
            key = torch.cat([past[0], key], dim=2)
            value = torch.cat([past[1], value], dim=2)
        query = self._split(self.query(x))
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        out = out.transpose(1, 2)
        if self.gate is not None:
            out = out * torch.sigmoid(self.gate(x)).unsqueeze(-1)
        return self.out(out.flatten(-2)), (key, value)

    def _split(self, x: Tensor) -> Tensor:
        batch, length, inner = x.shape  # not by einops: a control step comes here 50 times
        return x.view(batch, length, self.heads, inner // self.heads).transpose(1, 2)


class FeedForward(nn.Sequential):
    """Norm, widen, GELU, narrow."""

    def __init__(self, dim: int, multiple: int = 4) -> None:
        super().__init__(
            nn.LayerNorm(dim),
            nn.Linear(dim, multiple * dim),
            nn.GELU(),
            nn.Linear(multiple * dim, dim),
        )


class Block(nn.Module):
    """Self-attention, optional cross-attention, feed-forward; each added to its input."""

    def __init__(
        self,
        dim: int,
        heads: int,
        dim_head: int,
        *,
        gated: bool = True,
        cross: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention = Attention(dim, heads, dim_head, gated)
        self.cross = Attention(dim, heads, dim_head, gated) if cross else None
        self.feed_forward = FeedForward(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """Transform x (B, L, D) under mask (L, L), looking at context (B, K, D)."""
        x = x + self.dropout(self.attention(x, mask=mask))
        if self.cross is not None and context is not None:
            x = x + self.dropout(self.cross(x, self.cross.project(context), context_mask))
        return x + self.dropout(self.feed_forward(x))

    def begin(self, context: Tensor | None = None) -> KVCache:
        """Start a sequence that looks at context (B, K, D)."""
        if self.cross is None or context is None:
            return KVCache()
        return KVCache(context=self.cross.project(context))

    def extend(
        self, x: Tensor, cache: KVCache, mask: Tensor | None = None
    ) -> tuple[Tensor, KVCache]:
        """Transform tokens x (B, L, D) that follow those in `cache`.

        Args:
            x: The new tokens.
            cache: Of the tokens before.
            mask: (L, K) over all K tokens so far; None when x may see all of them and itself.
        """
        read, past = self.attention.extend(x, mask=mask, past=cache.past)
        x = x + read
        if self.cross is not None:
            x = x + self.cross(x, cache.context)
        return x + self.feed_forward(x), KVCache(past, cache.context)


def frame_causal_mask(frames: int, tokens: int, device: torch.device) -> Tensor:
    """Let each token see all tokens of its own and of earlier frames: (F·M, F·M) bool."""
    frame = torch.arange(frames * tokens, device=device) // tokens
    return frame[:, None] >= frame[None, :]


def causal_mask(length: int, device: torch.device) -> Tensor:
    """Let each token see itself and those before: (L, L) bool."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()
