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
    """Multi-head attention (Vaswani et al. 2017), of tokens to each other or to a context.

    What is read off a token (query, gate, and its own key and value) comes of one matrix product.

    Args:
        dim: Width D of the queries' tokens.
        heads: Number of heads.
        dim_head: Width of one.
        gated: Scale what each head reads by a sigmoid, so that it can attend to nothing.
        context: Width of the tokens attended to; None when tokens attend to each other.
    """

    def __init__(
        self, dim: int, heads: int, dim_head: int, *, gated: bool, context: int | None = None
    ) -> None:
        super().__init__()
        self.heads, self.dim_head = heads, dim_head
        inner = heads * dim_head
        self.sizes = [inner, heads if gated else 0]
        if context is None:
            self.sizes += [inner, inner]
        self.norm = nn.LayerNorm(dim)
        self.inputs = nn.Linear(dim, sum(self.sizes), bias=gated)
        self.context = None if context is None else nn.Linear(context, 2 * inner, bias=gated)
        self.out = nn.Linear(inner, dim, bias=False)

    def project(self, context: Tensor) -> KeyValue:
        """Give the keys and values of a context (B, K, D), which is not normalised here."""
        key, value = self.context(context).chunk(2, dim=-1)  # type: ignore[misc]
        return self._split(key), self._split(value)

    def forward(self, x: Tensor, key_value: KeyValue, mask: Tensor | None = None) -> Tensor:
        """Attend from x (B, L, D) to the keys and values of a context.

        Args:
            x: Queries.
            key_value: Of `project`.
            mask: Broadcasts to (B, heads, L, K); True where attention is allowed.
        """
        query, gate = self.inputs(self.norm(x)).split(self.sizes, dim=-1)
        return self._attend(self._split(query), gate, key_value, mask)

    def extend(
        self, x: Tensor, past: KeyValue | None, mask: Tensor | None, newest: int = 0
    ) -> tuple[Tensor, KeyValue]:
        """Attend from tokens x (B, L, D) to those before and to each other.

        Args:
            x: The tokens.
            past: Keys and values of the tokens before them.
            mask: (L, K) over all K tokens so far; None when each may see all.
            newest: Attend only from this many tokens, the last; 0 for all.

        Returns:
            What was read, and the keys and values of all tokens so far.
        """
        query, gate, key, value = self.inputs(self.norm(x)).split(self.sizes, dim=-1)
        key, value = self._split(key), self._split(value)
        if past is not None:
            key = torch.cat([past[0], key], dim=2)
            value = torch.cat([past[1], value], dim=2)
        if newest:
            query, gate = query[:, -newest:], gate[:, -newest:]
        return self._attend(self._split(query), gate, (key, value), mask), (key, value)

    def _attend(
        self, query: Tensor, gate: Tensor, key_value: KeyValue, mask: Tensor | None
    ) -> Tensor:
        out = F.scaled_dot_product_attention(query, *key_value, attn_mask=mask).transpose(1, 2)
        if self.sizes[1]:
            out = out * torch.sigmoid(gate).unsqueeze(-1)
        return self.out(out.flatten(-2))

    def _split(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape  # not by einops: a control step comes here 50 times
        return x.reshape(batch, length, self.heads, self.dim_head).transpose(1, 2)


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
        self.attention = Attention(dim, heads, dim_head, gated=gated)
        self.cross: Attention | None = None
        if cross:
            self.cross = Attention(dim, heads, dim_head, gated=gated, context=dim)
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
        x = x + self.dropout(self.attention.extend(x, None, mask)[0])
        if self.cross is not None and context is not None:
            x = x + self.dropout(self.cross(x, self.cross.project(context), context_mask))
        return x + self.dropout(self.feed_forward(x))

    def newest(self, x: Tensor, count: int) -> Tensor:
        """Transform the last `count` tokens of x (B, L, D), which may see all."""
        read, _ = self.attention.extend(x, None, None, newest=count)
        x = x[:, -count:] + read
        return x + self.feed_forward(x)

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
        read, past = self.attention.extend(x, cache.past, mask)
        x = x + read
        if self.cross is not None and cache.context is not None:
            x = x + self.cross(x, cache.context)
        return x + self.feed_forward(x), KVCache(past, cache.context)


def frame_causal_mask(frames: int, tokens: int, device: torch.device) -> Tensor:
    """Let each token see all tokens of its own and of earlier frames: (F·M, F·M) bool."""
    frame = torch.arange(frames * tokens, device=device) // tokens
    return frame[:, None] >= frame[None, :]


def causal_mask(length: int, device: torch.device) -> Tensor:
    """Let each token see itself and those before: (L, L) bool."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()
